"""The file that C-Eval's authors score: `{"subject": {"0": "A", …}, …}` for the split whose labels they keep.

It is written when all is there, and never otherwise: 52 subjects, 12,342 answers.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import orjson

from tasks.evaluate import benchmarks, protocols, subjects
from tasks.evaluate.benchmarks import Question
from tasks.evaluate.wording import LETTERS
from tasks.settings.errors import NodeError

SPLIT = "test"


def questions(folder: Path, name: str, family: str) -> list[Question]:
    """All questions of the split; NodeError where some are missing, before a model is asked."""
    found = [q for q in benchmarks.read(folder, name, family) if q.split == SPLIT]
    complaint = _complaint(
        {s: [q.number for q in found if q.subject == s] for s in {q.subject for q in found}}
    )
    if complaint:
        raise NodeError(
            f"no submission for {name}: {complaint}. Its files are test/<subject>_test.csv; the source has to take them "
            "(files or unpack) and to name no subjects"
        )
    return found


def protocol(listed: Iterable[str]) -> str:
    """The protocol whose answers are submitted: the first listed one that picks a letter."""
    for name in listed:
        if protocols.of(name).asks == "letters":
            return name
    raise NodeError("evaluate.submissions needs a protocol that picks a letter, such as official-5shot")


def write(out: Path, name: str, asked: Iterable[Question], answers: Iterable[Mapping[str, Any]]) -> str:
    """Write submission-<name>.json, validated; its name."""
    picked = {answer["id"]: answer["answer"] for answer in answers}
    table: dict[str, dict[str, str]] = {}
    for question in asked:
        table.setdefault(question.subject, {})[question.number] = LETTERS[picked[question.id]]
    validate(table)
    file = f"submission-{name}.json"
    (out / file).write_bytes(orjson.dumps(table, option=orjson.OPT_INDENT_2) + b"\n")
    return file


def validate(table: Mapping[str, Mapping[str, str]]) -> int:
    """The number of answers. NodeError for anything that the server would refuse or score as wrong."""
    if complaint := _complaint({subject: list(answers) for subject, answers in table.items()}):
        raise NodeError(f"this is no C-Eval submission: {complaint}")
    for subject, answers in table.items():
        for number, letter in answers.items():
            if letter not in ("A", "B", "C", "D"):
                raise NodeError(f"this is no C-Eval submission: {subject} {number} is answered {letter!r}")
    return sum(map(len, table.values()))


def _complaint(numbers: Mapping[str, Sequence[str]]) -> str:
    """What is wrong with subject -> numbers of its questions, in a few words."""
    expected: dict[str, int] = subjects.table("ceval")["test"]
    if missing := sorted(set(expected) - set(numbers)):
        return f"{len(missing)} of {len(expected)} subjects are missing ({', '.join(missing[:3])}, …)"
    if unknown := sorted(set(numbers) - set(expected)):
        return f"{unknown[0]} is no subject of C-Eval"
    for subject, n in expected.items():
        if sorted(numbers[subject]) != sorted(map(str, range(n))):
            return f"{subject} has {len(numbers[subject])} answers, and not one each for 0 to {n - 1}"
    return ""
