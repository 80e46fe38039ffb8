"""Preference pairs that the start model makes itself: `dpo:on_policy`.

The model is asked questions with one right answer a few times. Where it errs, its commonest wrong reply is rejected and
the right answer is chosen (set `on-policy`), in the data's own words: reasoning and punctuation stay. Where these do not
earn the reward (`format` wants a thought) or are too long, a right reply of the model's is chosen instead; where there
is none, the question gives no pair and is counted. For a share of the questions the right answer is also set against
the answer of another question (set `keep`): without such pairs training unlearns answers, because replies of another
form move the first token of every reply. Graded exactly, by model/rewards.py.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Iterator, Sequence

import orjson

from model.rewards import Reply
from tasks.settings.config import RlSet, Section
from tasks.stage.node import Context, Outcome
from tasks.tokenize.chat import TextEncoder, reply_ids
from tasks.training import select as selection
from tasks.training.mixtures import key
from tasks.training.pairs import PairLine
from tasks.training.prompts import Question, right
from tasks.work import pool
from tasks.work.told import shown

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
    asking = prompts.Asking(
        export=start.path / "export",
        tokenizer=tokenizer,
        device=ctx.runtime.device,
        max_new_tokens=recipe.max_new_tokens,
        group=recipe.samples,
        seed=ctx.seed,
    )
    told = shown(ctx, lambda done: f"{done} prompts, {recipe.samples} replies each", 0.1)
    found = prompts.answered(asking, lines, told)
    passes = prompts.passes(lines, found)
    pairs, unchosen = pool.submit(
        build, str(tokenizer), lines, found, recipe.keep_share, ctx.seed, recipe.max_tokens
    ).result()
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
            "no_chosen": unchosen,
            "on_policy": made[ON_POLICY],
            "keep": made[KEEP],
        },
        metrics={"pass_rate": rate},
        extra={"variant": start.ref.unit, "sets": counts["sets"]},
    )


def build(
    tokenizer: str,
    lines: Sequence[Question],
    found: Sequence[Sequence[Reply]],
    keep_share: float,
    seed: int,
    max_tokens: int,
) -> tuple[list[PairLine], int]:
    """The pairs as tokens, and how many questions have nothing to choose. Runs in a worker."""
    from tasks.tokenize.encode import shared_encoder

    encoder = shared_encoder(tokenizer)
    best = chosen(encoder, lines, found, max_tokens)
    pairs = [*on_policy(encoder, lines, best, found), *keep(encoder, lines, best, keep_share, seed)]
    return pairs, best.count(None)


def chosen(
    encoder: TextEncoder, lines: Sequence[Question], found: Sequence[Sequence[Reply]], max_tokens: int
) -> list[str | None]:
    """What is preferred for each question: the data's own reply if it earns the reward and has room in max_tokens, else
    the commonest right reply of the model. None where there is neither; such a question gives no pair."""
    best = []
    for line, group in zip(lines, found, strict=True):
        room = max_tokens - len(line["prompt"])
        own = Counter(each.text for each in group if right(line, each))
        said = line["messages"][-1]["content"]
        fitting = (
            text
            for text in (said, *sorted(own, key=lambda text: (-own[text], text)))
            if right(line, Reply(text, True)) and len(_ids(encoder, line, text)) <= room
        )
        best.append(next(fitting, None))
    return best


def on_policy(
    encoder: TextEncoder,
    lines: Sequence[Question],
    best: Sequence[str | None],
    found: Sequence[Sequence[Reply]],
) -> Iterator[PairLine]:
    """A pair for each prompt with a wrong reply that has ended: the commonest, of equally common ones the last by its
    characters. `best`: what `chosen` gives."""
    for line, text, group in zip(lines, best, found, strict=True):
        wrong = Counter(
            each.text
            for each in group
            if each.ended and each.whole and each.text.strip() and not right(line, each)
        )
        if wrong and text is not None:
            rejected = max(wrong, key=lambda said: (wrong[said], said))
            yield _pair(encoder, line, ON_POLICY, text, rejected)


def keep(
    encoder: TextEncoder, lines: Sequence[Question], best: Sequence[str | None], share: float, seed: int
) -> Iterator[PairLine]:
    """Of a share of the prompts, by their hash: the right answer against one that is right elsewhere, and not here."""
    texts = {line["id"]: text for line, text in zip(lines, best, strict=True) if text is not None}
    alike: dict[str, set[str]] = {}
    for line in lines:
        if line["id"] in texts:
            alike.setdefault(line["about"], set()).add(texts[line["id"]])
    ordered = {about: sorted(group) for about, group in alike.items()}
    order = sorted(lines, key=lambda line: key(seed, KEEP, line["id"]))
    for line in order[: round(share * len(lines))]:
        text = texts.get(line["id"])
        others = [other for other in ordered.get(line["about"], ()) if other != text]
        if text is None or not others:
            continue
        first = key(seed, "other", line["id"]) % len(others)
        # answers may be equal in other words: B and `B. text`
        wrong = (other for other in others[first:] + others[:first] if not right(line, Reply(other, True)))
        rejected = next(wrong, None)
        if rejected is not None:
            yield _pair(encoder, line, KEEP, text, rejected)


def _pair(encoder: TextEncoder, line: Question, kind: str, text: str, rejected: str) -> PairLine:
    return PairLine(
        id=hashlib.blake2b(f"{kind}:{line['id']}".encode(), digest_size=16).hexdigest(),
        set=kind,
        language=line["language"],
        prompt=line["prompt"],
        chosen=_ids(encoder, line, text),
        rejected=_ids(encoder, line, rejected),
        answer=line["answer"],
        reward=line["reward"],
    )


def _ids(encoder: TextEncoder, line: Question, text: str) -> list[int]:
    """A reply behind the line's prompt, with its end."""
    return reply_ids(encoder, line["messages"][:-1], text)
