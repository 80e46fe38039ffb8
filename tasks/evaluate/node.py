"""The evaluate stage: every model is asked every benchmark, by every protocol and its control.

One node a model: `evaluate:untrained`, `evaluate:base`, `evaluate:sft-<variant>`, `evaluate:dpo`.
Each writes results.json (rows with intervals), answers.jsonl (every single answer, for paired tests)
and by_subject.csv.
"""

from __future__ import annotations

from tasks.evaluate.statistics import mcnemar_exact, paired, wilson
from tasks.settings.config import SteelRun
from tasks.settings.errors import NodeError
from tasks.stage.node import Context, Node, Outcome

__all__ = ["SCORING", "mcnemar_exact", "nodes", "paired", "wilson"]

SCORING = (
    "tasks.evaluate",
    "model.chat_template",
    "model.tokenizer",
    "tasks.tokenize.chat",
    "tasks.tokenize.encode",
    "model.scoring",
    "model.steel",
    "model.training.parallel",
)
"""Modules that decide a model's answers."""


def nodes(config: SteelRun) -> list[Node]:
    """A node for each model of the run."""
    if not config.evaluate.benchmarks:
        return []
    found = [_node(config, "untrained", "pretrain"), _node(config, "base", "pretrain")]
    found += [_node(config, f"sft-{variant}", f"sft:{variant}") for variant in config.sft.variants]
    if config.sft.variants and config.dpo.mixture:
        found.append(_node(config, "dpo", "dpo:train"))
    return found


def _node(config: SteelRun, unit: str, model_from: str) -> Node:
    from tasks.evaluate.benchmarks import reported_split

    settings = config.evaluate
    for name in settings.benchmarks:
        if name not in config.sources or config.sources[name].use != "benchmark":
            raise NodeError(f"evaluate.benchmarks names {name!r}, which is no source with use: benchmark")
    tuned = unit not in ("untrained", "base")
    return Node(
        name=f"evaluate:{unit}",
        body=evaluate,
        config={
            "model": unit.replace("sft-", "sft:", 1) if unit.startswith("sft-") else unit,
            "form": "chat" if tuned and settings.chat else "plain",
            "benchmarks": {name: reported_split(config.sources[name]) for name in settings.benchmarks},
            "protocols": list(settings.protocols),
            "controls": settings.controls == "all"
            or (settings.controls == "reported" and not unit.startswith("sft-")),
            "max_questions": settings.max_questions,
            "batch_tokens": settings.batch_tokens,
        },
        inputs={
            "model": model_from,
            "tokenizer": "tokenize:tokenizer",
            **{name: f"convert:{name}" for name in settings.benchmarks},
        },
        code=SCORING,
    )


def evaluate(ctx: Context) -> Outcome:
    """Ask one model everything; the work happens in the pool."""
    import orjson

    from tasks.evaluate import benchmarks, results, scorer
    from tasks.work import pool

    wanted = ctx.config
    questions = tuple(
        question
        for name, split in wanted["benchmarks"].items()
        for question in benchmarks.reported(ctx.inputs[name].path, name, split, wanted["max_questions"])
    )
    task = scorer.Task(
        export=ctx.inputs["model"].path / "export",
        tokenizer=ctx.inputs["tokenizer"].path,
        questions=questions,
        protocols=tuple(wanted["protocols"]),
        form=wanted["form"],
        controls=wanted["controls"],
        batch_tokens=wanted["batch_tokens"],
        device=ctx.runtime.device,
        untrained_seed=ctx.seed if wanted["model"] == "untrained" else None,
    )
    ctx.progress(0.1, f"{len(questions)} questions")
    answers = pool.submit(scorer.run, task).result()
    table = results.rows(wanted["model"], answers)

    with (ctx.out / "answers.jsonl").open("wb") as out:
        for line in answers:
            out.write(orjson.dumps(line) + b"\n")
    (ctx.out / "results.json").write_bytes(orjson.dumps(table, option=orjson.OPT_INDENT_2) + b"\n")
    results.write_by_subject(ctx.out / "by_subject.csv", table)
    return Outcome(
        headline=results.headline(table),
        counts={"questions": len(questions), "answers": len(answers)},
        metrics={_metric(row): row["accuracy"] for row in table},
        summary=results.markdown(table),
        files=["results.json", "by_subject.csv"],
    )


def _metric(row: dict) -> str:
    """A name that MLflow takes: letters, digits, dashes, dots, slashes."""
    control = f".{row['scoring']}" if row.get("scoring") else ""
    return f"accuracy/{row['benchmark']}/{row['protocol']}{control}"
