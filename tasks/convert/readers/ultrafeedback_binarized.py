"""UltraFeedback, binarized: `prompt`, and `chosen` and `rejected` as whole conversations [{role, content}].

Everything before the last message is the prompt; it has to be the same in both.
"""

from tasks.convert.formats import ANY_SUFFIXES, any_items
from tasks.convert.readers import Reader
from tasks.convert.readers._conversation import turns
from tasks.convert.readers._preference import pair
from tasks.convert.verdicts import Malformed, a_list, small

RATINGS = ("score_chosen", "score_rejected", "chosen-rating", "rejected-rating", "source")


def convert(item, options, file):
    prompt, chosen = _parted(item, "chosen")
    other, rejected = _parted(item, "rejected")
    if other != prompt:
        raise Malformed("incomplete dialogue", "chosen and rejected answer different prompts")
    return pair(prompt, chosen, rejected, **small(item, *RATINGS))


def _parted(item, key):
    found = turns(a_list(item, key))
    if not found or found[-1].role != "assistant":
        raise Malformed("incomplete dialogue", f"{key} does not end with an answer")
    return found[:-1], found[-1].content


READER = Reader(convert, makes="preference", items=any_items, suffixes=ANY_SUFFIXES)
