"""Asking one model a list of questions. Runs in a worker process; torch is imported here, not above."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Any

from tasks.evaluate import protocols
from tasks.evaluate.asking import Answer, Asker, Examples
from tasks.evaluate.benchmarks import Question
from tasks.evaluate.protocols import Form, Protocol
from tasks.settings.errors import NodeError
from tasks.work.told import Progress

CPU_BATCH_TOKENS = 4096
"""More only leaves the caches."""


@dataclass(frozen=True)
class Task:
    """What is asked of whom: picklable, so that it can cross into a worker."""

    export: Path
    tokenizer: Path | None
    """None: the model is any by path, with its own tokenizer and chat template."""
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


def run(task: Task, cost: Any = None, tell: Progress | None = None) -> list[Answer]:
    """Load the model, ask everything, hand back one answer per question, protocol and control.

    `cost.tokens` gets the tokens that were asked. `tell` gets how far it is, in thousandths.
    """
    asker = opened(task)
    if tell is not None:
        passes = sum(_passes(task, protocols.of(name)) for name in task.protocols)
        asker.tell = lambda made: tell(round(1000 * made / passes), 1000)
    answers: list[Answer] = []
    for name in task.protocols:
        protocol = protocols.of(name)
        answers += asked(asker, protocol, [q for q in task.questions if protocol.suits(q)], task)
    if cost is not None:
        cost.tokens = asker.tokens
    return answers


def opened(task: Task) -> Asker:
    """The model of a task, ready to be asked; one is kept a process."""
    model, encoder, tokenizer, batch_tokens = _opened(
        task.export, task.tokenizer, task.device, task.batch_tokens, task.untrained_seed
    )
    return Asker(
        model,
        encoder,
        tokenizer=tokenizer,
        form=task.form,
        batch_tokens=batch_tokens,
        examples=task.examples,
    )


@lru_cache(maxsize=1)
def _opened(
    export: Path, tokenizer: Path | None, wanted: str, batch_tokens: int, seed: int | None
) -> tuple[Any, Any, Any, int]:
    """(model, text to ids, ids to text, tokens of a batch)."""
    import torch

    from model import scoring
    from model.by_path import ModelError, open_model
    from model.tokenizer import TextTokenizer
    from tasks.tokenize.encode import shared_encoder

    device = _of_this_worker(scoring.resolve_device(wanted))
    if device == "cpu":
        torch.set_num_threads(1)  # the workers share the cores, and the bytes depend on the thread count
        batch_tokens = min(batch_tokens, CPU_BATCH_TOKENS)
    if tokenizer is None:
        try:
            opened = open_model(export, device)
        except ModelError as error:
            raise NodeError(str(error)) from error
        return opened.model, opened.tokenizer, opened.tokenizer, batch_tokens
    if seed is None:
        model: Any = scoring.load(export, device)
    else:
        model = scoring.untrained(export, seed, device)
    return model, shared_encoder(str(tokenizer)), TextTokenizer.open(tokenizer), batch_tokens


def _of_this_worker(device: str) -> str:
    """Each worker process has a GPU of its own, as far as there are so many."""
    if device != "cuda":
        return device
    import multiprocessing

    import torch

    number = (multiprocessing.current_process()._identity or (1,))[0] - 1
    return f"cuda:{number % torch.cuda.device_count()}"


def _passes(task: Task, protocol: Protocol) -> int:
    """How often `asked` goes through the questions with the model."""
    once = 2 if protocol.asks == "choice reply" else 1
    more = 0 if protocol.generates else task.controls + (task.prior and not protocol.shows_options)
    return once * (1 + (task.shuffles if protocol.shows_options else 0)) + more


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
