"""Prompts of reinforcement learning: questions with one right answer each, and how often the start model gives it.

A record's last reply is the right answer. One that its reward cannot grade, a prompt that is too long and a prompt that
was there before are left out, each counted. Of the others some are held out by the hash of their prompt; the rest are
sampled with the start model, and those are kept whose share of right replies lies in a range: what is never answered
rightly is never rewarded, and what always is has nothing to learn.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypedDict

from model.rewards import REWARDS, Reply
from tasks.records.record import Dialogue, Message
from tasks.settings.errors import NodeError
from tasks.tokenize.chat import Refused, TextEncoder, render_chat
from tasks.training import mixtures
from tasks.training.mixtures import Taken, key
from tasks.work.told import Jobs, Progress

JOB = 64
"""Prompts that one worker samples at a time."""


@dataclass(frozen=True)
class Work(mixtures.Work):
    """What to build prompts from; picklable."""

    rewards: dict[str, str]
    """Data set -> its reward."""
    asked_by: str
    held_out: int


class Line(TypedDict):
    """A prompt as tokens, with its answer."""

    id: str
    set: str
    language: str
    about: str
    """What it asks about; "" where that is not known."""
    prompt: list[int]
    """Open for the reply."""
    answer: str
    """In the normal form of its reward."""
    reward: str


class Question(Line):
    """A prompt with the dialogue that it was made of."""

    messages: list[Message]
    """The last one is the right answer as the data have it."""


@dataclass(frozen=True)
class Asking:
    """How a model is sampled; picklable."""

    export: Path
    tokenizer: Path
    device: str
    max_new_tokens: int
    group: int = 1
    """Replies to a prompt."""
    seed: int | None = None
    """None: greedy."""


def prepare(work: Work) -> tuple[list[Question], list[Question], dict[str, Any]]:
    """(to choose from, held out, counts). NodeError where rl.held_out leaves nothing to choose from."""
    from tasks.tokenize.encode import shared_encoder

    encoder = shared_encoder(str(work.tokenizer))
    sets: list[Taken[Dialogue]] = work.taken()
    lines, counts = tokenized(sets, encoder, work)
    if work.held_out and work.held_out >= len(lines):
        raise NodeError(
            f"rl.held_out is {work.held_out:,}, and there are {len(lines):,} prompts: none is left to train on "
            f"({counts['records']:,} records, {counts['ungradable']:,} with an answer that its reward cannot grade, "
            f"{counts['prompt_too_long']:,} too long, {counts['repeated']:,} repeated)"
        )
    order = sorted(lines, key=lambda line: key(work.seed, "held-out", *map(str, line["prompt"])))
    held = {line["id"] for line in order[: work.held_out]}
    counts["sets"] = {s.name: dict(s.counts) for s in sets}
    counts["held_out"] = len(held)
    return [x for x in lines if x["id"] not in held], [x for x in lines if x["id"] in held], counts


def tokenized(
    sets: Sequence[Taken[Dialogue]], encoder: TextEncoder, work: Work
) -> tuple[list[Question], dict[str, Any]]:
    """One line a prompt, and the counts of records that were left out."""
    counts: dict[str, Any] = dict.fromkeys(
        ("records", "ungradable", "template", "prompt_too_long", "repeated"), 0
    )
    lines: list[Question] = []
    seen: set[tuple[int, ...]] = set()
    for taken in sets:
        reward = work.rewards[taken.name]
        for record, _ in taken:
            counts["records"] += 1
            *before, last = record["messages"]
            answer = REWARDS[reward].gold(last["content"]) if last["role"] == "assistant" and before else None
            if answer is None:
                counts["ungradable"] += 1
                continue
            try:
                prompt, _ = render_chat(encoder, before, generation_prompt=True)
            except Refused as why:
                counts["template"] += 1
                taken.refuse(why)
                continue
            if len(prompt) > work.max_tokens:
                counts["prompt_too_long"] += 1
                continue
            if tuple(prompt) in seen:
                counts["repeated"] += 1
                continue
            seen.add(tuple(prompt))
            about = subject(record["meta"], work.asked_by)
            lines.append(
                Question(
                    id=record["id"], set=taken.name, language=record["language"], about=about, prompt=prompt,
                    answer=answer, reward=reward, messages=record["messages"],
                )
            )  # fmt: skip
    return lines, counts


def subject(meta: Mapping[str, Any], asked_by: str) -> str:
    """What a question is about by that field of its meta; "" where nothing is said."""
    named = meta.get(asked_by) if asked_by else None
    return "" if named is None else str(named)


def replies(
    asking: Asking, prompts: Sequence[Sequence[int]], first: int = 0, tell: Progress | None = None
) -> list[list[Reply]]:
    """[prompt][reply]. Runs in a worker. `first`: the number of the first prompt; `tell` gets how many have their replies."""
    import torch

    from model import scoring
    from model.sampling import graded, sample
    from model.tokenizer import TextTokenizer

    device = scoring.resolve_device(asking.device)
    if device == "cpu":
        torch.set_num_threads(1)
    model = scoring.load(asking.export, device)
    tokenizer = TextTokenizer.open(asking.tokenizer)
    drawn = asking.seed is not None
    found = sample(
        model, prompts, stops=tokenizer.stops, group=asking.group, limit=asking.max_new_tokens,
        temperature=1.0 if drawn else 0.0,
        seeds=[key(asking.seed, "sample", str(first + i)) >> 1 for i in range(len(prompts))] if drawn else (),
        progress=tell,
    )  # fmt: skip
    return [[graded(tokenizer, each) for each in group] for group in found]


def answered(asking: Asking, lines: Sequence[Line], progress: Progress | None = None) -> list[list[Reply]]:
    """The same for all lines, in the workers of the pool."""
    return begin(asking, lines)(progress)


def begin(asking: Asking, lines: Sequence[Line]) -> Callable[[Progress | None], list[list[Reply]]]:
    """Begin to ask in the workers of the pool; what is returned waits for the replies."""
    jobs, parts = Jobs(), []
    # neighbours of one length share a batch
    order = sorted(range(len(lines)), key=lambda i: (len(lines[i]["prompt"]), i))
    share = max(JOB, -(-len(lines) // 4))
    for start in range(0, len(order), share):
        parts.append(part := order[start : start + share])
        jobs.submit(len(part), replies, asking, [lines[i]["prompt"] for i in part], start)

    def wait(progress: Progress | None) -> list[list[Reply]]:
        found: list[list[Reply]] = [[] for _ in lines]
        for part, result in zip(parts, jobs.results(progress), strict=True):
            for i, group in zip(part, result, strict=True):
                found[i] = group
        return found

    return wait


def right(line: Line, reply: Reply) -> bool:
    """Whether a reply earns the line's reward."""
    return REWARDS[line["reward"]](reply, line["answer"]) > 0


def passes(lines: Sequence[Line], found: Sequence[Sequence[Reply]]) -> list[int]:
    """How many replies to each prompt are right."""
    return [sum(right(line, reply) for reply in group) for line, group in zip(lines, found, strict=True)]


def chosen(
    lines: Sequence[Line], right_replies: Sequence[int], samples: int, pass_rate: tuple[float, float]
) -> list[Line]:
    """The prompts whose share of right replies lies in the range, ends included."""
    low, high = pass_rate
    return [
        line for line, n in zip(lines, right_replies, strict=True) if low - 1e-9 <= n / samples <= high + 1e-9
    ]


def histogram(right_replies: Sequence[int], samples: int) -> list[int]:
    """[0 … samples]: prompts with so many right replies."""
    counted = Counter(right_replies)
    return [counted[n] for n in range(samples + 1)]
