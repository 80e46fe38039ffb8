"""The dpo stage: preference pairs with their reference log-probs, and the training on them.

The reference is the chosen SFT variant itself, so its log-probs never change: `dpo:reference` computes
them once, with the function that trains, and `dpo:train` needs no second model in memory. The first
DPO loss is then ln 2 to rounding. The effect is measured on pairs that training never saw: the share
in which the chosen reply is likelier per token, before and after, with McNemar's exact test.
"""

from __future__ import annotations

from typing import Any

import orjson

from tasks.settings.config import Section, SteelRun, Train
from tasks.settings.errors import NodeError
from tasks.stage.node import Context, Node, Outcome
from tasks.training import engine, trials
from tasks.training.select import chosen
from tasks.work import pool

PARTS = ("train", "held_out")
LOGPROBS = "logprobs.arrow"
"""Written by the engine's objective of that name; read by its objective dpo."""


class ReferenceRecipe(Section):
    """What decides the pairs and their log-probs, beside the records and the chosen variant."""

    mixture: dict[str, float]
    zh_per_en: float | None
    max_tokens: int
    held_out: int
    train: Train
    """Of the training's settings, those that the log-probs depend on."""


class Recipe(Section):
    """What decides the trained model and how its effect is measured, beside the pairs."""

    beta: float
    nll_weight: float
    train: Train
    batch_tokens: int


def nodes(config: SteelRun) -> list[Node]:
    """Two nodes, if the run has variants to start from and a mixture of pairs."""
    mixture = config.dpo.mixture
    if not mixture or not config.sft.variants:
        return []
    sets = config.using("preference")
    if unknown := sorted(set(mixture) - set(sets)):
        raise NodeError(f"dpo.mixture: {', '.join(unknown)} is no source with use: preference")
    variants = {variant: f"sft:{variant}" for variant in config.sft.variants}
    start = {"select": "sft:select", **variants, "tokenizer": "tokenize:tokenizer"}
    prepared = {}
    for source in mixture:
        prepared[source] = f"convert:{source}"
        prepared[f"{source}.drops"] = f"clean:decontaminate#{source}"
    reading = Train(epochs=1, batch_size=config.dpo.train.batch_size, precision=config.dpo.train.precision)
    more: dict[str, Any] = {
        "seeded": True,
        "trains": True,
        "exclusive": config.runtime.parallel_trainings == 1,
        "on_code_change": "keep" if config.keep_trained_on_code_change else "rerun",
    }
    return [
        Node(
            name="dpo:reference",
            body=reference,
            config=ReferenceRecipe(
                mixture=mixture,
                zh_per_en=config.dpo.zh_per_en,
                max_tokens=config.dpo.max_tokens,
                held_out=config.dpo.held_out,
                train=reading,
            ),
            inputs={**start, **prepared},
            **more,
        ),
        Node(
            name="dpo:train",
            body=train,
            config=Recipe(
                beta=config.dpo.beta,
                nll_weight=config.dpo.nll_weight,
                train=config.dpo.train,
                batch_tokens=config.evaluate.batch_tokens,
            ),
            inputs={"reference": "dpo:reference", **start},
            resumable=True,
            **more,
        ),
    ]


def reference(ctx: Context) -> Outcome:
    """Build the pairs, split off the held-out ones, and let the engine score them with the reference."""
    from tasks.training import mixtures, pairs

    recipe: ReferenceRecipe = ctx.config
    work = pairs.Work(
        tokenizer=ctx.inputs["tokenizer"].path,
        sets=mixtures.of_mixture(recipe.mixture, ctx.inputs),
        seed=ctx.seed,
        max_tokens=recipe.max_tokens,
        zh_per_en=recipe.zh_per_en,
        held_out=recipe.held_out,
        out=ctx.out,
    )
    ctx.progress(0.0, "making the pairs")
    counts = pool.submit(pairs.prepare, work).result()
    start = chosen(ctx.inputs)
    parts = [part for part in PARTS if counts[part]]
    files = [{"path": str(ctx.out / f"{part}.arrow"), "source": part} for part in parts]
    settings = engine.settings(ctx, "logprobs", recipe.train, files, init_from=str(start.path / "export"))
    engine.run(ctx, settings, recipe.train, ctx.runtime.sft_nproc or ctx.runtime.nproc)
    if not (ctx.out / LOGPROBS).exists():
        raise NodeError(f"the engine left no {LOGPROBS}; see {ctx.out / 'train.log'}")
    languages = f"{counts['train_zh']:,} zh and {counts['train_en']:,} en"
    return Outcome(
        headline=f"{counts['train']:,} pairs ({languages}), {counts['held_out']:,} held out",
        counts={name: value for name, value in counts.items() if isinstance(value, int)},
        extra={"variant": start.ref.unit, "sets": counts["sets"]},
        summary=_pairs_table(counts),
    )


