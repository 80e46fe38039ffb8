"""What a training shows beside its loss: the loss by source, norms by group, the experts' load.

Every function returns the text of an SVG.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from tasks.figures import style
from tasks.figures.canvas import drawn, new, number_ticks
from tasks.figures.history import Curve, Points

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

HEIGHT = 2.9
FEW = 12
"""Fewer points than this are marked."""
DASHES = ((), (4, 2), (1, 1.5))
"""Of the first six series, the next six, and the rest: there are more sources than colours."""


@drawn
def source_loss(curve: Curve) -> Figure:
    """Training loss by source."""
    figure, axes = new(HEIGHT)
    series = curve.below("loss_by_source")
    ordered = sorted(
        series, key=lambda name: -series[name][-1][1]
    )  # the legend in the order of the lines' ends
    _lines(axes, series, ordered)
    axes.set_ylabel("loss (nats per token)")
    axes.legend(
        [f"{name}  {series[name][-1][1]:.2f}" for name in ordered],
        loc="upper left", bbox_to_anchor=(1.0, 1.04), fontsize=8, handlelength=1.8, labelspacing=0.35,
    )  # fmt: skip
    return figure


@drawn
def training_norms(curve: Curve, loads: Sequence[Sequence[float]]) -> Figure:
    """Gradient norm and relative update by group; beside them the experts' load of the last step, by layer."""
    panels = {
        "gradient norm": curve.below("grad_norm_by_group"),
        "update / weights (norms)": curve.below("update_ratio_by_group"),
    }
    panels = {label: series for label, series in panels.items() if series}
    figure, grid = new(HEIGHT, columns=len(panels) + bool(loads), share_y=False)
    grid = grid if isinstance(grid, list) else [grid]
    names = list(dict.fromkeys(name for series in panels.values() for name in series))
    for axes, (label, series) in zip(grid, panels.items(), strict=False):
        _lines(axes, series, names)
        axes.set_yscale("log")
        axes.set_title(label, fontsize=9.5, loc="left", color=style.INK)
    shown = {line.get_label(): line for axes in grid for line in axes.get_lines()}
    handles = [shown[name] for name in names]
    figure.legend(
        handles, names, loc="outside lower center", ncols=len(names), fontsize=8.5, handlelength=1.6
    )
    if loads:
        _loads(grid[-1], loads)
    return figure


def _loads(axes: Axes, loads: Sequence[Sequence[float]]) -> None:
    for layer, load in enumerate(loads):
        axes.plot([layer] * len(load), [100 * x for x in load], "o", ms=4, color=style.STEEL, alpha=0.75)
    even = 100 / len(loads[0])
    axes.axhline(even, color=style.FAINT, lw=0.9, ls=(0, (4, 3)))
    axes.set_title("load of each expert, % (dashed: even)", fontsize=9.5, loc="left", color=style.INK)
    axes.set_xlabel("layer")
    axes.set_xlim(-0.6, len(loads) - 0.4)
    axes.set_ylim(0, max(2 * even, 105 * max(max(load) for load in loads)))
    axes.grid(axis="y")
    axes.tick_params(length=0, labelcolor=style.MUTED)
    number_ticks(axes.xaxis)


def _lines(axes: Axes, series: Mapping[str, Points], names: Sequence[str]) -> None:
    """`names`: of all panels, in the order of their colours."""
    for name in (name for name in names if name in series):
        points, index = series[name], names.index(name)
        colour = style.SERIES[index % len(style.SERIES)]
        dash = DASHES[min(index // len(style.SERIES), len(DASHES) - 1)]
        mark = "o" if len(points) < FEW else ""
        style_of = (0, dash) if dash else "-"
        axes.plot(
            *zip(*points, strict=True), color=colour, lw=1.4, ls=style_of, marker=mark, ms=2.8, label=name
        )
    axes.set_xlabel("step")
    axes.grid(axis="y")
    axes.margins(x=0.01)
    axes.set_xlim(left=0)
    axes.tick_params(length=0, labelcolor=style.MUTED, which="both")
    number_ticks(axes.xaxis)
