"""Firefly: JSON lines `{"kind", "input", "target"}`; `kind` is one of 23 tasks."""

from tasks.convert.readers import Reader
from tasks.convert.verdicts import dialogue, small, text


def convert(item, options, file):
    return dialogue(("user", text(item, "input")), ("assistant", text(item, "target")), **small(item, "kind"))


READER = Reader(convert, makes="sft")
