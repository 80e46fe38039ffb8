"""BELLE train_3.5M_CN: JSON lines `{"id", "conversations": [{"from": human|assistant, "value"}]}`."""

from tasks.convert.readers import Reader
from tasks.convert.readers._conversation import as_list, turns, whole
from tasks.convert.verdicts import dialogue, small


def convert(item, options, file):
    return dialogue(*whole(turns(as_list(item, "conversations"))), **small(item, "id"))


READER = Reader(convert, makes="sft")
