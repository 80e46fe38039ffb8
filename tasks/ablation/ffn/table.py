"""ablation:ffn: all trainings side by side, as JSON, Markdown, a figure and a page.

Losses are means over the seeds; the spread is the standard deviation between them. Every kind is compared with
`token`, seed by seed.
"""

from __future__ import annotations

import json
import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from tasks.ablation import seeds as over
from tasks.settings.config import LEAKY_KINDS, FfnKind, Section
from tasks.stage.node import Artifact, Context, Outcome

NUMBERS, PAGE, FIGURE = "ffn-ablation.json", "ffn-ablation.html", "curves.svg"
AGAINST = "token"
VISIBLE_LEAK = 1e-4
"""Nats; rounding alone makes differences of 1e-6."""


class Recipe(Section):
    """Which trainings are compared."""

    kinds: list[FfnKind]
    seeds: list[int]
    profile: str
    """Shown on the page."""


def body(ctx: Context) -> Outcome:
    """Read every training, compare, write ffn-ablation.{json,html} and the figure."""
    from tasks.ablation import figure
    from tasks.ablation.study import unit
    from tasks.figures import history

    recipe: Recipe = ctx.config
    trained = {kind: {seed: ctx.inputs[unit(kind, seed)] for seed in recipe.seeds} for kind in recipe.kinds}
    rows = [row(kind, by_seed) for kind, by_seed in trained.items()]
    compare(rows)
    curves = {kind: [history.read_curve(a) for a in by_seed.values()] for kind, by_seed in trained.items()}
    drawing = figure.losses(curves, dashed=LEAKY_KINDS)
    result = {"profile": recipe.profile, "seeds": recipe.seeds, "kinds": rows}
    (ctx.out / NUMBERS).write_text(json.dumps(result, indent=1) + "\n", "utf-8")
    (ctx.out / FIGURE).write_text(drawing, "utf-8")
    (ctx.out / PAGE).write_text(page(result, drawing), "utf-8")
    best = min((r for r in rows if r["causal"]), key=lambda r: r["val_loss"], default=rows[0])
    return Outcome(
        headline=f"{len(rows)} kinds × {len(recipe.seeds)} seeds; best causal one: {best['kind']}, "
        f"val loss {best['val_loss']:.3f}",
        metrics={f"{name}/{r['kind']}": r[name] for r in rows for name in ("val_loss", "honest", "leak")},
        summary=markdown(rows),
        files=[NUMBERS, PAGE, FIGURE],
    )


def row(kind: str, by_seed: Mapping[int, Artifact]) -> dict[str, Any]:
    """One kind: sizes, and its losses over the seeds."""
    manifests = [artifact.manifest for artifact in by_seed.values()]
    first = manifests[0]["extra"]
    metric = {
        name: [m["metrics"][key] for m in manifests]
        for name, key in {
            "val_loss": "val_loss",
            "forced": "loss/forced",
            "honest": "loss/honest",
            "tokens_per_s": "tokens_per_s",
        }.items()
    }
    return {
        "kind": kind,
        "causal": kind not in LEAKY_KINDS,
        "parameters": first["parameters"],
        "flops_per_token": first["flops_per_token"],
        "document_length": first["document_length"],
        "tokens": manifests[0]["metrics"]["tokens"],
        "targets": first["targets"],
        "val_loss": statistics.fmean(metric["val_loss"]),
        "val_loss_sd": over.sd(metric["val_loss"]),
        "val_loss_by_seed": dict(zip(map(str, by_seed), metric["val_loss"], strict=True)),
        "forced": statistics.fmean(metric["forced"]),
        "honest": statistics.fmean(metric["honest"]),
        "honest_by_seed": dict(zip(map(str, by_seed), metric["honest"], strict=True)),
        "leak": statistics.fmean(h - f for h, f in zip(metric["honest"], metric["forced"], strict=True)),
        "largest_difference": max(m["extra"]["largest_difference"] for m in manifests),
        "tokens_per_s": statistics.fmean(metric["tokens_per_s"]),
    }


def compare(rows: Sequence[dict[str, Any]]) -> None:
    """Add to each row the difference of its honest loss to `token`'s; None where `token` was not trained."""
    against = next((r for r in rows if r["kind"] == AGAINST), None)
    for r in rows:
        r["vs_token"] = over.paired(r["honest_by_seed"], against["honest_by_seed"]) if against else None


def markdown(rows: Sequence[Mapping[str, Any]]) -> str:
    """The table for people."""
    lines = [
        "| ffn | causal | parameters | MFLOP a token | val loss (sd) | whole row | prefix only | leak "
        "| against token, prefix only |",
        "|---|---|---:|---:|---:|---:|---:|---:|---:|",
    ]
    for r in rows:
        lines.append(
            f"| {r['kind']} | {'yes' if r['causal'] else '**no**'} | {r['parameters']:,} "
            f"| {r['flops_per_token'] / 1e6:,.1f} | {r['val_loss']:.3f} ({r['val_loss_sd']:.3f}) "
            f"| {r['forced']:.3f} | {r['honest']:.3f} | {leak(r)} | {versus(r)} |"
        )
    return "\n".join(lines)


def leak(r: Mapping[str, Any]) -> str:
    """How much better the whole row looks than the prefix alone, in nats."""
    return f"{r['leak']:+.3f}" if abs(r["leak"]) > VISIBLE_LEAK else "0"


def versus(r: Mapping[str, Any]) -> str:
    """Difference to `token` with its range over the seeds."""
    d = r["vs_token"]
    if d is None or r["kind"] == AGAINST:
        return "–"
    return f"{d['mean']:+.3f} ({d['low']:+.3f} … {d['high']:+.3f})"


def page(result: Mapping[str, Any], figure: str) -> str:
    """The self-contained page."""
    from tasks.ablation.page import render

    template = Path(__file__).parent / "templates" / "ffn.html.j2"
    return render(template, figure, profile=result["profile"], result=result, leak=leak, versus=versus)
