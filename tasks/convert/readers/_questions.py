"""Shared by the benchmark readers: a CSV row as a question, and which file holds which subject."""

from pathlib import PurePosixPath

from tasks.convert.readers import Options
from tasks.convert.verdicts import Malformed, text

SPLITS = ("dev", "val", "test", "select")
LETTERS = "ABCD"


class BenchmarkOptions(Options):
    subjects: list[str] = []
    """The subjects wanted; none given: all."""


def place(file):
    """(subject, split) of `…/<split>/<subject>[_<split>].csv`, or None."""
    path = PurePosixPath(file)
    split = path.parent.name
    if split not in SPLITS:
        return None
    return path.stem.removesuffix(f"_{split}"), split


def question(row, file, *, ask="question", reply="answer"):
    """The question of a row; without an answer column (a hidden test split) the answer is null."""
    subject, split = place(file)
    choices = [text(row, letter) for letter in LETTERS]
    answer = None
    if reply in row and not (split == "test" and not row[reply].strip()):
        letter = row[reply].strip().upper()
        if len(letter) != 1 or letter not in LETTERS:
            raise Malformed("bad answer", letter[:40])
        answer = LETTERS.index(letter)
    return {
        "subject": subject,
        "split": split,
        "question": text(row, ask),
        "choices": choices,
        "answer": answer,
        "meta": {},
    }
