"""The sft stage: one fine-tuning per mixture, and the rule that picks one of them for DPO.

`sft:<variant>` resolves its mixture to record ids (mixture.jsonl, whose digest tells variants apart),
packs the rendered dialogues with targets on the replies alone, and trains from the base model's
export. `sft:select` is in tasks.training.select.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from functools import partial
from typing import TYPE_CHECKING, Any

from tasks.evaluate.benchmarks import OPEN_READERS, reported_split
from tasks.settings.config import Section, Sft, SteelRun, Train, Variant
from tasks.settings.errors import NodeError
from tasks.stage.node import Artifact, Context, Node, Outcome
from tasks.training import engine, select
from tasks.work import pool

if TYPE_CHECKING:
    from tasks.training import examples


class Recipe(Section):
    """What decides a variant, beside the base model and its records."""

    mixture: dict[str, float]
    max_tokens: int
    packed_tokens: int
    loss_on: str
    too_long: str
    train: Train


class Special(Recipe):
    """With what most variants do without; a recipe of its own, so that the others keep their fingerprints."""

    counts: dict[str, int]
    zh_share: float | None
    neftune_alpha: float


def nodes(config: SteelRun) -> list[Node]:
    """A node per variant, and the selection."""
    variants = config.sft.variants
    if not variants:
        return []
    sets = config.using("sft")
    trainings = []
    for name, variant in variants.items():
        if unknown := sorted(set(variant.sets) - set(sets)):
            raise NodeError(f"sft variant {name}: {', '.join(unknown)} is no source with use: sft")
        trainings.append(_variant(config, name))
    return [*trainings, _select(config)]


def _variant(config: SteelRun, name: str) -> Node:
    variant = config.sft.variants[name]
    inputs = {"base": "pretrain", "tokenizer": "tokenize:tokenizer"}
    for source in variant.sets:
        inputs[source] = f"convert:{source}"
        inputs[f"{source}.drops"] = f"clean:decontaminate#{source}"
    return Node(
        name=f"sft:{name}",
        body=train_variant,
        config=_recipe(config.sft, variant),
        inputs=inputs,
        resumable=True,
        seeded=True,
        trains=True,
        length=partial(_records, variant.mixture, variant.counts),
        exclusive=config.runtime.parallel_trainings == 1,
        on_code_change="keep" if config.keep_trained_on_code_change else "rerun",
    )


def _recipe(sft: Sft, variant: Variant) -> Recipe:
    plain = {
        "mixture": variant.mixture,
        **{
            name: getattr(sft, name)
            for name in ("max_tokens", "packed_tokens", "loss_on", "too_long", "train")
        },
    }
    special = {
        "counts": variant.counts,
        "zh_share": variant.zh_share,
        "neftune_alpha": sft.neftune_alpha,
    }
    if special == {"counts": {}, "zh_share": None, "neftune_alpha": 0.0}:
        return Recipe(**plain)
    return Special(**plain, **special)


def _records(
    mixture: Mapping[str, float], counts: Mapping[str, int], inputs: Mapping[str, Artifact]
) -> float:
    """About how many records a variant takes."""
    kept = {source: inputs[source].manifest["counts"].get("kept", 0) for source in mixture}
    return sum(share * kept[source] for source, share in mixture.items()) + sum(counts.values())


def _select(config: SteelRun) -> Node:
    settings = config.evaluate
    benchmarks = {
        name: reported_split(config.sources[name])
        for name in settings.benchmarks
        if config.sources[name].reader not in OPEN_READERS
    }
    variants = list(config.sft.variants)
    return Node(
        name="sft:select",
        body=select.select,
        config=select.Recipe(
            variants=variants,
            protocol=config.sft.select_protocol,
            form="chat" if settings.chat else "plain",
            benchmarks=benchmarks,
            families={name: config.sources[name].reader for name in benchmarks},
            max_questions=settings.max_questions,
            batch_tokens=settings.batch_tokens,
        ),
        inputs={
            **{variant: f"sft:{variant}" for variant in variants},
            "tokenizer": "tokenize:tokenizer",
            **{name: f"convert:{name}" for name in benchmarks},
        },
        seeded=True,
    )


# -------------------------------------------------------------------------------- a variant
def train_variant(ctx: Context) -> Outcome:
    """Resolve the mixture, pack it, train from the base model, leave the export."""
    from tasks.training import examples, ratio

    recipe: Recipe = ctx.config
    work = _work(ctx, recipe)
    ctx.progress(0.0, "packing the mixture")
    accounting = pool.submit(examples.prepare, work).result()
    rows, val_rows = accounting["train"]["rows"], accounting["val"]["rows"]
    data = ctx.out / "data"
    asked, reached = (
        recipe.zh_share if isinstance(recipe, Special) else None,
        ratio.reached(accounting["sets"]),
    )
    if asked is not None:
        level = logging.WARNING if reached in (0, 1) and reached != asked else logging.INFO
        ctx.log.log(level, "zh_share %g: %.2f %% of the supervised tokens are Chinese", asked, 100 * reached)
    names = examples.source_names(accounting["sets"])
    train_file = {"path": str(data / "train-00000.arrow"), "rows": rows, "sources": names}
    val_file = {"path": str(data / "val-00000.arrow"), "rows": val_rows, "source": "held-out"}
    trained = engine.train(
        ctx,
        "sft",
        recipe.train,
        [train_file],
        nproc=ctx.runtime.sft_nproc or ctx.runtime.nproc,
        scratch=["data"],
        val_files=[val_file] if val_rows else [],
        steps=engine.steps(recipe.train, rows),
        init_from=str(ctx.inputs["base"].path / "export"),
        neftune_alpha=recipe.neftune_alpha if isinstance(recipe, Special) else 0.0,
    )
    return _outcome(trained, accounting, None if asked is None else reached)


def _work(ctx: Context, recipe: Recipe) -> examples.Work:
    """What to pack."""
    from tasks.training import examples, mixtures, ratio

    special = recipe if isinstance(recipe, Special) else None
    fields: dict[str, Any] = {
        "tokenizer": ctx.inputs["tokenizer"].path,
        "sets": mixtures.of_mixture(recipe.mixture, ctx.inputs, special.counts if special else None),
        "seed": ctx.seed,
        "max_tokens": recipe.max_tokens,
        "packed_tokens": recipe.packed_tokens,
        "out": ctx.out,
        "last_turn": recipe.loss_on == "last_reply",
        "too_long": recipe.too_long,
    }
    if special is None or special.zh_share is None:
        return examples.Work(**fields)
    return ratio.Work(**fields, zh_share=special.zh_share)


def _outcome(trained: engine.Trained, accounting: dict[str, Any], zh_share: float | None = None) -> Outcome:
    """`zh_share`: the share of Chinese that was reached, where one was asked for."""
    loss, val_loss = trained.last("loss"), trained.last("val_loss")
    sets = accounting["sets"]
    taken = sum(s["taken"] for s in sets.values())
    lines = [
        "| set | records | dropped before | taken | no form | cut | too long | targets | by language |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    lines += [
        f"| {name} | {s['records']:,} | {s['dropped'] + s['duplicates']:,} | {s['taken']:,} "
        f"| {s['template']:,} | {s['truncated']:,} | {s['too_long']:,} | {s['targets']:,} "
        f"| {_languages(s['languages'])} |"
        for name, s in sets.items()
    ]
    lines += [f"\n{name}, no form: {s['refusal']}" for name, s in sets.items() if s["template"]]
    if zh_share is not None:
        lines.append(f"\nChinese: {100 * zh_share:.2f} % of the supervised tokens")
    shown = f"val loss {val_loss:.3f}" if val_loss is not None else f"loss {loss:.3f}"
    return Outcome(
        headline=f"{shown}, {taken:,} examples",
        counts={
            "records_taken": taken,
            "examples": sum(s["examples"] for s in sets.values()),
            "truncated": sum(s["truncated"] for s in sets.values()),
            **{
                fate: sum(s[fate] for s in sets.values())
                for fate in ("template", "too_long", "ends_with_user", "replies_in_a_row")
            },
            "rows": accounting["train"]["rows"],
            **{f"taken_{name}": s["taken"] for name, s in sets.items()},
        },
        metrics=trained.headline(),
        extra={
            "mixture_digest": accounting["mixture_digest"],
            "mixture": {name: s["taken"] for name, s in sets.items()},
            "targets": {name: s["languages"] for name, s in sets.items()},
            **({} if zh_share is None else {"zh_share": zh_share}),
            **trained.execution,
        },
        summary="\n".join(lines),
        files=["accounting.json", "sample.txt"],
    )


def _languages(targets: Mapping[str, int]) -> str:
    return ", ".join(f"{language} {n:,}" for language, n in sorted(targets.items())) or "none"
