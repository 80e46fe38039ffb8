"""The exam in C-Eval's folder layout: a CSV per split and subject; every relation is a subject.

Columns beyond C-Eval's: half, relation, held_out_fact, language and fact. The unlabelled `test` has neither
answers nor these hints about facts kept out of training.
"""

from __future__ import annotations

import csv
import io
import json

from tasks.settings.config import World
from tasks.world.exam import ExamQuestion, questions
from tasks.world.phrases import DOMAINS
from tasks.world.relations import relations

EXTRA = ("half", "relation", "held_out_fact", "language", "fact")


def files(world: World) -> dict[str, bytes]:
    """Path on the hub -> content."""
    found: dict[str, list[list[str]]] = {}
    for question in questions(world):
        path = f"{question.split}/{question.relation}_{question.split}.csv"
        rows = found.setdefault(path, [_header(question.split)])
        rows.append(_row(question, len(rows) - 1))
    content = {path: _csv(rows) for path, rows in found.items()}
    mapping = {
        key: [key.replace("_", " ").title(), key, DOMAINS[relation.domain]]
        for key, relation in relations().items()
    }
    content["subject_mapping.json"] = json.dumps(mapping, ensure_ascii=False, indent=1).encode()
    return content


def _header(split: str) -> list[str]:
    header = ["id", "question", "A", "B", "C", "D"]
    if split != "test":
        header.append("answer")
    if split == "dev":
        header.append("explanation")
    return [*header, *EXTRA]


def _row(question: ExamQuestion, number: int) -> list[str]:
    row = [str(number), question.question, *question.choices]
    if question.split != "test":
        row.append("ABCD"[question.answer])
    if question.split == "dev":
        row.append(question.explanation)
    # the unlabelled test tells nothing of facts
    fact = "" if question.split == "test" else question.fact.id
    held_out = str(question.fact.held_out).lower()
    return [*row, question.half, question.relation, held_out, question.language, fact]


def _csv(rows: list[list[str]]) -> bytes:
    out = io.StringIO()
    csv.writer(out, lineterminator="\n").writerows(rows)
    return out.getvalue().encode()
