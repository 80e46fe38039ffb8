"""The dpo stage: preference pairs with their reference log-probs, and the training on them.

The reference is the chosen SFT variant itself, so its log-probs never change: `dpo:reference` computes
them once, with the function that trains, and `dpo:train` needs no second model in memory. The first
DPO loss is then ln 2 to rounding. The effect is measured on pairs that training never saw: the share
in which the chosen reply is likelier per token, before and after, with McNemar's exact test.
"""

from __future__ import annotations

from typing import Any

from tasks.settings.config import SteelRun, Train
from tasks.settings.errors import NodeError
from tasks.stage.node import Context, Node, Outcome
from tasks.training import engine
from tasks.training.select import chosen

PAIRS = (
    "tasks.training.mixtures",
    "tasks.training.pairs",
    "tasks.training.trials",
    "model.chat_template",
    "model.tokenizer",
    "tasks.tokenize.chat",
    "tasks.tokenize.encode",
)
"""Modules that decide what is trained on, and how its effect is measured."""
PARTS = ("train", "held_out")
LOGPROBS = "logprobs.arrow"
"""Written by the engine's objective of that name; read by its objective dpo."""


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
    # of the training's settings, those that the log-probs depend on
    reading = Train(epochs=1, batch_size=config.dpo.train.batch_size, precision=config.dpo.train.precision)
    more = {
        "code": (*engine.CODE, *PAIRS, "model.scoring"),
        "exclusive": config.runtime.parallel_trainings == 1,
        "on_code_change": "keep" if config.keep_trained_on_code_change else "rerun",
    }
    return [
        Node(
            name="dpo:reference",
            body=reference,
            config={
                "mixture": dict(mixture),
                "zh_per_en": config.dpo.zh_per_en,
                "max_tokens": config.dpo.max_tokens,
                "held_out": config.dpo.held_out,
                "train": reading.model_dump(mode="json"),
            },
            inputs={**start, **prepared},
            **more,
        ),
        Node(
            name="dpo:train",
            body=train,
            config={
                "beta": config.dpo.beta,
                "nll_weight": config.dpo.nll_weight,
                "train": config.dpo.train.model_dump(mode="json"),
                "batch_tokens": config.evaluate.batch_tokens,
            },
            inputs={"reference": "dpo:reference", **start},
            resumable=True,
            **more,
        ),
    ]


def reference(ctx: Context) -> Outcome:
    """Build the pairs, split off the held-out ones, and let the engine score them with the reference."""
    from tasks.training import mixtures, pairs
    from tasks.training.launch import launch
    from tasks.work import pool

    wanted = ctx.config
    work = pairs.Work(
        tokenizer=ctx.inputs["tokenizer"].path,
        sets=mixtures.of_mixture(ctx),
        seed=ctx.seed,
        max_tokens=wanted["max_tokens"],
        zh_per_en=wanted["zh_per_en"],
        held_out=wanted["held_out"],
        out=ctx.out,
    )
    counts = pool.submit(pairs.prepare, work).result()
    if not counts["train"]:
        raise NodeError(
            f"dpo: {counts['pairs']} pairs leave none to train on beside {counts['held_out']} held out"
        )
    start = chosen(ctx.inputs)
    parts = [part for part in PARTS if counts[part]]
    files = [{"path": str(ctx.out / f"{part}.arrow"), "source": part} for part in parts]
    reading = Train.model_validate(wanted["train"])
    settings = engine.settings(
        ctx,
        "logprobs",
        reading,
        files,
        init_from=str(start.path / "export"),
    )
    found = pool.submit(engine.machine, ctx.runtime.device, reading.precision).result()
    nproc = engine.ranks(found, ctx.runtime.sft_nproc, ctx.runtime.nproc)
    launch(ctx, settings, nproc=nproc)
    if not (ctx.out / LOGPROBS).exists():
        raise NodeError(f"the engine left no {LOGPROBS}; see {ctx.out / 'train.log'}")
    languages = f"{counts['train_zh']:,} zh and {counts['train_en']:,} en"
    return Outcome(
        headline=f"{counts['train']:,} pairs ({languages}), {counts['held_out']:,} held out",
        counts={name: value for name, value in counts.items() if isinstance(value, int)},
        extra={"variant": start.node.partition(":")[2], "sets": counts["sets"]},
        summary=_pairs_table(counts),
    )


def _pairs_table(counts: dict[str, Any]) -> str:
    lines = ["| | pairs |", "|---|---|"]
    named = {
        "pairs": "read",
        "prompt_too_long": "dropped: the prompt leaves no room",
        "same_reply": "dropped: both replies are the same once cut",
        "thinned": "dropped: English beyond the ratio",
        "train": "to train on",
        "held_out": "held out",
        "cut": "with a reply that was cut",
    }
    return "\n".join([*lines, *(f"| {text} | {counts[name]:,} |" for name, text in named.items())])


# ---------------------------------------------------------------------------------- training
def train(ctx: Context) -> Outcome:
    """Train on the pairs; compare the held-out ones before and after."""
    import orjson

    from tasks.training import trials
    from tasks.training.launch import launch
    from tasks.work import pool

    wanted = ctx.config
    recipe = Train.model_validate(wanted["train"])
    pairs = ctx.inputs["reference"].path
    counts = ctx.inputs["reference"].manifest["counts"]
    start = chosen(ctx.inputs)
    held_out = counts["held_out"] > 0
    preference = (pairs / "held_out.arrow", ctx.runtime.device, wanted["batch_tokens"])
    # scored while the ranks train
    before = pool.submit(trials.prefer, start.path / "export", *preference) if held_out else None
    val_file = {"path": str(pairs / "held_out.arrow"), "source": "held-out"}
    settings = engine.settings(
        ctx,
        "dpo",
        recipe,
        [{"path": str(pairs / "train.arrow")}],
        val_files=[val_file] if held_out else [],
        steps=engine.steps(recipe, counts["train"]),
        init_from=str(start.path / "export"),
        dpo={
            "beta": wanted["beta"],
            "nll_weight": wanted["nll_weight"],
            "reference": str(pairs / LOGPROBS),
        },
    )
    machine = pool.submit(engine.machine, ctx.runtime.device, recipe.precision).result()
    nproc = engine.ranks(machine, ctx.runtime.sft_nproc, ctx.runtime.nproc)
    launch(ctx, settings, nproc=nproc)
    engine.finish(ctx.out)
    found = engine.headline_metrics(engine.read_metrics(ctx.out))
    extra = {"variant": start.node.partition(":")[2], **engine.execution(ctx, recipe, machine, nproc)}
    if before is None:
        return Outcome(
            headline=f"loss {found['final_loss']:.4f}, nothing held out", metrics=found, extra=extra
        )
    after = pool.submit(trials.prefer, ctx.out / "export", *preference)
    effect = trials.compare(before.result(), after.result())
    (ctx.out / "dpo.json").write_bytes(orjson.dumps(effect, option=orjson.OPT_INDENT_2) + b"\n")
    was, now = (100 * effect[f"accuracy_{when}"] for when in ("before", "after"))
    return Outcome(
        headline=f"prefers the chosen reply in {was:.1f} % → {now:.1f} % of {effect['n']} pairs (p {effect['p_value']:.2g})",
        counts={"pairs": counts["train"], "held_out": effect["n"]},
        metrics={
            **found,
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
