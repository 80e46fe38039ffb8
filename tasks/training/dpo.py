"""The dpo stage: preference pairs with their reference log-probs, and the training on them.

The reference is the chosen SFT variant itself, so its log-probs never change: `dpo:reference` computes
them once, with the function that trains, and `dpo:train` needs no second model in memory. The first
DPO loss is then ln 2 to rounding. `dpo:on_policy` makes pairs of the variant's own wrong replies, where they are asked
for. The effect is measured on pairs that training never saw, for each source of pairs (tasks/training/trials.py).
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from tasks.settings.config import Section, SteelRun, Train
from tasks.settings.errors import NodeError
from tasks.stage.node import Context, Node, Outcome
from tasks.training import dpo_effect, engine, on_policy
from tasks.training.select import chosen
from tasks.work import pool, told

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
    loss: str
    label_smoothing: float
    train: Train
    traits: dict[str, list[str]]
    trait_tokens: int
    answer_tokens: int
    collapse_alarm: float
    batch_tokens: int


def nodes(config: SteelRun) -> list[Node]:
    """Two nodes, if the run has variants to start from and a mixture of pairs; a third, if it makes pairs itself."""
    mixture, own = config.dpo.mixture, config.dpo.on_policy
    if not mixture or not config.sft.variants:
        return []
    sets = config.using("preference")
    if unknown := sorted(set(mixture) - set(sets)):
        raise NodeError(f"dpo.mixture: {', '.join(unknown)} is no source with use: preference")
    if unknown := sorted(set(own.mixture) - set(config.using("sft"))):
        raise NodeError(f"dpo.on_policy.mixture: {', '.join(unknown)} is no source with use: sft")
    variants = {variant: f"sft:{variant}" for variant in config.sft.variants}
    start = {"select": "sft:select", **variants, "tokenizer": "tokenize:tokenizer"}
    made = {"on_policy": "dpo:on_policy"} if own.mixture else {}
    reading = Train(epochs=1, batch_size=config.dpo.train.batch_size, precision=config.dpo.train.precision)
    more: dict[str, Any] = {
        "seeded": True,
        "trains": True,
        "exclusive": config.runtime.parallel_trainings == 1,
        "on_code_change": "keep" if config.keep_trained_on_code_change else "rerun",
    }
    return [
        *([_on_policy(config, start)] if own.mixture else []),
        Node(
            name="dpo:reference",
            body=reference,
            version=2 if made else 1,  # 2: the manifest says how replies are graded
            config=ReferenceRecipe(
                mixture=mixture,
                zh_per_en=config.dpo.zh_per_en,
                max_tokens=config.dpo.max_tokens,
                held_out=config.dpo.held_out,
                train=reading,
            ),
            inputs={**start, **_records(mixture), **made},
            **more,
        ),
        Node(
            name="dpo:train",
            body=train,
            config=Recipe(
                beta=config.dpo.beta,
                nll_weight=config.dpo.nll_weight,
                loss=config.dpo.loss,
                label_smoothing=config.dpo.label_smoothing,
                train=config.dpo.train,
                traits=config.dpo.traits,
                trait_tokens=config.dpo.trait_tokens,
                answer_tokens=own.max_new_tokens,
                collapse_alarm=config.dpo.collapse_alarm,
                batch_tokens=config.evaluate.batch_tokens,
            ),
            inputs={"reference": "dpo:reference", **start},
            resumable=True,
            **more,
        ),
    ]


def _records(sets: Iterable[str]) -> dict[str, str]:
    """The inputs that a mixture reads."""
    inputs = {}
    for source in sets:
        inputs[source] = f"convert:{source}"
        inputs[f"{source}.drops"] = f"clean:decontaminate#{source}"
    return inputs


def _on_policy(config: SteelRun, start: dict[str, str]) -> Node:
    own = config.dpo.on_policy
    return Node(
        name="dpo:on_policy",
        version=2,  # pairs say how they are graded; what is chosen is the data's own reply
        body=on_policy.make,
        config=on_policy.Recipe(
            **{name: getattr(own, name) for name in type(own).model_fields}, max_tokens=config.dpo.max_tokens
        ),
        inputs={**start, **_records(own.mixture)},
        seeded=True,
        on_code_change="keep" if config.keep_trained_on_code_change else "rerun",
    )


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
        extra=ctx.inputs["on_policy"].path if "on_policy" in ctx.inputs else None,
    )
    ctx.progress(0.0, "making the pairs")
    counts = pool.submit(pairs.prepare, work).result()
    if counts["extra"] and counts["extra_held_out"] < recipe.held_out:
        ctx.log.warning(
            "of the %d pairs that the variant made itself %d are held out, not dpo.held_out %d: at most a share of %g is",
            counts["extra"], counts["extra_held_out"], recipe.held_out, pairs.EXTRA_HELD_OUT,
        )  # fmt: skip
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
        "template": "dropped: the chat template refuses its roles",
        "prompt_too_long": "dropped: the prompt leaves no room",
        "same_reply": "dropped: both replies are the same once cut",
        "thinned": "dropped: English beyond the ratio",
        "extra": "that the variant made itself",
        "extra_held_out": "of them held out",
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
    trial = None
    if held_out:
        trial = dpo_effect.Trial(
            pairs=pairs,
            tokenizer=ctx.inputs["tokenizer"].path,
            device=ctx.runtime.device,
            batch_tokens=recipe.batch_tokens,
            traits=recipe.traits,
            trait_tokens=recipe.trait_tokens,
            answer_tokens=recipe.answer_tokens,
        )
    # asked while the ranks train
    before = dpo_effect.ask(trial, start.path / "export", counts["held_out"]) if trial else None
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
            "loss": recipe.loss,
            "label_smoothing": recipe.label_smoothing,
            "reference": str(pairs / LOGPROBS),
        },
    )
    metrics = trained.headline()
    fall = -min(
        (line["logps/chosen_change"] for line in trained.metrics if "logps/chosen_change" in line),
        default=0.0,
    )
    collapsed = fall > recipe.collapse_alarm
    if collapsed:
        ctx.log.warning(
            "the chosen replies' log-probability fell by %.2f nats a token below the reference (alarm: %g): the training "
            "unlearns what it should prefer. Give dpo.nll_weight, a lower rate, or a larger beta",
            fall, recipe.collapse_alarm,
        )  # fmt: skip
    extra = {"variant": start.ref.unit, "collapsed": collapsed, "chosen_fall": fall, **trained.execution}
    if trial is None or before is None:
        return Outcome(
            headline=f"loss {metrics['final_loss']:.4f}, nothing held out", metrics=metrics, extra=extra
        )
    what = "scores and replies"  # each held-out pair is scored, and its prompt may be answered
    after = dpo_effect.ask(trial, ctx.out / "export", counts["held_out"])
    effect = dpo_effect.compare(
        trial, before.results(told.asked(ctx, "old", what)), after.results(told.asked(ctx, "new", what))
    )
    effect |= {"collapsed": collapsed}
    dpo_effect.write(ctx.out / "dpo.json", effect)
    was, now = (100 * effect[f"accuracy_{when}"] for when in ("before", "after"))
    return Outcome(
        headline=f"prefers the chosen reply in {was:.1f} % → {now:.1f} % of {effect['n']} pairs (p {effect['p_value']:.2g})"
        + (", chosen replies collapsed" if collapsed else ""),
        counts={"pairs": counts["train"], "held_out": effect["n"]},
        metrics={
            **metrics,
            **{name: float(effect[name]) for name in ("accuracy_before", "accuracy_after", "p_value")},
            **dpo_effect.metrics(effect),
        },
        extra=extra,
        summary=dpo_effect.table(effect),
        files=["dpo.json"],
    )
