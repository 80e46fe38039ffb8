"""The questions of a benchmark: which split is asked, and under which name the answers are reported."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tasks.settings.config import Source
from tasks.settings.errors import NodeError

REPORTED_SPLIT = {"ceval": "val", "cmmlu": "test", "mmlu": "test"}
"""By reader. C-Eval keeps the labels of its test split to itself; CMMLU has no val split."""

SELECTION_SPLITS = ("select", "val", "dev")
"""Where a choice between models may look: the first of these that is labelled and is not reported."""


@dataclass(frozen=True)
class Question:
    """One multiple-choice question, as the convert stage writes it."""

    id: str
    benchmark: str
    subject: str
    split: str
    language: str
    question: str
    choices: tuple[str, ...]
    answer: int | None
    half: str = ""
    held_out_fact: bool = False

    @property
    def row(self) -> str:
        """The benchmark's name in tables: the demo's two halves and its untrained facts stand apart."""
        if self.held_out_fact:
            return "demo-held-out-facts"
        return f"demo-{self.half}" if self.half else self.benchmark


def read(folder: Path, name: str) -> Iterator[Question]:
    """All questions of a converted benchmark, under the name of its source."""
    import orjson

    path = folder / "questions.jsonl"
    if not path.exists():
        raise NodeError(f"benchmark {name}: {path} is missing")
    with path.open("rb") as lines:
        for line in lines:
            raw: dict[str, Any] = orjson.loads(line)
            meta = raw.get("meta") or {}
            yield Question(
                id=raw["id"],
                benchmark=name,
                subject=raw["subject"],
                split=raw["split"],
                language=raw["language"],
                question=raw["question"],
                choices=tuple(raw["choices"]),
                answer=raw["answer"],
                half=meta.get("half") or "",
                held_out_fact=bool(meta.get("held_out_fact")),
            )


def reported_split(source: Source) -> str:
    """The split whose scores are published: the source's option `split`, or the reader's custom."""
    return source.options.get("split") or REPORTED_SPLIT.get(source.reader, "test")


def reported(folder: Path, name: str, split: str, limit: int | None = None) -> list[Question]:
    """The labelled questions of the reported split; a split without labels is refused, not scored as 0."""
    questions = [q for q in read(folder, name) if q.split == split]
    if not questions:
        raise NodeError(f"benchmark {name} has no questions in its split {split!r}")
    unlabelled = sum(q.answer is None for q in questions)
    if unlabelled:
        raise NodeError(
            f"benchmark {name}: {unlabelled} of {len(questions)} {split} questions carry no answer"
        )
    return _limited(questions, limit)


def selection(folder: Path, name: str, split: str, limit: int | None = None) -> list[Question]:
    """Labelled questions to choose a model by, never from the reported split."""
    by_split: dict[str, list[Question]] = {}
    for question in read(folder, name):
        if question.split != split and question.answer is not None and not question.held_out_fact:
            by_split.setdefault(question.split, []).append(question)
    for candidate in SELECTION_SPLITS:
        if candidate in by_split:
            return _limited(by_split[candidate], limit)
    raise NodeError(f"benchmark {name} has no labelled split beside {split!r} to choose a variant by")


def _limited(questions: list[Question], limit: int | None) -> list[Question]:
    """At most so many questions of each reported row, drawn by the hash of their ids."""
    if limit is None:
        return questions
    rows: dict[str, list[int]] = {}
    for position, question in enumerate(questions):
        rows.setdefault(question.row, []).append(position)
    kept = []
    for positions in rows.values():
        positions.sort(key=lambda p: hashlib.blake2b(questions[p].id.encode(), digest_size=8).digest())
        kept += positions[:limit]
    return [questions[p] for p in sorted(kept)]
