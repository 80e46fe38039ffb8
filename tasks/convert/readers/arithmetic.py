"""Arithmetic in words (GSM8K): `{"question", "answer": "… #### 72"}`, or `instruction` in place of question and a number
as the answer. There are no options: the answer is a number, which a reply has to give.

Files are `…/test.jsonl`, `<subject>_test.json` and the like; those of the split train are no benchmark.
"""

import re
from pathlib import PurePosixPath
from typing import Literal

from tasks.convert.formats import TABLE_SUFFIXES, table_items
from tasks.convert.readers import Options, Reader
from tasks.convert.verdicts import Malformed, text

PLACE = re.compile(r"(?:(?P<subject>.+)[_-])?(?P<split>dev|val|test|select)(?:-\d+-of-\d+)?")
NUMBER = re.compile(r"[-+]?\d[\d,]*(?:\.\d+)?(?:/\d+)?")


class ArithmeticOptions(Options):
    subjects: list[str] = []
    """The subjects wanted; none given: all."""
    split: Literal["dev", "val", "test", "select"] | None = None
    """The split whose scores are reported; not set: test."""


def place(file):
    """(subject, split) of a file, or None; a file that names no subject has that of its folder."""
    path = PurePosixPath(file)
    found = PLACE.fullmatch(path.name.split(".")[0])
    if not found:
        return None
    return found["subject"] or path.parent.name or "arithmetic", found["split"]


def convert(item, options, file):
    subject, split = place(file)
    asked = text(item, "question" if "question" in item else "instruction")
    said = text(item, "answer").rpartition("####")[2].strip().lstrip("$")
    if not NUMBER.fullmatch(said):
        raise Malformed("bad answer", said[:40])
    return {
        "subject": subject,
        "split": split,
        "question": asked,
        "choices": [],
        "answer": None,
        "target": said,
        "meta": {},
    }


READER = Reader(
    convert,
    makes="benchmark",
    items=table_items,
    suffixes=TABLE_SUFFIXES,
    options=ArithmeticOptions,
    place=place,
)
