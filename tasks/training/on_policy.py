"""Preference pairs that the start model makes itself: `dpo:on_policy`.

The model is asked questions with one right answer a few times. Where it errs, its commonest wrong reply is rejected and
the right answer is chosen (set `on-policy`). For a share of the questions the right answer is also set against the
answer of another question (set `keep`): without such pairs training unlearns answers, because replies of another form
move the first token of every reply. Graded exactly, by model/rewards.py.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Iterator, Sequence
from typing import Any

import orjson

from model.rewards import Reply
from tasks.settings.config import RlSet, Section
from tasks.stage.node import Context, Outcome
from tasks.tokenize.chat import IM_END, TextEncoder
from tasks.training import select as selection
from tasks.training.mixtures import key
from tasks.training.pairs import PairLine
from tasks.training.prompts import Line, right
from tasks.work import pool

ON_POLICY, KEEP = "on-policy", "keep"
SETS = (ON_POLICY, KEEP)
"""Names of the pairs' sets; sources cannot have them (they have no dashes)."""


class Recipe(Section):
    """What decides the pairs, beside the records and the chosen variant."""

    mixture: dict[str, RlSet]
    samples: int
    max_new_tokens: int
    keep_share: float
    alike: str
    max_tokens: int


def make(ctx: Context) -> Outcome:
    """Ask the chosen variant, grade, and write pairs.jsonl."""
    from tasks.training import mixtures, prompts

    recipe: Recipe = ctx.config
    start = selection.chosen(ctx.inputs)
    tokenizer = ctx.inputs["tokenizer"].path
    work = prompts.Work(
        tokenizer=tokenizer,
        sets=mixtures.of_mixture({name: each.share for name, each in recipe.mixture.items()}, ctx.inputs),
        seed=ctx.seed,
        max_tokens=recipe.max_tokens - recipe.max_new_tokens,
        rewards={name: each.reward for name, each in recipe.mixture.items()},
        asked_by=recipe.alike,
        held_out=0,
    )
    lines, _, counts = pool.submit(prompts.prepare, work).result()
    ctx.progress(0.1, f"{len(lines)} prompts, {recipe.samples} replies each")
    asking = prompts.Asking(
        export=start.path / "export",
        tokenizer=tokenizer,
        device=ctx.runtime.device,
        max_new_tokens=recipe.max_new_tokens,
        group=recipe.samples,
        seed=ctx.seed,
    )
    found = prompts.answered(asking, lines)
    passes = prompts.passes(lines, found)
    pairs = pool.submit(build, str(tokenizer), lines, found, recipe.keep_share, ctx.seed).result()
    with (ctx.out / "pairs.jsonl").open("wb") as out:
        for pair in pairs:
            out.write(orjson.dumps(pair) + b"\n")
    made = Counter(pair["set"] for pair in pairs)
    rate = sum(passes) / max(1, recipe.samples * len(lines))
    return Outcome(
        headline=f"{made[ON_POLICY]:,} on-policy and {made[KEEP]:,} keep pairs (start: {100 * rate:.1f} % right)",
        counts={
            **{name: value for name, value in counts.items() if isinstance(value, int)},
            "asked": len(lines),
            "on_policy": made[ON_POLICY],
            "keep": made[KEEP],
        },
        metrics={"pass_rate": rate},
        extra={"variant": start.ref.unit, "sets": counts["sets"]},
    )


def build(
    tokenizer: str,
    lines: Sequence[Line],
    found: Sequence[Sequence[Reply]],
    keep_share: float,
    seed: int,
) -> list[PairLine]:
    """The pairs as tokens. Runs in a worker."""
    from tasks.tokenize.encode import shared_encoder

    encoder = shared_encoder(tokenizer)
    return [*on_policy(encoder, lines, found), *keep(encoder, lines, keep_share, seed)]


def on_policy(
    encoder: TextEncoder, lines: Sequence[Line], found: Sequence[Sequence[Reply]]
) -> Iterator[PairLine]:
    """A pair for each prompt with a wrong reply that has ended; the commonest, of equally common ones the first."""
    for line, group in zip(lines, found, strict=True):
        wrong = Counter(
            each.text
            for each in group
            if each.ended and each.whole and each.text.strip() and not right(line, each)
        )
        if wrong:
            yield _pair(encoder, line, ON_POLICY, max(wrong, key=lambda text: (wrong[text], text)))


def keep(encoder: TextEncoder, lines: Sequence[Line], share: float, seed: int) -> Iterator[PairLine]:
    """Of a share of the prompts, by their hash: the right answer against one that is right elsewhere."""
    alike: dict[str, list[str]] = {}
    for line in lines:
        alike.setdefault(line["about"], []).append(line["answer"])
    order = sorted(lines, key=lambda line: key(seed, KEEP, line["id"]))
    for line in order[: round(share * len(lines))]:
        others = sorted(set(alike[line["about"]]) - {line["answer"]})
        if others:
            yield _pair(encoder, line, KEEP, others[key(seed, "other", line["id"]) % len(others)])


def _pair(encoder: TextEncoder, line: Line, kind: str, rejected: str) -> PairLine:
    end: Any = encoder.special_id(IM_END)
    return PairLine(
        id=hashlib.blake2b(f"{kind}:{line['id']}".encode(), digest_size=16).hexdigest(),
        set=kind,
        language=line["language"],
        prompt=line["prompt"],
        chosen=[*map(int, encoder.encode(line["answer"])), end],
        rejected=[*map(int, encoder.encode(rejected)), end],
    )
