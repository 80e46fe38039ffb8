"""The sft stage: one fine-tuning per mixture, and the rule that picks one of them for DPO.

`sft:<variant>` resolves its mixture to record ids (mixture.jsonl, whose digest tells variants apart),
packs the rendered dialogues with targets on the replies alone, and trains from the base model's
export. `sft:select` is in tasks.training.select.
"""

from __future__ import annotations

from typing import Any

from tasks.evaluate.node import SCORING
from tasks.settings.config import SteelRun, Train
from tasks.settings.errors import NodeError
from tasks.stage.node import Context, Node, Outcome
from tasks.training import engine
from tasks.training.select import select

EXAMPLES = (
    "tasks.training.mixtures",
    "tasks.training.examples",
    "model.chat_template",
    "model.tokenizer",
    "tasks.tokenize.chat",
    "tasks.tokenize.encode",
    "tasks.tokenize.packing",
)
"""Modules that decide what a variant is trained on."""


def nodes(config: SteelRun) -> list[Node]:
    """A node per variant, and the selection."""
    variants = config.sft.variants
    if not variants:
        return []
    sets = config.using("sft")
    found = []
    for name, variant in variants.items():
        if unknown := sorted(set(variant.mixture) - set(sets)):
            raise NodeError(f"sft variant {name}: {', '.join(unknown)} is no source with use: sft")
        found.append(_variant(config, name))
    return [*found, _select(config)]


def _variant(config: SteelRun, name: str) -> Node:
    mixture = config.sft.variants[name].mixture
    inputs = {"base": "pretrain", "tokenizer": "tokenize:tokenizer"}
    for source in mixture:
        inputs[source] = f"convert:{source}"
        inputs[f"{source}.drops"] = f"clean:decontaminate#{source}"
    return Node(
        name=f"sft:{name}",
        body=train_variant,
        config={
            "mixture": dict(mixture),
            "max_tokens": config.sft.max_tokens,
            "packed_tokens": config.sft.packed_tokens,
            "train": config.sft.train.model_dump(mode="json"),
        },
        inputs=inputs,
        code=(*engine.CODE, *EXAMPLES),
        resumable=True,
        exclusive=config.runtime.parallel_trainings == 1,
        on_code_change="keep" if config.keep_trained_on_code_change else "rerun",
    )


def _select(config: SteelRun) -> Node:
    from tasks.evaluate.benchmarks import reported_split

    settings = config.evaluate
    benchmarks = {name: reported_split(config.sources[name]) for name in settings.benchmarks}
    variants = list(config.sft.variants)
    return Node(
        name="sft:select",
        body=select,
        config={
            "variants": variants,
            "protocol": config.sft.select_protocol,
            "form": "chat" if settings.chat else "plain",
            "benchmarks": benchmarks,
            "max_questions": settings.max_questions,
            "batch_tokens": settings.batch_tokens,
        },
        inputs={
            **{variant: f"sft:{variant}" for variant in variants},
            "tokenizer": "tokenize:tokenizer",
            **{name: f"convert:{name}" for name in benchmarks},
        },
        code=SCORING,
    )


# -------------------------------------------------------------------------------- a variant
def train_variant(ctx: Context) -> Outcome:
    """Resolve the mixture, pack it, train from the base model, leave the export."""
    from tasks.training import examples, mixtures
    from tasks.training.launch import launch
    from tasks.work import pool

    wanted = ctx.config
    train = Train.model_validate(wanted["train"])
    work = examples.Work(
        tokenizer=ctx.inputs["tokenizer"].path,
        sets=mixtures.of_mixture(ctx),
        seed=ctx.seed,
        max_tokens=wanted["max_tokens"],
        packed_tokens=wanted["packed_tokens"],
        out=ctx.out,
    )
    ctx.progress(0.0, "packing the mixture")
    accounting = pool.submit(examples.prepare, work).result()
    rows, val_rows = accounting["train"]["rows"], accounting["val"]["rows"]
    found = pool.submit(engine.machine, ctx.runtime.device, train.precision).result()
    nproc = engine.ranks(found, ctx.runtime.sft_nproc, ctx.runtime.nproc)
    data = ctx.out / "data"
    train_file = {"path": str(data / "train-00000.arrow"), "rows": rows}
    val_file = {"path": str(data / "val-00000.arrow"), "rows": val_rows, "source": "held-out"}
    settings = engine.settings(
        ctx,
        "sft",
        train,
        [train_file],
        val_files=[val_file] if val_rows else [],
        steps=engine.steps(train, rows),
        init_from=str(ctx.inputs["base"].path / "export"),
    )
    launch(ctx, settings, nproc=nproc)
    engine.finish(ctx.out, "data")
    return _outcome(ctx, accounting, engine.execution(ctx, train, found, nproc))


def _outcome(ctx: Context, accounting: dict[str, Any], execution: dict[str, Any]) -> Outcome:
    metrics = engine.read_metrics(ctx.out)
    loss, val_loss = engine.last(metrics, "loss"), engine.last(metrics, "val_loss")
    sets = accounting["sets"]
    taken = sum(s["taken"] for s in sets.values())
    lines = ["| set | records | dropped before | taken | cut | targets |", "|---|---|---|---|---|---|"]
    lines += [
        f"| {name} | {s['records']:,} | {s['dropped'] + s['duplicates']:,} | {s['taken']:,} "
        f"| {s['truncated']:,} | {s['targets']:,} |"
        for name, s in sets.items()
    ]
    shown = f"val loss {val_loss:.3f}" if val_loss is not None else f"loss {loss:.3f}"
    return Outcome(
        headline=f"{shown}, {taken:,} examples",
        counts={
            "records_taken": taken,
            "examples": sum(s["examples"] for s in sets.values()),
            "truncated": sum(s["truncated"] for s in sets.values()),
            "rows": accounting["train"]["rows"],
            **{f"taken_{name}": s["taken"] for name, s in sets.items()},
        },
        metrics=engine.headline_metrics(metrics),
        extra={
            "mixture_digest": accounting["mixture_digest"],
            "mixture": {name: s["taken"] for name, s in sets.items()},
            **execution,
        },
        summary="\n".join(lines),
        files=["accounting.json", "sample.txt"],
    )
