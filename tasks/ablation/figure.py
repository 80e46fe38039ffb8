"""The training losses of a study by step: for each variant the mean over the seeds, and their range as a band."""

from __future__ import annotations

import statistics
from collections.abc import Collection, Mapping, Sequence
from typing import TYPE_CHECKING

from tasks.figures import style
from tasks.figures.canvas import drawn, new, number_ticks
from tasks.figures.curves import smooth
from tasks.figures.history import Curve, Points

if TYPE_CHECKING:
    from matplotlib.figure import Figure

SMOOTHED_TO = 8
"""The curves of a few hundred steps are smoothed over about an eighth of their length."""


@drawn
def losses(curves: Mapping[str, Sequence[Curve]], dashed: Collection[str] = ()) -> Figure:
    """Variant -> its curves, one a seed. `dashed`: variants whose losses mean something else than the others'."""
    figure, axes = new(3.6)
    for colour, (variant, seeds) in zip(style.SERIES, curves.items(), strict=False):
        lines = [_after_the_fall(smooth(curve.loss, SMOOTHED_TO)) for curve in seeds]
        steps = [step for step, _ in lines[0]]
        values = list(zip(*([value for _, value in line] for line in lines), strict=True))
        dashes = (0, (4, 2)) if variant in dashed else "-"
        axes.plot(steps, [statistics.fmean(v) for v in values], color=colour, ls=dashes, label=variant)
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
