"""ShareGPT's form: `{"conversations": [{"from", "value"}]}`, or `{"messages": [{"role", "content"}]}`."""

from tasks.convert.formats import ANY_SUFFIXES, any_items
from tasks.convert.readers import Reader
from tasks.convert.readers._conversation import turns, whole
from tasks.convert.verdicts import a_list, dialogue, optional


def convert(item, options, file):
    if "messages" in item and "conversations" not in item:
        found = turns(a_list(item, "messages"), "role", "content")
    else:
        found = turns(a_list(item, "conversations"))
    if system := optional(item, "system"):
        found.insert(0, ("system", system))
    return dialogue(*whole(found))


READER = Reader(convert, makes="sft", items=any_items, suffixes=ANY_SUFFIXES)
