"""BELLE train_2M_CN: JSON lines `{"instruction", "input", "output"}`."""

from tasks.convert.readers import Reader
from tasks.convert.readers._instruction import exchange


def convert(item, options, file):
    return exchange(item)


READER = Reader(convert, makes="sft")
