"""The base model on its way: the exports of chosen steps are asked a small, fixed set of questions.

The questions are of a split that is never reported, so that looking at this curve chooses nothing by a reported score.
Leaves curve.jsonl: a line a step, with the tokens seen until then and the accuracy by each protocol.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import orjson

from model.training import lines
from tasks.evaluate import benchmarks, results, scorer
from tasks.evaluate.protocols import Form
from tasks.settings.config import Section
from tasks.settings.errors import NodeError
from tasks.stage.node import Context, Outcome
from tasks.work import told

EXPORTS = "exports"
"""Folder of a training for the models of chosen steps: step-000200, …"""
PROTOCOLS = ("paper-first-token", "cloze")
FILE = "curve.jsonl"


class Recipe(Section):
    """What decides the curve, beside the exports and the questions."""

    form: Form
    benchmarks: dict[str, str]
    """Name -> the split that is reported, and therefore not asked here."""
    families: dict[str, str]
    questions: int
    """Largest number of questions of each subject."""
    steps: dict[str, Any]
    """Which steps are exported: every so many, and single ones."""
    batch_tokens: int


def evaluate(ctx: Context) -> Outcome:
    """Ask every export; the last point is the finished model."""
    recipe: Recipe = ctx.config
    trained = ctx.inputs["model"].path
    questions = tuple(
        question
        for name, split in recipe.benchmarks.items()
        for question in benchmarks.selection(
            ctx.inputs[name].path, name, split, recipe.questions, recipe.families[name]
        )
    )
    folders = exported(trained)
    if not folders:
        raise NodeError(
            "evaluate.checkpoints asks the exports of chosen steps, and the training has left none: set "
            "runtime.export_every or runtime.export_steps, and train again"
        )
    tokens = tokens_at(trained / "metrics.jsonl")
    last = max(tokens, default=max(folders) + 1)
    folders.setdefault(last, trained / "export")
    jobs = told.Jobs()
    for _, folder in sorted(folders.items()):
        jobs.submit(
            len(questions),
            scorer.run,
            scorer.Task(
                export=folder,
                tokenizer=ctx.inputs["tokenizer"].path,
                questions=questions,
                protocols=PROTOCOLS,
                form=recipe.form,
                controls=False,
                batch_tokens=recipe.batch_tokens,
                device=ctx.runtime.device,
            ),
        )
    answers = jobs.results(told.shown(ctx, lambda done: f"{done} questions to {len(folders)} exports"))
    curve = []
    for step, given in zip(sorted(folders), answers, strict=True):
        line = point(step, tokens.get(step), results.rows(f"step {step}", given))
        curve.append(line)
        ctx.track.metrics({name: v for name, v in line.items() if name.startswith("accuracy/")}, step)
    (ctx.out / FILE).write_bytes(b"".join(orjson.dumps(line) + b"\n" for line in curve))
    return Outcome(
        headline=f"{len(curve)} steps, {len(questions)} questions of splits that are not reported",
        counts={"steps": len(curve), "questions": len(questions)},
        files=[FILE],
    )


def exported(trained: Path) -> dict[int, Path]:
    """Step -> folder of the complete exports of a training, beside the one at its end."""
    found = {}
    for folder in sorted((trained / EXPORTS).glob("step-*")):
        if (step := re.fullmatch(r"step-(\d+)", folder.name)) and (folder / "config.json").is_file():
            found[int(step[1])] = folder
    return found


def tokens_at(metrics: Path) -> dict[int, int]:
    """Step -> tokens seen, where the training logged them."""
    return {int(line["step"]): int(line["tokens"]) for line in lines.read(metrics) if "tokens" in line}


def point(step: int, tokens: int | None, rows: list[dict[str, Any]]) -> dict[str, Any]:
    """A line of the curve."""
    line: dict[str, Any] = {"step": step, "tokens": tokens, "n": {}}
    for row in rows:
        line[f"accuracy/{row['benchmark']}/{row['protocol']}"] = row["accuracy"]
        line["n"][row["benchmark"]] = row["n"]
    return line
