"""sft:select: which fine-tuned variant goes on to DPO.

Every variant is asked the questions of a split that is never reported; the best by one protocol is
taken, and a tie goes to the earlier variant. The artifact is a pointer (choice.json), not a copy.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal

from tasks.settings.config import Section
from tasks.settings.errors import NodeError
from tasks.stage.node import Artifact, Context, Outcome


class Recipe(Section):
    """What decides the choice, beside the variants and the questions."""

    variants: list[str]
    protocol: str
    form: Literal["chat", "plain"]
    benchmarks: dict[str, str]
    """Name -> the split that is reported, and therefore not asked here."""
    families: dict[str, str]
    """Name -> its reader: whose texts it has."""
    max_questions: int | None
    batch_tokens: int


def select(ctx: Context) -> Outcome:
    """Score the variants on questions that are not reported; choose the best."""
    import orjson

    from tasks.evaluate import benchmarks, pieces, scorer
    from tasks.evaluate.statistics import wilson

    recipe: Recipe = ctx.config
    if not recipe.benchmarks or len(recipe.variants) == 1:
        return _only(ctx, recipe.variants)
    questions = tuple(
        question
        for name, split in recipe.benchmarks.items()
        for question in benchmarks.selection(
            ctx.inputs[name].path, name, split, recipe.max_questions, recipe.families[name]
        )
    )
    ctx.progress(0.0, f"{len(questions)} questions, {len(recipe.variants)} variants")
    tokenizer = ctx.inputs["tokenizer"]
    asked = []
    for variant in recipe.variants:
        model = ctx.inputs[variant]
        task = scorer.Task(
            export=model.path / "export",
            tokenizer=tokenizer.path,
            questions=questions,
            protocols=(recipe.protocol,),
            form=recipe.form,
            controls=False,
            batch_tokens=recipe.batch_tokens,
            device=ctx.runtime.device,
        )
        asked.append((task, [model.digest, tokenizer.digest]))
    answers = pieces.answers_of_each(ctx, asked)
    right = {v: sum(a["correct"] for a in each) for v, each in zip(recipe.variants, answers, strict=True)}
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
    choice = {"variant": best, "protocol": recipe.protocol, "scores": scores}
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


def choose(scores: Mapping[str, float]) -> str:
    """The variant with the highest score; the first of those that share it."""
    return max(scores, key=lambda variant: scores[variant])


def _only(ctx: Context, variants: list[str]) -> Outcome:
    """A single variant is not asked: there is nothing to choose. Several need a benchmark to be chosen by."""
    import orjson

    if len(variants) > 1:
        raise NodeError(
            "sft:select cannot choose between variants: evaluate.benchmarks names no benchmark with options"
        )
    choice = {"variant": variants[0], "protocol": None, "scores": {}}
    (ctx.out / "choice.json").write_bytes(orjson.dumps(choice) + b"\n")
    return Outcome(headline=f"{variants[0]} (the only one)", extra={"variant": variants[0]})


def chosen(inputs: Mapping[str, Artifact]) -> Artifact:
    """The artifact of the variant that `sft:select` picked, among a node's inputs."""
    return inputs[inputs["select"].read_json("choice.json")["variant"]]
