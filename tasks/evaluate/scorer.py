"""Asking one model a list of questions. Runs in a worker process; torch is imported here, not above."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tasks.evaluate import protocols
from tasks.evaluate.benchmarks import Question
from tasks.evaluate.protocols import Form
from tasks.settings.errors import NodeError
from tasks.tokenize.chat import TextEncoder

CONTROL = "options-only"
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
    tell: Callable[[float, str], None] | None = None
    """Gets the share of the passes that are done, and the one that begins."""
    untrained_seed: int | None = None
    """Set: the export's geometry with weights drawn from this seed, instead of its weights."""


def run(task: Task) -> list[dict[str, Any]]:
    """Load the model, ask everything, hand back one answer per question, protocol and control."""
    import torch

    from model import scoring
    from tasks.tokenize.encode import shared_encoder

    device = scoring.resolve_device(task.device)
    batch_tokens = task.batch_tokens
    if device == "cpu":
        torch.set_num_threads(1)  # the workers share the cores, and the bytes depend on the thread count
        batch_tokens = min(batch_tokens, CPU_BATCH_TOKENS)
    encoder = shared_encoder(str(task.tokenizer))
    if task.untrained_seed is None:
        model = scoring.load(task.export, device)
    else:
        model = scoring.untrained(task.export, task.untrained_seed, device)
    answers = []
    blanks = (False, True) if task.controls else (False,)
    passes = len(task.protocols) * len(blanks)
    for at, protocol in enumerate(task.protocols):
        for blank in blanks:
            if task.tell is not None:
                what = f"{protocol}, {CONTROL}" if blank else protocol
                task.tell((at * len(blanks) + blank) / passes, f"{len(task.questions):,} questions, {what}")
            cuts: list[int] = []
            scores = ask(model, encoder, task.questions, protocol, task.form, blank, batch_tokens, cuts)
            answers += [
                answer(question, each, protocol, task.form, blank, cut)
                for question, each, cut in zip(task.questions, scores, cuts, strict=True)
            ]
    return answers


def ask(
    model: Any,
    encoder: TextEncoder,
    questions: Sequence[Question],
    protocol: str,
    form: Form,
    blank: bool = False,
    batch_tokens: int = 16384,
    cuts: list[int] | None = None,
) -> list[list[float]]:
    """One score per option of each question; the highest is the model's answer.

    A prompt that is longer than the model's context loses its beginning; `cuts` gets the number of tokens that
    each question lost.
    """
    from model import scoring

    if protocol == "cloze":
        prompts, options = protocols.cloze(encoder, questions, form, blank)
        room = [max(1, _context(model) - max(map(len, o))) for o in options]
        prompts = _fitting(prompts, room, cuts)
        scores = scoring.choice_logprobs(model, prompts, options, batch_tokens)
        return [[total / tokens for total, tokens in each] for each in scores]
    if protocol == "paper-first-token":
        prompts = protocols.lettered(encoder, questions, blank)
        prompts = _fitting(prompts, [_context(model)] * len(prompts), cuts)
        return scoring.first_token_logprobs(model, prompts, protocols.letter_ids(encoder), batch_tokens)
    raise NodeError(f"unknown protocol {protocol!r}")


def _fitting(prompts: Sequence[list[int]], room: Sequence[int], cuts: list[int] | None) -> list[list[int]]:
    """The ends of the prompts that fit; what each loses is added to `cuts`."""
    if cuts is not None:
        cuts += [max(0, len(prompt) - most) for prompt, most in zip(prompts, room, strict=True)]
    return [prompt[-most:] for prompt, most in zip(prompts, room, strict=True)]


def answer(
    question: Question, scores: list[float], protocol: str, form: Form, blank: bool, cut: int = 0
) -> dict[str, Any]:
    """The line of answers.jsonl. A tie goes to the first option. `cut`: tokens that the prompt lost."""
    if any(s != s for s in scores):
        raise NodeError(f"the model gives no number (NaN) for question {question.id}")
    best = scores.index(max(scores))
    line = {
        "id": question.id,
        "benchmark": question.row,
        "subject": question.subject,
        "protocol": CONTROL if blank else protocol,
        "form": "chat" if protocol != "cloze" else form,
        "answer": best,
        "correct": best == question.answer,
        "scores": [round(s, 6) for s in scores],
    }
    if blank:
        line["scoring"] = protocol
    if cut:
        line["prompt_tokens_cut"] = cut
    return line


def _context(model: Any) -> int:
    """Tokens the model can see; a longer prompt loses its beginning."""
    return getattr(model.config, "max_position_embeddings", None) or 1 << 30
