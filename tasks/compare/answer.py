"""compare:<model>: one model by path is asked everything; what it cost is counted."""

from __future__ import annotations

from collections.abc import Mapping
from functools import lru_cache
from pathlib import Path

import orjson

from model import place
from tasks.evaluate import benchmarks, pieces, protocols, results, scorer
from tasks.evaluate.asking import Answer
from tasks.evaluate.protocols import Form
from tasks.settings.config import Section
from tasks.settings.errors import NodeError
from tasks.stage.node import Artifact, Context, Outcome
from tasks.stage.store import file_digest

IDENTITY = "model.json"


class Recipe(Section):
    """What decides the answers, beside the files of the model and the questions."""

    model: str
    """Its name."""
    form: Form
    benchmarks: dict[str, str]
    """Name -> the split that is asked."""
    families: dict[str, str]
    """Name -> its reader."""
    protocols: dict[str, str]
    """Name -> digest of what it asks."""
    controls: bool
    shuffles: int
    max_questions: int | None
    batch_tokens: int


def body(ctx: Context) -> Outcome:
    """Ask the model; leaves results.json, answers.jsonl, by_subject.csv and model.json (digests of its files, and the recipe)."""
    recipe: Recipe = ctx.config
    path = ctx.runtime.model(recipe.model)
    files = identity(path)
    folders = {name: ctx.inputs[name].path for name in recipe.benchmarks}
    questions = asked(recipe, folders)
    task = task_of(recipe, path, questions, folders, ctx.runtime.device)
    ctx.progress(0.0, f"{len(questions)} questions")
    cost = pieces.Cost()
    answers = pieces.answers(ctx, task, sorted(files.values()), cost)
    rows = results.rows(recipe.model, answers, benchmarks.families(questions), benchmarks.chances(questions))
    (ctx.out / "answers.jsonl").write_bytes(b"".join(orjson.dumps(line) + b"\n" for line in answers))
    (ctx.out / "results.json").write_bytes(orjson.dumps(rows, option=orjson.OPT_INDENT_2) + b"\n")
    told = {"files": files, "recipe": recipe.model_dump()}
    (ctx.out / IDENTITY).write_bytes(orjson.dumps(told, option=orjson.OPT_INDENT_2) + b"\n")
    results.write_by_subject(ctx.out / "by_subject.csv", rows)
    return Outcome(
        headline=results.headline(rows),
        counts={"questions": len(questions), "answers": len(answers)},
        metrics={
            "cost/tokens": cost.tokens,
            "cost/cpu_seconds": cost.cpu_seconds,
            "cost/seconds": cost.seconds,
        },
        summary=results.markdown(rows),
        files=["results.json", "by_subject.csv"],
    )


def asked(recipe: Recipe, folders: Mapping[str, Path]) -> tuple[benchmarks.Question, ...]:
    """The questions, in order; `folders`: benchmark -> the folder with its questions.jsonl."""
    return tuple(
        question
        for name, split in recipe.benchmarks.items()
        for question in benchmarks.reported(
            folders[name], name, split, recipe.max_questions, recipe.families[name]
        )
    )


def task_of(
    recipe: Recipe,
    path: Path,
    questions: tuple[benchmarks.Question, ...],
    folders: Mapping[str, Path],
    device: str,
) -> scorer.Task:
    """What the scorer is given."""
    examples = {}
    if any(protocols.of(name).shots for name in recipe.protocols):
        for name, split in recipe.benchmarks.items():
            shots = benchmarks.shots(folders[name], name, split, recipe.families[name])
            examples |= {(name, subject): tuple(some) for subject, some in shots.items()}
    return scorer.Task(
        export=path,
        tokenizer=None,
        questions=questions,
        protocols=tuple(recipe.protocols),
        form=recipe.form,
        controls=recipe.controls,
        batch_tokens=recipe.batch_tokens,
        device=device,
        examples=examples,
        shuffles=recipe.shuffles,
        prior=True,
    )


def identity(path: Path) -> dict[str, str]:
    """File name -> sha256 of what decides a model's answers. NodeError where there is no model."""
    try:
        files = place.files(path)
    except place.ModelError as error:
        raise NodeError(f"models: {error}") from error
    return {file.name: _digest(file, file.stat().st_size, file.stat().st_mtime_ns) for file in files}


@lru_cache(maxsize=256)
def _digest(path: Path, size: int, changed: int) -> str:
    """`size` and `changed` are the key: gigabytes are not hashed twice by a process."""
    return file_digest(path)


def answers_of(artifact: Artifact) -> list[Answer]:
    """The answers of a finished node."""
    with (artifact.path / "answers.jsonl").open("rb") as lines:
        return [orjson.loads(line) for line in lines]
