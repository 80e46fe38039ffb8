"""One model is asked everything.

Leaves results.json (rows with intervals), answers.jsonl (every single answer, for paired tests) and by_subject.csv.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import orjson

from tasks.evaluate import benchmarks, results, scorer
from tasks.evaluate.protocols import Form
from tasks.settings.config import Section
from tasks.settings.errors import NodeError
from tasks.stage.node import Context, Outcome
from tasks.work import pool, told


class Recipe(Section):
    """What decides the answers, beside the model and the questions."""

    model: str
    """Its name in tables: `untrained`, `start` (the folder that the training continued), `base`, `sft:<variant>` or `dpo`."""
    form: Form
    benchmarks: dict[str, str]
    """Name -> the split that is asked."""
    protocols: list[str]
    controls: bool
    """Ask with the question removed, too."""
    max_questions: int | None
    batch_tokens: int


def evaluate(ctx: Context) -> Outcome:
    """Ask one model everything; the work happens in the pool."""
    recipe: Recipe = ctx.config
    questions = tuple(
        question
        for name, split in recipe.benchmarks.items()
        for question in benchmarks.reported(ctx.inputs[name].path, name, split, recipe.max_questions)
    )
    task = scorer.Task(
        export=_folder(ctx.inputs["model"].path, recipe.model),
        tokenizer=ctx.inputs["tokenizer"].path,
        questions=questions,
        protocols=tuple(recipe.protocols),
        form=recipe.form,
        controls=recipe.controls,
        batch_tokens=recipe.batch_tokens,
        device=ctx.runtime.device,
        untrained_seed=ctx.seed if recipe.model == "untrained" else None,
    )
    ctx.progress(0.0, f"{len(questions):,} questions")
    with told.teller() as tell:
        answers = told.result(ctx, pool.submit(scorer.run, replace(task, tell=tell)), tell)
    table = results.rows(recipe.model, answers)
    prompts_cut = sum(row.get("prompts_cut", 0) for row in table)
    if prompts_cut:
        ctx.log.warning(
            "%d of %d prompts lose their beginning: they are longer than the model's context",
            prompts_cut,
            len(answers),
        )

    with (ctx.out / "answers.jsonl").open("wb") as out:
        for line in answers:
            out.write(orjson.dumps(line) + b"\n")
    (ctx.out / "results.json").write_bytes(orjson.dumps(table, option=orjson.OPT_INDENT_2) + b"\n")
    results.write_by_subject(ctx.out / "by_subject.csv", table)
    return Outcome(
        headline=results.headline(table),
        counts={"questions": len(questions), "answers": len(answers), "prompts_cut": prompts_cut},
        metrics={_metric(row): row["accuracy"] for row in table},
        summary=results.markdown(table),
        files=["results.json", "by_subject.csv"],
    )


def _folder(trained: Path, model: str) -> Path:
    """The model of a training; for `start` what it began with."""
    if model != "start":
        return trained / "export"
    folder = Path(orjson.loads((trained / "CONFIG.json").read_bytes())["init_from"])
    if not (folder / "config.json").is_file():
        raise NodeError(f"the model that the training began with is not in {folder} any more")
    return folder


def _metric(row: dict[str, Any]) -> str:
    """A name that MLflow takes: letters, digits, dashes, dots, slashes."""
    control = f".{row['scoring']}" if row.get("scoring") else ""
    return f"accuracy/{row['benchmark']}/{row['protocol']}{control}"
