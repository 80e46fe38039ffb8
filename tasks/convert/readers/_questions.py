"""Shared by the benchmark readers: a row as a question, and which file holds which subject."""

import unicodedata
from pathlib import PurePosixPath
from typing import Literal

from tasks.convert.readers import Options
from tasks.convert.verdicts import Malformed, optional, text

SPLITS = ("dev", "val", "test", "select")
LETTERS = "ABCDEFGHIJ"
"""Two to ten options."""
AROUND = "()[]{}<>.。、:,，; "


class BenchmarkOptions(Options):
    subjects: list[str] = []
    """The subjects wanted; none given: all."""
    split: Literal["dev", "val", "test", "select"] | None = None
    """The split whose scores are reported; not set: the benchmark's custom."""
    first: int = 0
    """The number of the first option, where answers are numbers."""


def place(file):
    """(subject, split) of `…/<split>/<subject>[_<split>].csv` or `<subject>_<split>.csv`, or None."""
    path = PurePosixPath(file)
    split = path.parent.name
    if split in SPLITS:
        return path.stem.removesuffix(f"_{split}"), split
    subject, _, split = path.stem.rpartition("_")
    return (subject, split) if subject and split in SPLITS else None


def question(row, file, options, *, ask="question", reply="answer"):
    """The question of a row; without an answer column (a hidden test split) the answer is null."""
    subject, split = place(file)
    choices = _choices(row)
    answer = None
    if reply in row and not (split == "test" and not row[reply].strip()):
        answer = right(row[reply], choices, options.first)
    return {
        "subject": subject,
        "split": split,
        "question": text(row, ask),
        "choices": choices,
        "answer": answer,
        "meta": {},
    }


def right(said, choices, first=0):
    """The index of the right option: a letter of any width and case, a number, or the text of an option."""
    plain = unicodedata.normalize("NFKC", said).strip()
    letter = plain.upper().strip(AROUND)
    if letter and len(letter) == 1 and letter in LETTERS[: len(choices)]:
        return LETTERS.index(letter)
    by_text = choices.index(said) if choices.count(said) == 1 else None
    if plain.isdecimal():
        by_number = int(plain) - first if 0 <= int(plain) - first < len(choices) else None
        if by_text is not None and by_number is not None and by_text != by_number:
            raise Malformed("bad answer", f"{plain[:40]} is the text of one option and the number of another")
        if by_text is None and by_number is None:
            raise Malformed("bad answer", f"{plain[:40]}: options.first is {first}")
        return by_text if by_number is None else by_number
    if by_text is None:
        raise Malformed("bad answer", plain[:40])
    return by_text


def _choices(row):
    """The options, in the columns A, B, …; those at the end may be empty."""
    found = [optional(row, letter) for letter in LETTERS if letter in row]
    while len(found) > 2 and not found[-1]:
        found.pop()
    for letter, choice in zip(LETTERS, found or ["", ""], strict=False):
        if not choice:
            text(row, letter)  # says what is wrong with it
    if len(found) < 2:
        text(row, LETTERS[1])  # says that there is no such column
        raise Malformed("no choices", f"{len(found)} choices")
    return found
