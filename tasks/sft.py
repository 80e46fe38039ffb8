"""The sft stage: one fine-tuning per mixture, and the rule that picks one of them for DPO.

`sft:<variant>` resolves its mixture to record ids (mixture.jsonl, whose digest tells variants apart),
packs the rendered dialogues with targets on the replies alone, and trains from the base model's
export. `sft:select` asks every variant the questions of a split that is never reported, and takes
the best by one protocol; a tie goes to the earlier variant.
"""

from __future__ import annotations

from typing import Any

from tasks import engine
from tasks.config import SteelRun, Train
from tasks.node import Artifact, Context, Node, NodeError, Outcome


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
        code=(*engine.CODE, "tasks.posttrain", "tasks.tokenize"),
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
        code=("tasks.evaluate", "tasks.tokenize", "model.scoring", "model.steel"),
    )


# -------------------------------------------------------------------------------- a variant
def train_variant(ctx: Context) -> Outcome:
    """Resolve the mixture, pack it, train from the base model, leave the export."""
    from tasks import pool
    from tasks.launch import launch
    from tasks.posttrain import examples

    wanted = ctx.config
    train = Train.model_validate(wanted["train"])
    work = examples.Work(
        tokenizer=ctx.inputs["tokenizer"].path,
        sets=tuple(
            (name, ctx.inputs[name].path, ctx.inputs[f"{name}.drops"].path, share)
            for name, share in wanted["mixture"].items()
        ),
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


# --------------------------------------------------------------------------------- selection
def select(ctx: Context) -> Outcome:
    """Score the variants on questions that are not reported; choose the best."""
    import orjson

    from tasks import pool
    from tasks.evaluate import benchmarks, scorer
    from tasks.evaluate.statistics import wilson

    wanted = ctx.config
    if not wanted["benchmarks"]:
        return _only(ctx, wanted["variants"])
    questions = tuple(
        question
        for name, split in wanted["benchmarks"].items()
        for question in benchmarks.selection(ctx.inputs[name].path, name, split, wanted["max_questions"])
    )
    futures = {
        variant: pool.submit(
            scorer.run,
            scorer.Task(
                export=ctx.inputs[variant].path / "export",
                tokenizer=ctx.inputs["tokenizer"].path,
                questions=questions,
                protocols=(wanted["protocol"],),
                form=wanted["form"],
                controls=False,
                batch_tokens=wanted["batch_tokens"],
                device=ctx.runtime.device,
            ),
        )
        for variant in wanted["variants"]
    }
    right = {variant: sum(a["correct"] for a in future.result()) for variant, future in futures.items()}
    best = choose(right)
    scores = {
        variant: {
            "correct": count,
            "n": len(questions),
            "accuracy": count / len(questions),
            "ci95": list(wilson(count, len(questions))),
        }
        for variant, count in right.items()
    }
    choice = {"variant": best, "protocol": wanted["protocol"], "scores": scores}
    (ctx.out / "choice.json").write_bytes(orjson.dumps(choice, option=orjson.OPT_INDENT_2) + b"\n")
    lines = ["| variant | accuracy | 95 % interval | n |", "|---|---|---|---|"]
    for variant, row in scores.items():
        name = f"**{variant}**" if variant == best else variant
        low, high = (100 * x for x in row["ci95"])
        lines.append(f"| {name} | {100 * row['accuracy']:.1f} % | {low:.1f} to {high:.1f} % | {row['n']} |")
    return Outcome(
        headline=f"{best} ({100 * scores[best]['accuracy']:.1f} % on {len(questions)} selection questions)",
        counts={"questions": len(questions)},
        metrics={f"accuracy/{variant}": row["accuracy"] for variant, row in scores.items()},
        extra={"variant": best},
        summary="\n".join(lines),
        files=["choice.json"],
    )


def choose(scores: dict[str, float]) -> str:
    """The variant with the highest score; the first of those that share it."""
    return max(scores, key=lambda variant: scores[variant])


def _only(ctx: Context, variants: list[str]) -> Outcome:
    """Without a benchmark there is nothing to choose by, which is fine for a single variant."""
    import orjson

    if len(variants) > 1:
        raise NodeError("sft:select cannot choose between variants: evaluate.benchmarks is empty")
    choice = {"variant": variants[0], "protocol": None, "scores": {}}
    (ctx.out / "choice.json").write_bytes(orjson.dumps(choice) + b"\n")
    return Outcome(headline=f"{variants[0]} (the only one)", extra={"variant": variants[0]})


def chosen(inputs: dict[str, Artifact]) -> Artifact:
    """The artifact of the variant that `sft:select` picked, among a node's inputs."""
    return inputs[inputs["select"].read_json("choice.json")["variant"]]
