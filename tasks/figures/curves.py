"""The loss curves, the paper's Figures 3 to 5 in miniature. Every function returns the text of an SVG."""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from tasks.figures import style
from tasks.figures.canvas import drawn, new, number_ticks
from tasks.figures.history import Curve, Points
from tasks.stage.names import unit_of

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

HEIGHT = 3.1
FEW, MANY = 40, 60
"""Up to FEW points each is marked; from MANY on the raw curve stands faintly behind the smooth one."""


@drawn
def pretrain_loss(curve: Curve, unigram: float | None, scores: Sequence[Mapping[str, Any]] = ()) -> Figure:
    """Training and validation loss (Figure 3), beside what a unigram model reaches. `scores`: accuracies by step, on
    an axis of their own."""
    figure, axes = new(HEIGHT)
    _line(axes, curve.loss, style.STEEL, "training loss")
    if curve.val:
        label = f"validation loss, ends at {curve.last_val:.3f}"
        axes.plot(*zip(*curve.val, strict=True), color=style.AMBER, marker="o", ms=3.2, lw=1.3, label=label)
    if unigram is not None:
        axes.axhline(
            unigram, color=style.BRICK, lw=1.1, ls=(0, (4, 3)), label=f"unigram model, {unigram:.3f}"
        )
    names = [name for name in (scores[0] if scores else {}) if name.startswith("accuracy/")]
    if names:
        right = axes.twinx()
        right.set_ylabel("accuracy, %")
        right.set_ylim(0, 100)
        for colour, name in zip(itertools.cycle((style.TEAL, style.PLUM, style.OLIVE)), names, strict=False):
            points = [(line["step"], 100 * line[name]) for line in scores if name in line]
            label = name.removeprefix("accuracy/").replace("/", ", ")
            right.plot(*zip(*points, strict=True), color=colour, marker="D", ms=2.8, lw=1.0, ls=(0, (2, 2)))
            axes.plot([], [], color=colour, marker="D", ms=2.8, lw=1.0, ls=(0, (2, 2)), label=label)
    _axes(axes, "loss (nats per token)", legend=True)
    return figure


@drawn
def sft_loss(curves: dict[str, Curve], chosen: str | None) -> Figure:
    """Loss of every SFT variant (Figure 4); the chosen one stands out."""
    figure, axes = new(HEIGHT)
    for index, (name, curve) in enumerate(curves.items()):
        variant = unit_of(name)
        picked = variant == chosen
        axes.plot(
            *zip(*smooth(curve.loss), strict=True),
            color=style.SERIES[index % len(style.SERIES)],
            lw=2.4 if picked else 1.3,
            zorder=3 if picked else 2,
            label=variant + (" (to DPO)" if picked else ""),
            **_dots(curve.loss),
        )
    _axes(axes, "loss (nats per supervised token)")
    axes.legend(loc="upper left", bbox_to_anchor=(1.0, 1.04), fontsize=8.5)  # the curves fill the whole panel
    return figure


@drawn
def dpo_curves(curve: Curve) -> Figure:
    """DPO loss, reward margin and reward accuracy (Figure 5)."""
    panels: list[tuple[str, Points, float]] = [("loss", curve.loss, math.log(2))]
    for key, label, unchanged in (
        ("rewards/margins", "reward margin", 0.0),
        ("rewards/accuracies", "reward accuracy", 0.5),
    ):
        if key in curve.other:
            panels.append((label, curve.other[key], unchanged))
    figure, grid = new(2.6, columns=len(panels))
    for axes, (label, points, unchanged), colour in zip(
        grid if len(panels) > 1 else [grid], panels, style.SERIES, strict=False
    ):
        _line(axes, points, colour, None)
        axes.axhline(unchanged, color=style.FAINT, lw=0.9, ls=(0, (4, 3)))
        _axes(axes, label)
    return figure


def smooth(points: Points, windows: int = 40) -> Points:
    """Running mean over about a fortieth of the curve, centred, never looking past its ends."""
    half = max(len(points) // windows // 2, 0)
    values = [v for _, v in points]
    out = []
    for i, (step, _) in enumerate(points):
        reach = min(half, i, len(points) - 1 - i)
        window = values[i - reach : i + reach + 1]
        out.append((step, sum(window) / len(window)))
    return out


def _line(axes: Axes, points: Points, colour: str, label: str | None) -> None:
    if len(points) > MANY:
        axes.plot(*zip(*points, strict=True), color=colour, lw=0.7, alpha=0.28)
    axes.plot(*zip(*smooth(points), strict=True), color=colour, label=label, **_dots(points))


def _dots(points: Points) -> dict[str, Any]:
    return {"marker": "o", "ms": 2.8} if len(points) <= FEW else {}


def _axes(axes: Axes, label: str, *, legend: bool = False) -> None:
    axes.set_xlabel("step")
    axes.set_ylabel(label)
    axes.grid(axis="y")
    axes.margins(x=0.01)
    axes.set_xlim(left=0)
    axes.tick_params(length=0, labelcolor=style.MUTED)
    number_ticks(axes.xaxis)
    if legend:
        axes.legend(loc="upper right", fontsize=8.5)
