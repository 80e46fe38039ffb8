"""The sft stage: one fine-tuning per mixture, and the rule that picks one of them for DPO.

`sft:<variant>` resolves its mixture to record ids (mixture.jsonl, whose digest tells variants apart),
packs the rendered dialogues with targets on the replies alone, and trains from the base model's
export. `sft:select` is in tasks.training.select.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import Any

from tasks.evaluate.benchmarks import OPEN_READERS, reported_split
from tasks.settings.config import Section, SteelRun, Train
from tasks.settings.errors import NodeError
from tasks.stage.node import Artifact, Context, Node, Outcome
from tasks.training import engine, select
from tasks.work import pool


class Recipe(Section):
    """What decides a variant, beside the base model and its records."""

    mixture: dict[str, float]
    max_tokens: int
    packed_tokens: int
    loss_on: str
    too_long: str
    train: Train


def nodes(config: SteelRun) -> list[Node]:
    """A node per variant, and the selection."""
    variants = config.sft.variants
    if not variants:
        return []
    sets = config.using("sft")
    trainings = []
    for name, variant in variants.items():
        if unknown := sorted(set(variant.mixture) - set(sets)):
            raise NodeError(f"sft variant {name}: {', '.join(unknown)} is no source with use: sft")
        trainings.append(_variant(config, name))
    return [*trainings, _select(config)]


def _variant(config: SteelRun, name: str) -> Node:
    mixture = config.sft.variants[name].mixture
    inputs = {"base": "pretrain", "tokenizer": "tokenize:tokenizer"}
    for source in mixture:
        inputs[source] = f"convert:{source}"
        inputs[f"{source}.drops"] = f"clean:decontaminate#{source}"
    return Node(
        name=f"sft:{name}",
        body=train_variant,
        config=Recipe(
            mixture=mixture,
            max_tokens=config.sft.max_tokens,
            packed_tokens=config.sft.packed_tokens,
            loss_on=config.sft.loss_on,
            too_long=config.sft.too_long,
            train=config.sft.train,
        ),
        inputs=inputs,
        resumable=True,
        seeded=True,
        trains=True,
        length=partial(_records, mixture),
        exclusive=config.runtime.parallel_trainings == 1,
        on_code_change="keep" if config.keep_trained_on_code_change else "rerun",
    )


def _records(mixture: Mapping[str, float], inputs: Mapping[str, Artifact]) -> float:
    """About how many records a variant takes."""
    return sum(share * inputs[source].manifest["counts"].get("kept", 0) for source, share in mixture.items())


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
    from tasks.training import examples, mixtures

    recipe: Recipe = ctx.config
    work = examples.Work(
        tokenizer=ctx.inputs["tokenizer"].path,
        sets=mixtures.of_mixture(recipe.mixture, ctx.inputs),
        seed=ctx.seed,
        max_tokens=recipe.max_tokens,
        packed_tokens=recipe.packed_tokens,
        out=ctx.out,
        last_turn=recipe.loss_on == "last_reply",
        too_long=recipe.too_long,
    )
    ctx.progress(0.0, "packing the mixture")
    accounting = pool.submit(examples.prepare, work).result()
    rows, val_rows = accounting["train"]["rows"], accounting["val"]["rows"]
    data = ctx.out / "data"
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
    )
    return _outcome(trained, accounting)


def _outcome(trained: engine.Trained, accounting: dict[str, Any]) -> Outcome:
    loss, val_loss = trained.last("loss"), trained.last("val_loss")
    sets = accounting["sets"]
    taken = sum(s["taken"] for s in sets.values())
    lines = [
        "| set | records | dropped before | taken | cut | too long | targets |",
        "|---|---|---|---|---|---|---|",
    ]
    lines += [
        f"| {name} | {s['records']:,} | {s['dropped'] + s['duplicates']:,} | {s['taken']:,} "
        f"| {s['truncated']:,} | {s['too_long']:,} | {s['targets']:,} |"
        for name, s in sets.items()
    ]
    shown = f"val loss {val_loss:.3f}" if val_loss is not None else f"loss {loss:.3f}"
    return Outcome(
        headline=f"{shown}, {taken:,} examples",
        counts={
            "records_taken": taken,
            "examples": sum(s["examples"] for s in sets.values()),
            "truncated": sum(s["truncated"] for s in sets.values()),
            "too_long": sum(s["too_long"] for s in sets.values()),
            "rows": accounting["train"]["rows"],
            **{f"taken_{name}": s["taken"] for name, s in sets.items()},
        },
        metrics=trained.headline(),
        extra={
            "mixture_digest": accounting["mixture_digest"],
            "mixture": {name: s["taken"] for name, s in sets.items()},
            **trained.execution,
        },
        summary="\n".join(lines),
        files=["accounting.json", "sample.txt"],
    )
