"""One cell of the study: fine-tune on so many supervised tokens of each language, then ask the benchmarks."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

import orjson

from tasks.evaluate import benchmarks, scorer
from tasks.settings.config import LanguageRatio, Section, Train
from tasks.settings.errors import NodeError
from tasks.stage.node import Context, Outcome
from tasks.training import engine, examples, languages, mixtures
from tasks.work import pool, told

ANSWERS = "answers.jsonl"


class Cell(Section):
    """One share in one arm."""

    arm: Literal["total", "chinese"]
    share: int
    """Per cent Chinese, of the supervised tokens."""

    def unit(self, seed: int) -> str:
        """Name of the training within the stage, and its role as an input of the comparison."""
        return f"{self.arm}-{self.share}-s{seed}"


class Recipe(Section):
    """What decides a cell, beside the base model, the records and the questions."""

    cell: Cell
    smallest: int
    """The smallest positive share of the study, in per cent."""
    seed: int
    """Of the records' choice and of their order."""
    languages: dict[str, str]
    tokens: int | None
    max_tokens: int
    packed_tokens: int
    loss_on: str
    too_long: str
    train: Train
    protocol: str
    form: Literal["chat", "plain"]
    benchmarks: dict[str, str]
    families: dict[str, str]
    max_questions: int | None
    batch_tokens: int


class Noisy(Recipe):
    """With noise on the embeddings; a recipe of its own, so that the others keep their fingerprints."""

    neftune_alpha: float


def cells(settings: LanguageRatio) -> list[Cell]:
    """All arms with their shares; with constant Chinese tokens there is no share of 0."""
    return [Cell(arm=a, share=s) for a in settings.arms for s in settings.shares if s or a == "total"]


def budgets(cell: Cell, smallest: int, total: int) -> dict[str, int]:
    """Language -> supervised tokens. `total`: of both together, where they are constant."""
    chinese = total * cell.share // 100
    if cell.arm == "total":
        return {"zh": chinese, "en": total - chinese}
    constant = total * smallest // 100
    return {"zh": constant, "en": constant * (100 - cell.share) // cell.share}


def body(ctx: Context) -> Outcome:
    """Choose the records, train from the base model, ask every question."""
    recipe: Recipe = ctx.config
    ctx.progress(0.0, "choosing records by their supervised tokens")
    accounting = pool.submit(prepare, recipe, _work(ctx, recipe)).result()
    rows = accounting["train"]["rows"]
    names = examples.source_names(accounting["sets"])
    file = {"path": str(ctx.out / "data" / "train-00000.arrow"), "rows": rows, "sources": names}
    trained = engine.train(
        ctx,
        "sft",
        recipe.train,
        [file],
        nproc=ctx.runtime.sft_nproc or ctx.runtime.nproc,
        scratch=["data"],
        steps=engine.steps(recipe.train, rows),
        init_from=str(ctx.inputs["base"].path / "export"),
        neftune_alpha=recipe.neftune_alpha if isinstance(recipe, Noisy) else 0.0,
        seed=recipe.seed,
    )
    questions = _questions(ctx, recipe)
    task = scorer.Task(
        export=ctx.out / "export",
        tokenizer=ctx.inputs["tokenizer"].path,
        questions=questions,
        protocols=(recipe.protocol,),
        form=recipe.form,
        controls=False,
        batch_tokens=recipe.batch_tokens,
        device=ctx.runtime.device,
    )
    jobs = told.Jobs()
    jobs.submit(len(questions), scorer.run, task)
    [given] = jobs.results(told.shown(ctx, lambda done: f"trained; {done} questions", 0.95))
    language = {(q.row, q.id): q.language for q in questions}
    answers = [
        {
            "benchmark": a["benchmark"],
            "id": a["id"],
            "language": language[a["benchmark"], a["id"]],
            "correct": bool(a["correct"]),
        }
        for a in given
    ]
    (ctx.out / ANSWERS).write_bytes(b"".join(orjson.dumps(a) + b"\n" for a in answers))
    accuracy = {
        each: sum(a["correct"] for a in mine) / len(mine)
        for each in sorted({a["language"] for a in answers})
        if (mine := [a for a in answers if a["language"] == each])
    }
    targets = supervised(accounting, recipe.languages)
    return Outcome(
        headline=", ".join(f"{each} {100 * share:.1f} %" for each, share in accuracy.items()),
        counts={"answers": len(answers), "rows": rows, **{f"targets_{k}": v for k, v in targets.items()}},
        metrics={**trained.headline(), **{f"accuracy/{each}": share for each, share in accuracy.items()}},
        extra={"mixture_digest": accounting["mixture_digest"], "targets": targets, **trained.execution},
        files=["accounting.json", "sample.txt"],
    )


def prepare(recipe: Recipe, work: languages.Work) -> dict:
    """Pack the cell's examples; in a worker. NodeError where the study asks for more than there is."""
    there = languages.available(work)
    most = min(there.values())
    if recipe.tokens and recipe.tokens > most:
        amounts = ", ".join(f"{name} {n:,}" for name, n in there.items())
        raise NodeError(
            f"language_ratio.tokens is {recipe.tokens:,}, and the sets hold fewer supervised tokens: {amounts}"
        )
    given = budgets(recipe.cell, recipe.smallest, recipe.tokens or most)
    accounting = examples.prepare(
        languages.Work(**{**vars(work), "budgets": given})  # the same sets, with what this cell takes
    )
    return accounting


def supervised(accounting: dict, language: dict[str, str]) -> dict[str, int]:
    """Language -> supervised tokens that were packed."""
    found = dict.fromkeys(sorted(set(language.values())), 0)
    for name, counts in accounting["sets"].items():
        found[language[name]] += counts["targets"]
    return found


def _work(ctx: Context, recipe: Recipe) -> languages.Work:
    return languages.Work(
        tokenizer=Path(ctx.inputs["tokenizer"].path),
        sets=mixtures.of_mixture(dict.fromkeys(recipe.languages, 1.0), ctx.inputs),
        seed=recipe.seed,
        max_tokens=recipe.max_tokens,
        packed_tokens=recipe.packed_tokens,
        out=ctx.out,
        holds_out=False,
        last_turn=recipe.loss_on == "last_reply",
        too_long=recipe.too_long,
        languages=recipe.languages,
        budgets=dict.fromkeys(sorted(set(recipe.languages.values())), 0),
    )


def _questions(ctx: Context, recipe: Recipe) -> tuple[benchmarks.Question, ...]:
    """Those of the reported splits, without the control questions: what no text states, no language teaches."""
    return tuple(
        question
        for name, split in recipe.benchmarks.items()
        for question in benchmarks.reported(
            ctx.inputs[name].path, name, split, recipe.max_questions, recipe.families[name]
        )
        if not question.held_out_fact
    )
