"""ratio:table: both languages' accuracy by the share of Chinese, with intervals, and where the curves are flat.

A point is the mean over questions and seeds. Its variance is that of the questions (each with its mean over the seeds)
over their number, plus that of the seeds' means over theirs; the two overlap a little, so intervals err on the wide
side. Two shares are compared question by question and seed by seed; the 95 % of these intervals hold for all pairs of
shares of a curve together (Bonferroni).
"""

from __future__ import annotations

import json
import math
import statistics
from collections.abc import Mapping, Sequence
from itertools import combinations
from pathlib import Path
from typing import Any

import orjson

from tasks.settings.config import Section
from tasks.settings.errors import NodeError
from tasks.stage.node import Artifact, Context, Outcome

NUMBERS, PAGE, FIGURE = "language-ratio.json", "language-ratio.html", "curves.svg"
LANGUAGES = {"zh": "Chinese questions", "en": "English questions"}
ARMS = {"total": "tokens of both languages constant", "chinese": "Chinese tokens constant"}

Matrix = Sequence[Sequence[float]]
"""[seeds][questions], 1 for a right answer."""


class Recipe(Section):
    """Which trainings are compared."""

    arms: list[str]
    shares: dict[str, list[int]]
    """Arm -> its shares, rising."""
    seeds: list[int]
    margin: float
    profile: str
    """Shown on the page."""


def body(ctx: Context) -> Outcome:
    """Read every cell, compare, write language-ratio.{json,html} and the figure."""
    from tasks.ablation.language_ratio import figure
    from tasks.ablation.language_ratio.train import Cell

    recipe: Recipe = ctx.config
    rows, curves = [], []
    for arm in recipe.arms:
        cells = {
            share: [ctx.inputs[Cell(arm=arm, share=share).unit(seed)] for seed in recipe.seeds]
            for share in recipe.shares[arm]
        }
        right = {share: answers(artifacts) for share, artifacts in cells.items()}
        for share, artifacts in cells.items():
            rows.append(row(arm, share, artifacts, right[share]))
        for language in LANGUAGES:
            by_share = {share: found[language] for share, found in right.items() if language in found}
            if by_share:
                curves.append(curve(arm, language, by_share, recipe.margin))
    if not curves:
        raise NodeError("no benchmark of the study has questions in zh or en")
    drawing = figure.accuracies(rows)
    result = {**recipe.model_dump(), "rows": rows, "curves": curves}
    (ctx.out / NUMBERS).write_text(json.dumps(result, indent=1) + "\n", "utf-8")
    (ctx.out / FIGURE).write_text(drawing, "utf-8")
    (ctx.out / PAGE).write_text(page(result, drawing), "utf-8")
    metrics = {
        f"accuracy/{r['arm']}-{r['share']}/{name}": a["mean"]
        for r in rows
        for name, a in r["accuracy"].items()
    }
    return Outcome(
        headline=f"{len(rows)} mixtures × {len(recipe.seeds)} seeds; {curves[0]['statement']}",
        metrics=metrics,
        summary=markdown(rows) + "\n\n" + "\n".join(f"- {c['statement']}" for c in curves),
        files=[NUMBERS, PAGE, FIGURE],
    )


def answers(artifacts: Sequence[Artifact]) -> dict[str, Matrix]:
    """Language -> right or wrong by seed and question. NodeError where seeds were asked different questions."""
    from tasks.ablation.language_ratio.train import ANSWERS

    each = []
    for artifact in artifacts:
        lines = [orjson.loads(line) for line in (artifact.path / ANSWERS).read_bytes().splitlines()]
        each.append({(a["language"], a["benchmark"], a["id"]): float(a["correct"]) for a in lines})
    keys = sorted(each[0])
    if any(sorted(found) != keys for found in each):
        raise NodeError("trainings of the study were asked different questions")
    languages = sorted({key[0] for key in keys} & LANGUAGES.keys())
    return {name: [[f[k] for k in keys if k[0] == name] for f in each] for name in languages}


def row(arm: str, share: int, artifacts: Sequence[Artifact], right: Mapping[str, Matrix]) -> dict[str, Any]:
    """One mixture: the tokens it was trained on, and the accuracy in each language."""
    targets = [a.manifest["extra"]["targets"] for a in artifacts]
    tokens = {name: round(statistics.fmean(t[name] for t in targets)) for name in LANGUAGES}
    return {
        "arm": arm,
        "share": share,
        "targets": tokens,
        "real_share": tokens["zh"] / max(1, sum(tokens.values())),
        "records": round(statistics.fmean(a.manifest["counts"]["rows"] for a in artifacts)),
        "accuracy": {name: estimate(values) for name, values in right.items()},
    }


