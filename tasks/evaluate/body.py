"""One model is asked everything.

Leaves results.json (rows with intervals), answers.jsonl (every single answer, for paired tests), by_subject.csv and,
where it is asked for, submission-<benchmark>.json.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import orjson

from tasks.evaluate import benchmarks, pieces, protocols, results, scorer, submission
from tasks.evaluate.asking import Answer
from tasks.evaluate.benchmarks import Question
from tasks.evaluate.protocols import Form
from tasks.settings.config import Section
from tasks.settings.errors import NodeError
from tasks.stage.node import Context, Outcome
from tasks.work import told


class Recipe(Section):
    """What decides the answers, beside the model and the questions."""

    model: str
    """Its name in tables: `untrained`, `start` (the folder that the training continued), `base`, `sft:<variant>` or `dpo`."""
    form: Form
    benchmarks: dict[str, str]
    """Name -> the split that is asked."""
    families: dict[str, str]
    """Name -> its reader: whose texts and subjects it has."""
    protocols: dict[str, str]
    """Name -> digest of what it asks and how it reads the answer."""
    controls: bool
    """Ask with the question removed, too."""
    shuffles: int
    """Ask in so many other orders of the options, too."""
    submissions: list[str]
    """C-Eval benchmarks whose unlabelled split is answered for the authors' server."""
    max_questions: int | None
    batch_tokens: int


def evaluate(ctx: Context) -> Outcome:
    """Ask one model everything; the work happens in the pool, a piece at a time (pieces.py)."""
    recipe: Recipe = ctx.config
    questions = [
        question
        for name, split in recipe.benchmarks.items()
        for question in benchmarks.reported(
            ctx.inputs[name].path, name, split, recipe.max_questions, recipe.families[name]
        )
    ]
    unlabelled = {
        name: submission.questions(ctx.inputs[name].path, name, recipe.families[name])
        for name in recipe.submissions
    }
    ctx.progress(0.1, f"{len(questions)} questions")
    asked = _task(ctx, tuple(questions), tuple(recipe.protocols))
    # what a training began with is asked by way of its artifact, and is another model
    which = "start" if recipe.model == "start" else "export"
    digests = [ctx.inputs["model"].digest, ctx.inputs["tokenizer"].digest]
    answers = pieces.answers(ctx, asked, [which, *digests])
    table = results.rows(recipe.model, answers, benchmarks.families(questions), benchmarks.chances(questions))
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
    files = ["results.json", "by_subject.csv"]
    for name, hidden in unlabelled.items():
        files.append(submission.write(ctx.out, name, hidden, _submitted(ctx, name, hidden)))
    return Outcome(
        headline=results.headline(table),
        counts={"questions": len(questions), "answers": len(answers), "prompts_cut": prompts_cut},
        metrics=_metrics(table),
        extra={
            "protocols": {
                name: {"version": protocols.of(name).version, "digest": digest}
                for name, digest in recipe.protocols.items()
            }
        },
        summary=results.markdown(table),
        files=files,
    )


def _submitted(ctx: Context, name: str, hidden: Sequence[Question]) -> list[Answer]:
    jobs, protocol = told.Jobs(), submission.protocol(ctx.config.protocols)
    jobs.submit(len(hidden), scorer.run, _task(ctx, tuple(hidden), (protocol,), plain=True))
    [given] = jobs.results(
        told.shown(ctx, lambda done: f"{done} questions of {name} for its authors' server", 0.8)
    )
    return given


def _folder(trained: Path, model: str) -> Path:
    """The model of a training; for `start` what it began with."""
    if model != "start":
        return trained / "export"
    folder = Path(orjson.loads((trained / "CONFIG.json").read_bytes())["init_from"])
    if not (folder / "config.json").is_file():
        raise NodeError(f"the model that the training began with is not in {folder} any more")
    return folder


def _task(
    ctx: Context, questions: tuple[Question, ...], asked_by: tuple[str, ...], plain: bool = False
) -> scorer.Task:
    """`plain`: without controls and other orders."""
    recipe: Recipe = ctx.config
    examples: dict[tuple[str, str], Any] = {}
    if any(protocols.of(name).shots for name in asked_by):
        for name, split in recipe.benchmarks.items():
            found = benchmarks.shots(ctx.inputs[name].path, name, split, recipe.families[name])
            examples |= {(name, subject): tuple(shots) for subject, shots in found.items()}
    return scorer.Task(
        export=_folder(ctx.inputs["model"].path, recipe.model),
        tokenizer=ctx.inputs["tokenizer"].path,
        questions=questions,
        protocols=asked_by,
        form=recipe.form,
        controls=recipe.controls and not plain,
        batch_tokens=recipe.batch_tokens,
        device=ctx.runtime.device,
        untrained_seed=ctx.seed if recipe.model == "untrained" else None,
        examples=examples,
        shuffles=0 if plain else recipe.shuffles,
        prior=not plain,
    )


def _metrics(table: list[dict[str, Any]]) -> dict[str, float]:
    """For MLflow: names of letters, digits, dashes, dots and slashes."""
    metrics = {}
    for row in table:
        control = f".{row['scoring']}" if row.get("scoring") else ""
        name = f"{row['benchmark']}/{row['protocol']}{control}"
        metrics[f"accuracy/{name}"] = row["accuracy"]
        if "unparsed" in row:
            metrics[f"unparsed/{name}"] = row["unparsed"] / row["n"]
    return metrics
