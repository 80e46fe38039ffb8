"""Asking one model a list of questions. Runs in a worker process; torch is imported here, not above."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tasks.evaluate import protocols
from tasks.evaluate.asking import Answer, Asker, Examples
from tasks.evaluate.benchmarks import Question
from tasks.evaluate.protocols import Form, Protocol

CPU_BATCH_TOKENS = 4096
"""More only leaves the caches."""


@dataclass(frozen=True)
class Task:
    """What is asked of whom: picklable, so that it can cross into a worker."""

    export: Path
    tokenizer: Path
    questions: tuple[Question, ...]
    protocols: tuple[str, ...]
    form: Form
    controls: bool
    batch_tokens: int
    device: str
    untrained_seed: int | None = None
    """Set: the export's geometry with weights drawn from this seed, instead of its weights."""
    examples: Examples = field(default_factory=dict)
    """Of the subjects, for few-shot prompts."""
    shuffles: int = 0
    """Other orders of the options in which they are asked, too."""
    prior: bool = False
    """Cloze is also read per byte and against the neutral question."""


def run(task: Task) -> list[Answer]:
    """Load the model, ask everything, hand back one answer per question, protocol and control."""
    asker = opened(task)
    answers: list[Answer] = []
    for name in task.protocols:
        protocol = protocols.of(name)
        answers += asked(asker, protocol, [q for q in task.questions if protocol.suits(q)], task)
    return answers


def opened(task: Task) -> Asker:
    """The model of a task, ready to be asked."""
    import torch

    from model import scoring
    from model.tokenizer import TextTokenizer
    from tasks.tokenize.encode import shared_encoder

    device = scoring.resolve_device(task.device)
    batch_tokens = task.batch_tokens
    if device == "cpu":
        torch.set_num_threads(1)  # the workers share the cores, and the bytes depend on the thread count
        batch_tokens = min(batch_tokens, CPU_BATCH_TOKENS)
    if task.untrained_seed is None:
        model: Any = scoring.load(task.export, device)
    else:
        model = scoring.untrained(task.export, task.untrained_seed, device)
    return Asker(
        model,
        shared_encoder(str(task.tokenizer)),
        tokenizer=TextTokenizer.open(task.tokenizer),
        form=task.form,
        batch_tokens=batch_tokens,
        examples=task.examples,
    )


def asked(asker: Asker, protocol: Protocol, questions: Sequence[Question], task: Task) -> list[Answer]:
    """The answers of one protocol, and of its controls."""
    if not questions:
        return []
    answers = asker.ask(protocol, questions, prior=task.prior)
    if task.controls and not protocol.generates:
        answers += asker.ask_blank(protocol, questions)
    if protocol.shows_options:
        for turn in range(task.shuffles):
            answers += asker.ask_shuffled(protocol, questions, turn)
    return answers
