"""The questions of a benchmark: which split is asked, and under which name the answers are reported."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tasks.settings.config import Source
from tasks.settings.errors import NodeError

REPORTED_SPLIT = {"ceval": "val", "cmmlu": "test", "mmlu": "test", "arithmetic": "test"}
"""By reader. C-Eval keeps the labels of its test split to itself; CMMLU has no val split."""

OPEN_READERS = ("arithmetic",)
"""Readers of benchmarks without options: their questions are answered in the model's own words."""

SELECTION_SPLITS = ("select", "val", "dev")
"""Where a choice between models may look: the first of these that is labelled and is not reported."""

SHOTS_SPLIT = "dev"
"""Examples for few-shot prompts, five a subject in C-Eval, CMMLU and MMLU."""


@dataclass(frozen=True)
class Question:
    """One question, as the convert stage writes it."""

    id: str
    benchmark: str
    subject: str
    split: str
    language: str
    question: str
    choices: tuple[str, ...]
    """Two to ten options; none for an open question."""
    answer: int | None
    """Index of the right option."""
    half: str = ""
    held_out_fact: bool = False
    family: str = "ceval"
    """The reader: whose own prompts and subjects the benchmark has."""
    target: str = ""
    """The right answer to an open question."""
    number: str = ""
    """What the question is called in its file; a submission names it so."""

    @property
    def row(self) -> str:
        """The benchmark's name in tables: the demo's two halves and its untrained facts stand apart."""
        if self.held_out_fact:
            return "demo-held-out-facts"
        return f"demo-{self.half}" if self.half else self.benchmark

    @property
    def labelled(self) -> bool:
        """Whether the right answer is known."""
        return self.answer is not None or bool(self.target)


def read(folder: Path, name: str, family: str = "ceval") -> Iterator[Question]:
    """All questions of a converted benchmark, under the name of its source; `family` is its reader."""
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
                family=family,
                target=raw.get("target") or "",
                number=str(meta.get("id") or ""),
            )


def reported_split(source: Source) -> str:
    """The split whose scores are published: the source's option `split`, or the reader's custom."""
    return source.options.get("split") or REPORTED_SPLIT.get(source.reader, "test")


def reported(
    folder: Path, name: str, split: str, limit: int | None = None, family: str = "ceval"
) -> list[Question]:
    """The labelled questions of the reported split; a split without labels is refused, not scored as 0."""
    questions = [q for q in read(folder, name, family) if q.split == split]
    if not questions:
        raise NodeError(f"benchmark {name} has no questions in its split {split!r}")
    unlabelled = sum(not q.labelled for q in questions)
    if unlabelled:
        raise NodeError(
            f"benchmark {name}: {unlabelled} of {len(questions)} {split} questions carry no answer"
        )
    return limited(questions, limit)


def selection(
    folder: Path, name: str, split: str, limit: int | None = None, family: str = "ceval"
) -> list[Question]:
    """Labelled questions to choose a model by, never from the reported split."""
    by_split: dict[str, list[Question]] = {}
    for question in read(folder, name, family):
        if question.split != split and question.labelled and not question.held_out_fact:
            by_split.setdefault(question.split, []).append(question)
    for candidate in SELECTION_SPLITS:
        if candidate in by_split:
            return limited(by_split[candidate], limit)
    raise NodeError(f"benchmark {name} has no labelled split beside {split!r} to choose a variant by")


def shots(folder: Path, name: str, split: str, family: str = "ceval") -> dict[str, list[Question]]:
    """Subject -> its labelled examples, in the order of the file; none where `dev` itself is reported."""
    by_subject: dict[str, list[Question]] = {}
    for question in read(folder, name, family):
        if question.split == SHOTS_SPLIT != split and question.labelled:
            by_subject.setdefault(question.subject, []).append(question)
    return by_subject


def limited(questions: list[Question], limit: int | None) -> list[Question]:
    """At most so many questions of each subject of each reported row, drawn by the hash of their ids."""
    if limit is None:
        return questions
    groups: dict[tuple[str, str], list[int]] = {}
    for position, question in enumerate(questions):
        groups.setdefault((question.row, question.subject), []).append(position)
    kept = []
    for positions in groups.values():
        positions.sort(key=lambda p: hashlib.blake2b(questions[p].id.encode(), digest_size=8).digest())
        kept += positions[:limit]
    return [questions[p] for p in sorted(kept)]


def families(questions: Iterable[Question]) -> Mapping[str, str]:
    """Reported row -> the family of its questions."""
    return {question.row: question.family for question in questions}


def chances(questions: Iterable[Question]) -> dict[str, float]:
    """Reported row -> share of right answers by guessing: the mean of one by the number of options."""
    found: dict[str, list[float]] = {}
    for question in questions:
        found.setdefault(question.row, []).append(1 / len(question.choices) if question.choices else 0.0)
    return {row: sum(each) / len(each) for row, each in found.items()}
