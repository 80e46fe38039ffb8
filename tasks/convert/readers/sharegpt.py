"""ShareGPT's form: `{"conversations": [{"from", "value"}]}`, or `{"messages": [{"role", "content"}]}`."""

from tasks.convert.formats import ANY_SUFFIXES, any_items
from tasks.convert.readers import Reader
from tasks.convert.readers._conversation import conversation, whole
from tasks.convert.verdicts import dialogue


def convert(item, options, file):
    return dialogue(*whole(conversation(item)))


READER = Reader(convert, makes="sft", items=any_items, suffixes=ANY_SUFFIXES)
