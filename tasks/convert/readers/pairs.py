"""Any preference pairs, in TRL's two forms.

    {"prompt": …, "chosen": …, "rejected": …}     strings, or lists of messages
    {"chosen": [messages], "rejected": [messages]}   the prompt is what both begin with

A list for `chosen` may hold the reply alone, or the whole conversation. Strings of the second form are
understood as Anthropic's (`\\n\\nHuman: …\\n\\nAssistant: …`). Options name the columns.
"""

import re

from tasks.convert.formats import TABLE_SUFFIXES, table_items
from tasks.convert.readers import Options, Reader
from tasks.convert.readers._conversation import Turn, as_list, turns
from tasks.convert.readers._preference import pair
from tasks.convert.verdicts import Malformed, field_of, missing, optional, text

MARKED = re.compile(r"\n\n(Human|Assistant):[ \t]?")


class PairsOptions(Options):
    prompt: str = "prompt"
    chosen: str = "chosen"
    rejected: str = "rejected"
    system: str = "system"


def convert(item, options, file):
    before, chosen = _parted(item, options.chosen)
    other, rejected = _parted(item, options.rejected)
    if before != other:
        raise Malformed("incomplete dialogue", "chosen and rejected answer different prompts")
    if before and before[0].role != "assistant":  # a whole conversation
        prompt = before
    else:
        prompt = [*_prompt(item, options.prompt), *before]
    if not prompt:
        raise missing(item, options.prompt)
    if (system := optional(item, options.system)) and prompt[0].role != "system":
        prompt = [Turn("system", system), *prompt]
    return pair(prompt, chosen, rejected)


def _prompt(item, key):
    if _is_list(field_of(item, key)):
        return turns(as_list(item, key))
    asked = optional(item, key)
    return _marked(asked) or [Turn("user", asked)] if asked else []


def _parted(item, key):
    """The turns before the reply, and the reply."""
    value = field_of(item, key)
    if type(value) is dict:
        found = turns([value])
    elif _is_list(value):
        found = turns(as_list(item, key))
    else:
        reply = text(item, key)
        found = _marked(reply) or [Turn("assistant", reply)]
    if not found or found[-1].role != "assistant":
        raise Malformed("incomplete dialogue", f"{key} does not end with an answer")
    return found[:-1], found[-1].content


def _is_list(value):
    """A list of messages, or one as a string of JSON."""
    return type(value) is list or type(value) is str and value.startswith("[{")


def _marked(value):
    """The turns of a string with Anthropic's marks; none if it has no such marks."""
    if not value.startswith("\n\n"):
        return []
    nothing, *parts = MARKED.split(value)
    if nothing or not parts:
        return []
    found = []
    for who, said in zip(parts[::2], parts[1::2], strict=True):
        if said.strip():
            found.append(Turn("user" if who == "Human" else "assistant", said.strip()))
    return found


READER = Reader(convert, makes="preference", items=table_items, suffixes=TABLE_SUFFIXES, options=PairsOptions)