def _pairs_table(counts: dict[str, Any]) -> str:
    lines = ["| | pairs |", "|---|---|"]
    rows = {
        "pairs": "read",
        "prompt_too_long": "dropped: the prompt leaves no room",
        "same_reply": "dropped: both replies are the same once cut",
        "thinned": "dropped: English beyond the ratio",
        "train": "to train on",
        "held_out": "held out",
        "cut": "with a reply that was cut",
    }
    return "\n".join([*lines, *(f"| {text} | {counts[name]:,} |" for name, text in rows.items())])


# ---------------------------------------------------------------------------------- training
def train(ctx: Context) -> Outcome:
    """Train on the pairs; compare the held-out ones before and after."""
    recipe: Recipe = ctx.config
    pairs = ctx.inputs["reference"].path
    counts = ctx.inputs["reference"].manifest["counts"]
    start = chosen(ctx.inputs)
    held_out = counts["held_out"] > 0
    preference = (pairs / "held_out.arrow", ctx.runtime.device, recipe.batch_tokens)
    # scored while the ranks train
    before = pool.submit(trials.prefer, start.path / "export", *preference) if held_out else None
    val_file = {"path": str(pairs / "held_out.arrow"), "source": "held-out"}
    trained = engine.train(
        ctx,
        "dpo",
        recipe.train,
        [{"path": str(pairs / "train.arrow")}],
        nproc=ctx.runtime.sft_nproc or ctx.runtime.nproc,
        val_files=[val_file] if held_out else [],
        steps=engine.steps(recipe.train, counts["train"]),
        init_from=str(start.path / "export"),
        dpo={
            "beta": recipe.beta,
            "nll_weight": recipe.nll_weight,
            "reference": str(pairs / LOGPROBS),
        },
    )
    metrics = trained.headline()
    extra = {"variant": start.ref.unit, **trained.execution}
    if before is None:
        return Outcome(
            headline=f"loss {metrics['final_loss']:.4f}, nothing held out", metrics=metrics, extra=extra
        )
    after = pool.submit(trials.prefer, ctx.out / "export", *preference)
    effect = trials.compare(before.result(), after.result())
    (ctx.out / "dpo.json").write_bytes(orjson.dumps(effect, option=orjson.OPT_INDENT_2) + b"\n")
    was, now = (100 * effect[f"accuracy_{when}"] for when in ("before", "after"))
    return Outcome(
        headline=f"prefers the chosen reply in {was:.1f} % → {now:.1f} % of {effect['n']} pairs (p {effect['p_value']:.2g})",
        counts={"pairs": counts["train"], "held_out": effect["n"]},
        metrics={
            **metrics,
            **{name: float(effect[name]) for name in ("accuracy_before", "accuracy_after", "p_value")},
        },
        extra=extra,
        summary=_effect_table(effect),
        files=["dpo.json"],
    )


def _effect_table(effect: dict[str, Any]) -> str:
    lines = ["| | chosen reply likelier | 95 % interval |", "|---|---|---|"]
    for when in ("before", "after"):
        low, high = (100 * x for x in effect[f"ci95_{when}"])
        lines.append(f"| {when} | {100 * effect[f'accuracy_{when}']:.1f} % | {low:.1f} to {high:.1f} % |")
    moved = f"{effect['gained']} pairs gained, {effect['lost']} lost"
    return "\n".join([*lines, "", f"{moved} of {effect['n']}; McNemar's exact p = {effect['p_value']:.3g}"])
