"""ablation:ffn: all trainings side by side, as JSON, Markdown, a figure and a page.

Losses are means over the seeds; the spread is the standard deviation between them. Kinds are compared
seed by seed with `token` (the same data in the same order), since seeds differ more than kinds may.
"""

from __future__ import annotations

import json
import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tasks.settings.config import LEAKY_KINDS
from tasks.stage.node import Artifact, Context, Outcome

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from tasks.figures.history import Curve, Points

AGAINST = "token"
SMOOTHED_TO = 8
"""The curves of a few hundred steps are smoothed over about an eighth of their length."""
VISIBLE_LEAK = 1e-4
"""Nats; rounding alone makes differences of 1e-6."""


def body(ctx: Context) -> Outcome:
    """Read every training, compare, write ffn-ablation.{json,html} and the figure."""
    from tasks.figures import history

    kinds, seeds = ctx.config["kinds"], ctx.config["seeds"]
    rows = [row(kind, {seed: ctx.inputs[f"{kind}-s{seed}"] for seed in seeds}) for kind in kinds]
    compare(rows)
    curves = {kind: [history.read_curve(ctx.inputs[f"{kind}-s{seed}"]) for seed in seeds] for kind in kinds}
    figure = draw(curves)
    result = {"profile": ctx.config["profile"], "seeds": seeds, "kinds": rows}
    (ctx.out / "ffn-ablation.json").write_text(json.dumps(result, indent=1) + "\n", "utf-8")
    (ctx.out / "curves.svg").write_text(figure, "utf-8")
    (ctx.out / "ffn-ablation.html").write_text(page(result, figure), "utf-8")
    best = min((r for r in rows if r["causal"]), key=lambda r: r["val_loss"], default=rows[0])
    return Outcome(
        headline=f"{len(kinds)} kinds × {len(seeds)} seeds; best causal one: {best['kind']}, "
        f"val loss {best['val_loss']:.3f}",
        metrics={f"{name}/{r['kind']}": r[name] for r in rows for name in ("val_loss", "honest", "leak")},
        summary=markdown(rows),
        files=["ffn-ablation.json", "ffn-ablation.html", "curves.svg"],
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
        "val_loss_sd": _sd(metric["val_loss"]),
        "val_loss_by_seed": dict(zip(map(str, by_seed), metric["val_loss"], strict=True)),
        "forced": statistics.fmean(metric["forced"]),
        "honest": statistics.fmean(metric["honest"]),
        "honest_by_seed": dict(zip(map(str, by_seed), metric["honest"], strict=True)),
        "leak": statistics.fmean(h - f for h, f in zip(metric["honest"], metric["forced"], strict=True)),
        "largest_difference": max(m["extra"]["largest_difference"] for m in manifests),
        "tokens_per_s": statistics.fmean(metric["tokens_per_s"]),
    }


def compare(rows: Sequence[dict[str, Any]]) -> None:
    """Add to each row the difference of its honest loss to `token`'s, seed by seed: mean and range."""
    against = next((r for r in rows if r["kind"] == AGAINST), None)
    for r in rows:
        found = [
            r["honest_by_seed"][seed] - value
            for seed, value in (against["honest_by_seed"] if against else {}).items()
        ]
        r["vs_token"] = (
            {"mean": statistics.fmean(found), "low": min(found), "high": max(found)} if found else None
        )


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


def draw(curves: Mapping[str, Sequence[Curve]]) -> str:
    """Training loss by step, smoothed: the mean over the seeds, and their range as a band."""
    from tasks.figures.canvas import drawn

    return drawn(_figure)(curves)


def _figure(curves: Mapping[str, Sequence[Curve]]) -> Figure:
    from tasks.figures import style
    from tasks.figures.canvas import new, number_ticks
    from tasks.figures.curves import smooth

    figure, axes = new(3.6)
    for colour, (kind, seeds) in zip(style.SERIES, curves.items(), strict=False):
        lines = [_after_the_fall(smooth(curve.loss, SMOOTHED_TO)) for curve in seeds]
        steps = [step for step, _ in lines[0]]
        values = list(zip(*([value for _, value in line] for line in lines), strict=True))
        dashes = (0, (4, 2)) if kind in LEAKY_KINDS else "-"
        axes.plot(steps, [statistics.fmean(v) for v in values], color=colour, ls=dashes, label=kind)
        axes.fill_between(
            steps, [min(v) for v in values], [max(v) for v in values], color=colour, alpha=0.12, lw=0
        )
    axes.set_xlabel("step")
    axes.set_ylabel("training loss, whole row (nats per token)")
    axes.grid(axis="y")
    axes.tick_params(length=0, labelcolor=style.MUTED)
    number_ticks(axes.xaxis)
    axes.legend(loc="upper right", fontsize=8.5, ncols=2)
    return figure


def _after_the_fall(points: Points) -> Points:
    """Without the first quarter, whose steep fall is the same for all and would hide the rest."""
    end = points[-1][0]
    return [point for point in points if point[0] >= end / 4]


def page(result: Mapping[str, Any], figure: str) -> str:
    """The self-contained page."""
    import base64

    import jinja2

    from tasks.figures import style

    jinja = jinja2.Environment(
        loader=jinja2.FileSystemLoader([Path(__file__).parent / "templates", style.TEMPLATES]),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    jinja.filters.update(count=style.count, big=style.big)
    uri = "data:image/svg+xml;base64," + base64.b64encode(figure.encode()).decode()
    return jinja.get_template("ffn.html.j2").render(
        fonts=style.FONTS, style=style, result=result, figure=uri, leak=leak, versus=versus
    )


def _sd(values: Sequence[float]) -> float:
    return statistics.stdev(values) if len(values) > 1 else 0.0