def estimate(values: Matrix, z: float | None = None) -> dict[str, Any]:
    """Mean of [seeds][questions] with its interval (see above). `z`: of the interval; None: that of 95 %."""
    z = statistics.NormalDist().inv_cdf(0.975) if z is None else z
    seeds = [statistics.fmean(line) for line in values]
    questions = [statistics.fmean(column) for column in zip(*values, strict=True)]
    variance = _variance(questions) / len(questions) + _variance(seeds) / len(seeds)
    mean, spread = statistics.fmean(seeds), z * math.sqrt(variance)
    return {"mean": mean, "ci95": [mean - spread, mean + spread], "by_seed": seeds, "n": len(questions)}


def curve(arm: str, language: str, by_share: Mapping[int, Matrix], margin: float) -> dict[str, Any]:
    """All pairs of shares compared, and in words where the curve is flat."""
    shares = list(by_share)
    pairs = list(combinations(shares, 2))
    z = statistics.NormalDist().inv_cdf(1 - 0.025 / max(1, len(pairs)))
    differences = {}
    for low, high in pairs:
        change = [
            [b - a for a, b in zip(one, other, strict=True)]
            for one, other in zip(by_share[low], by_share[high], strict=True)
        ]
        differences[low, high] = estimate(change, z)
    flat = longest(shares, {pair: _inside(d["ci95"], margin) for pair, d in differences.items()})
    same = longest(shares, {pair: d["ci95"][0] <= 0 <= d["ci95"][1] for pair, d in differences.items()})
    return {
        "arm": arm,
        "language": language,
        "differences": [
            {"from": low, "to": high, "mean": d["mean"], "ci95": d["ci95"]}
            for (low, high), d in differences.items()
        ],
        "flat": flat,
        "no_difference_seen": same,
        "statement": f"{ARMS[arm]}, {LANGUAGES[language]}: {_words(flat, same, margin) if pairs else 'one share, nothing to compare'}",
    }


def longest(shares: Sequence[int], holds: Mapping[tuple[int, int], bool]) -> list[int]:
    """The longest run of neighbouring shares (the first of equals) for all of whose pairs it holds; [] below two."""
    best: list[int] = []
    for start in range(len(shares)):
        for end in range(start + 2, len(shares) + 1):
            run = list(shares[start:end])
            if len(run) > len(best) and all(holds[pair] for pair in combinations(run, 2)):
                best = run
    return best


def _inside(interval: Sequence[float], margin: float) -> bool:
    return -margin <= interval[0] and interval[1] <= margin


def _words(flat: Sequence[int], same: Sequence[int], margin: float) -> str:
    points = f"{100 * margin:g} points"
    if flat:
        return f"flat from {flat[0]} to {flat[-1]} % Chinese (all differences surely within {points})"
    if same:
        return (
            f"no difference is seen from {same[0]} to {same[-1]} % Chinese, but none is ruled out either: the intervals "
            f"are wider than {points}"
        )
    return "flat nowhere: all neighbouring shares differ"


def _variance(values: Sequence[float]) -> float:
    return statistics.variance(values) if len(values) > 1 else 0.0


def shown(accuracy: Mapping[str, Any] | None) -> str:
    """An accuracy with its interval, in per cent."""
    if accuracy is None:
        return "–"
    low, high = (100 * x for x in accuracy["ci95"])
    return f"{100 * accuracy['mean']:.1f} ({low:.1f} to {high:.1f})"


def markdown(rows: Sequence[Mapping[str, Any]]) -> str:
    """The table for people."""
    lines = [
        "| arm | Chinese % | Chinese targets | English targets | zh accuracy % | en accuracy % |",
        "|---|---:|---:|---:|---:|---:|",
    ]
    for r in rows:
        tokens, accuracy = r["targets"], r["accuracy"]
        lines.append(
            f"| {r['arm']} | {r['share']} | {tokens['zh']:,} | {tokens['en']:,} "
            f"| {shown(accuracy.get('zh'))} | {shown(accuracy.get('en'))} |"
        )
    return "\n".join(lines)


def page(result: Mapping[str, Any], figure: str) -> str:
    """The self-contained page."""
    from tasks.ablation.page import render

    template = Path(__file__).parent / "templates" / "language_ratio.html.j2"
    return render(template, figure, profile=result["profile"], result=result, shown=shown, arms=ARMS)
