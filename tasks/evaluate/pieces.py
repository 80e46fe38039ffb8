"""A long list of questions in pieces: what is answered outlives a kill, and pieces are answered side by side.

A piece is one protocol on some questions of one benchmark, subject by subject (questions of a subject share the
beginning of their prompts). Its answers are a partition (tasks.work.partitions): kept under a key of model, questions,
protocols and code, whole or not at all. How questions are cut does not depend on the number of workers, so the same
node gives the same bytes with any.
"""

from __future__ import annotations

import hashlib
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import orjson

from tasks.evaluate import protocols, scorer
from tasks.evaluate.asking import CONTROL, SHUFFLED, Answer
from tasks.evaluate.benchmarks import Question
from tasks.evaluate.scorer import Task
from tasks.stage.node import Context
from tasks.work import partitions
from tasks.work.told import Teller, with_eta

PIECE = 512
"""Questions of a piece, at most: what a kill may cost."""
GENERATED_PIECE = 64
"""The same where every question is answered by a generated reply."""
FILE, COST = "answers.jsonl", "cost.json"


@dataclass
class Cost:
    """What answering cost when it was done: a piece that was kept from an earlier try counts, too."""

    tokens: int = 0
    """Of all prompts and options, each as often as it was asked."""
    seconds: float = 0.0
    """Of the workers, one after the other."""
    cpu_seconds: float = 0.0


def answers(ctx: Context, task: Task, model: Sequence[str], cost: Cost | None = None) -> list[Answer]:
    """All answers of a task, protocol by protocol. `model`: digests of what is asked; `cost` is added to."""
    return answers_of_each(ctx, [(task, model)], cost)[0]


def answers_of_each(
    ctx: Context, asked: Sequence[tuple[Task, Sequence[str]]], cost: Cost | None = None
) -> list[list[Answer]]:
    """The same of several models, side by side."""
    jobs = [
        [partitions.Job(_key(part, model), piece, (part,), tells=True) for part in split(task)]
        for task, model in asked
    ]
    timed = replace(ctx, progress=with_eta(ctx.progress))
    folders = partitions.run(timed, [job for each in jobs for job in each])
    for folder in folders if cost else ():
        spent = orjson.loads((folder / COST).read_bytes())
        cost.tokens += spent["tokens"]
        cost.seconds += spent["seconds"]
        cost.cpu_seconds += spent["cpu_seconds"]
    whole = iter(folders)
    return [_sorted(task, [next(whole) for _ in each]) for (task, _), each in zip(asked, jobs, strict=True)]


def _sorted(task: Task, folders: Sequence[Path]) -> list[Answer]:
    """As scorer.run would have them."""
    lines = [orjson.loads(line) for folder in folders for line in _lines(folder / FILE)]
    kinds = ("", CONTROL, SHUFFLED)

    def place(line: Answer) -> tuple[int, int]:
        of = line.get("scoring")
        return task.protocols.index(of or line["protocol"]), kinds.index(line["protocol"] if of else "")

    return sorted(lines, key=place)


def split(task: Task) -> Iterator[Task]:
    """The pieces, in the order in which scorer.run would answer them."""
    for name in task.protocols:
        protocol = protocols.of(name)
        size = GENERATED_PIECE if protocol.generates else PIECE
        for some in _cut([q for q in task.questions if protocol.suits(q)], size):
            subjects = {(q.benchmark, q.subject) for q in some}
            examples = {key: shots for key, shots in task.examples.items() if key in subjects}
            yield replace(
                task, questions=some, protocols=(name,), examples=examples if protocol.shots else {}
            )


def piece(out: Path, task: Task) -> None:
    """Answer one piece (in a worker)."""
    cost = Cost()
    began, cpu = time.monotonic(), time.process_time()
    lines = [orjson.dumps(line) for line in scorer.run(task, cost, Teller(out / partitions.TOLD))]
    cost.seconds, cost.cpu_seconds = time.monotonic() - began, time.process_time() - cpu
    (out / COST).write_bytes(orjson.dumps(asdict(cost)))
    (out / FILE).write_bytes(b"".join(line + b"\n" for line in lines))


def _cut(questions: Sequence[Question], size: int) -> Iterator[tuple[Question, ...]]:
    """So many questions of one benchmark at a time, in their order: subject by subject."""
    some: list[Question] = []
    for question in questions:
        if some and (len(some) == size or question.benchmark != some[-1].benchmark):
            yield tuple(some)
            some = []
        some.append(question)
    if some:
        yield tuple(some)


def _key(task: Task, model: Sequence[str]) -> str:
    questions = hashlib.sha256(orjson.dumps([asdict(q) for q in task.questions])).hexdigest()
    shots = [[list(key), [asdict(q) for q in each]] for key, each in sorted(task.examples.items())]
    asked = {
        "protocols": [[name, protocols.of(name).digest] for name in task.protocols],
        "form": task.form,
        "controls": task.controls,
        "shuffles": task.shuffles,
        "prior": task.prior,
        "batch_tokens": task.batch_tokens,
        "seed": task.untrained_seed,
        "shots": hashlib.sha256(orjson.dumps(shots)).hexdigest(),
    }
    return partitions.key(piece, list(model), questions, asked)


def _lines(path: Path) -> Iterator[bytes]:
    with path.open("rb") as lines:
        yield from lines
