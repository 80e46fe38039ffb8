"""The figures: matplotlib, one palette, no titles inside (the page has headings), no CJK needed.

Every figure is returned as the text of an SVG whose letters stay letters, so that the page's own
fonts draw them; the bytes depend on the numbers alone.
"""

from __future__ import annotations

import functools
import io
import math
import re
import warnings
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from tasks.report import style
from tasks.report.funnel import Funnel
from tasks.report.gather import Curve, Points
from tasks.report.tables import CHANCE, CONTROL_PROTOCOL, HELD_OUT

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

WIDTH, HALF = 11.25, 5.4
"""Inches: the page's column, and half of it, at 96 pixels each; so text keeps its size."""
_RC = {
    "svg.fonttype": "none",
    "svg.hashsalt": "steel",
    "font.size": 9,
    "font.family": "DejaVu Sans",
    "axes.edgecolor": style.FAINT,
    "axes.labelcolor": style.MUTED,
    "axes.linewidth": 0.7,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.axisbelow": True,
    "grid.color": style.HAIRLINE,
    "grid.linewidth": 0.7,
    "xtick.color": style.FAINT,
    "ytick.color": style.FAINT,
    "xtick.labelcolor": style.MUTED,
    "ytick.labelcolor": style.INK,
    "text.color": style.INK,
    "legend.frameon": False,
    "legend.labelcolor": style.INK,
    "lines.linewidth": 1.6,
    "lines.solid_capstyle": "round",
}

PROTOCOL_MARKS = {"cloze": ("o", style.STEEL), "paper-first-token": ("D", style.AMBER)}


def drawn(figure: Callable[..., Figure]) -> Callable[..., str]:
    """Draw with the report's settings, and give the SVG's text."""

    @functools.wraps(figure)
    def draw(*args: Any) -> str:
        import matplotlib

        with matplotlib.rc_context(_RC):
            return _svg(figure(*args))

    return draw


@drawn
def funnel_bars(funnels: list[Funnel]) -> Figure:
    """What became of each source's records: 100 % bars."""
    fates = {
        "kept": [f.kept for f in funnels],
        "dropped by operators": [f.by_hop.get("convert", 0) + f.by_hop.get("clean", 0) for f in funnels],
        "duplicates": [f.by_hop.get("dedup", 0) for f in funnels],
        "decontaminated": [f.by_hop.get("decontaminate", 0) for f in funnels],
        "quarantined": [f.quarantined_total for f in funnels],
    }
    figure, axes = _figure(0.9 + 0.3 * len(funnels))
    left = [0.0] * len(funnels)
    for fate, counts in fates.items():
        shares = [100 * n / f.records_in if f.records_in else 0 for n, f in zip(counts, funnels, strict=True)]
        if any(shares):
            axes.barh(range(len(funnels)), shares, 0.62, left, color=style.FATES[fate], label=fate)
        left = [a + b for a, b in zip(left, shares, strict=True)]
    for y, f in enumerate(funnels):
        note = f"{f.kept:,} of {f.records_in:,}"
        axes.text(101, y, note, va="center", fontsize=8.5, color=style.MUTED)
    axes.set_yticks(range(len(funnels)), [f.source for f in funnels])
    axes.set_xlim(0, 116)
    axes.set_xticks([0, 25, 50, 75, 100])
    _bars(axes, "% of records in")
    _legend_above(axes)
    return figure


@drawn
def operator_bars(total: Funnel, limit: int = 16) -> Figure:
    """Which operator or step dropped how many records, over all sources."""
    ranked = sorted(((n, name) for name, n in total.dropped.items() if n), reverse=True)[:limit]
    figure, axes = _figure(0.7 + 0.25 * len(ranked), HALF)
    axes.barh(range(len(ranked)), [n for n, _ in ranked], 0.6, color=style.AMBER)
    for y, (n, _) in enumerate(ranked):
        axes.annotate(
            f"{n:,}", (n, y), (4, 0), textcoords="offset points", va="center", fontsize=8.5, color=style.MUTED
        )
    axes.set_yticks(range(len(ranked)), [name for _, name in ranked])
    axes.set_xlim(0, 1.14 * max(n for n, _ in ranked))
    _bars(axes, "records dropped")
    return figure


@drawn
def source_mix(rows: list[dict[str, Any]]) -> Figure:
    """Tokens seen per epoch and source, after weights (the paper's Figure 2)."""
    rows = sorted(rows, key=lambda row: -row["seen"])
    whole = sum(row["seen"] for row in rows) or 1
    figure, axes = _figure(0.9 + 0.27 * len(rows))
    labelled: set[str] = set()
    for y, row in enumerate(rows):
        language = row["language"]
        label = language if language not in labelled else None
        labelled.add(language)
        axes.barh(y, row["seen"], 0.62, color=style.LANGUAGES.get(language, style.OLIVE), label=label)
        note = f"{100 * row['seen'] / whole:.1f} %" + (f"  ×{row['weight']}" if row["weight"] != 1 else "")
        axes.annotate(
            note,
            (row["seen"], y),
            (4, 0),
            textcoords="offset points",
            va="center",
            fontsize=8.5,
            color=style.MUTED,
        )
    axes.set_yticks(range(len(rows)), [row["source"] for row in rows])
    axes.set_xlim(0, 1.12 * max(row["seen"] for row in rows))
    _big_ticks(axes.xaxis)
    _bars(axes, "tokens per epoch")
    _legend_above(axes)
    return figure


@drawn
def pretrain_loss(curve: Curve, unigram: float | None) -> Figure:
    """Training and validation loss (the paper's Figure 3), beside what a unigram model reaches."""
    figure, axes = _figure(3.1)
    _raw_and_smooth(axes, curve.loss, style.STEEL, "training loss")
    if curve.val:
        axes.plot(
            *zip(*curve.val, strict=True),
            color=style.AMBER,
            marker="o",
            ms=3.2,
            lw=1.3,
            label="validation loss",
        )
        _end_label(axes, curve.val, style.AMBER)
    if unigram is not None:
        axes.axhline(unigram, color=style.BRICK, lw=1.1, ls=(0, (4, 3)), label=f"unigram model {unigram:.2f}")
    _curve_axes(axes, "loss (nats per token)")
    return figure


@drawn
def sft_loss(curves: dict[str, Curve], chosen: str | None) -> Figure:
    """Loss of every SFT variant (the paper's Figure 4); the chosen one stands out."""
    figure, axes = _figure(3.1)
    for index, (name, curve) in enumerate(curves.items()):
        variant = name.partition(":")[2]
        picked = variant == chosen
        axes.plot(
            *zip(*smooth(curve.loss), strict=True),
            color=style.SERIES[index % len(style.SERIES)],
            lw=2.4 if picked else 1.3,
            zorder=3 if picked else 2,
            label=variant + (" (goes on to DPO)" if picked else ""),
        )
    _curve_axes(axes, "loss (nats per supervised token)")
    return figure


@drawn
def dpo_curves(curve: Curve) -> Figure:
    """DPO loss, reward margin and reward accuracy (the paper's Figure 5)."""
    panels: list[tuple[str, Points, float | None]] = [("loss", curve.loss, math.log(2))]
    for words, label, line in (("margin", "reward margin", 0.0), ("accura", "reward accuracy", 0.5)):
        key = next((k for k in sorted(curve.other) if words in k and not k.startswith("val")), None)
        if key:
            panels.append((label, curve.other[key], line))
    figure, grid = _figure(2.6, columns=len(panels))
    grid = grid if len(panels) > 1 else [grid]
    for axes, (label, points, line), colour in zip(grid, panels, style.SERIES, strict=False):
        _raw_and_smooth(axes, points, colour, None)
        if line is not None:
            axes.axhline(line, color=style.FAINT, lw=0.9, ls=(0, (4, 3)))
        _curve_axes(axes, label, legend=False)
    return figure


@drawn
def benchmark_dots(rows: list[dict[str, Any]]) -> Figure:
    """Accuracy with 95 % intervals: a panel a benchmark, a line a model, chance dashed."""
    names = list(dict.fromkeys(row["benchmark"] for row in rows))
    names.sort(key=lambda name: HELD_OUT in name)
    models = list(dict.fromkeys(row["model"] for row in rows))
    columns = min(len(names), 3)
    lines = -(-len(names) // columns)
    figure, grid = _figure(
        lines * (0.85 + 0.36 * len(models)) + 0.25, columns=columns, lines=lines, share_y=True
    )
    for axes, name in zip(grid, names, strict=False):
        for row in (r for r in rows if r["benchmark"] == name):
            mark, colour, shift, filled = _mark(row)
            x, y = 100 * row["accuracy"], models.index(row["model"]) + shift
            low, high = (100 * v for v in row["ci95"])
            axes.plot([low, high], [y, y], color=colour, lw=1.3, zorder=2)
            axes.plot(
                x, y, mark, ms=4.6, color=colour, mfc=colour if filled else style.PAPER, mew=1.2, zorder=3
            )
        axes.axvline(100 * CHANCE, color=style.FAINT, lw=0.9, ls=(0, (4, 3)), zorder=1)
        axes.set_title(name, fontsize=9.5, loc="left", color=style.INK)
        axes.set_xlim(0, 100)
        axes.set_yticks(range(len(models)), models)
        axes.set_ylim(len(models) - 0.45, -0.55)
        axes.grid(axis="x")
        axes.tick_params(length=0)
        axes.spines["left"].set_visible(False)
        axes.set_xlabel("accuracy, %")
    for axes in grid[len(names) :]:
        axes.set_visible(False)
    _protocol_legend(figure, rows)
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


# ------------------------------------------------------------------------------ helpers
def _figure(
    height: float, width: float = WIDTH, *, columns: int = 1, lines: int = 1, share_y: bool = False
) -> Any:
    """(figure, its only axes), or (figure, list of axes) when there may be several."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), layout="constrained")
    flat = list(figure.subplots(lines, columns, sharey=share_y, squeeze=False).flat)
    return figure, flat if columns * lines > 1 or share_y else flat[0]


def _raw_and_smooth(axes: Axes, points: Points, colour: str, label: str | None) -> None:
    if len(points) > 60:
        axes.plot(*zip(*points, strict=True), color=colour, lw=0.7, alpha=0.28)
    axes.plot(*zip(*smooth(points), strict=True), color=colour, label=label)


def _curve_axes(axes: Axes, label: str, *, legend: bool = True) -> None:
    axes.set_xlabel("step")
    axes.set_ylabel(label)
    axes.grid(axis="y")
    axes.margins(x=0.01)
    axes.tick_params(length=0, labelcolor=style.MUTED)
    _big_ticks(axes.xaxis)
    if legend:
        axes.legend(loc="upper right", fontsize=8.5)


def _end_label(axes: Axes, points: Points, colour: str) -> None:
    step, value = points[-1]
    axes.annotate(
        f"{value:.3f}",
        (step, value),
        (-2, 7),
        textcoords="offset points",
        ha="right",
        fontsize=8.5,
        color=colour,
    )


def _bars(axes: Axes, label: str) -> None:
    axes.invert_yaxis()
    axes.set_xlabel(label)
    axes.grid(axis="x")
    axes.tick_params(length=0)
    axes.spines["left"].set_visible(False)
    axes.spines["bottom"].set_visible(False)


def _legend_above(axes: Axes) -> None:
    handles, labels = axes.get_legend_handles_labels()
    axes.legend(
        handles,
        labels,
        loc="lower left",
        bbox_to_anchor=(0, 1.0),
        ncols=6,
        fontsize=8.5,
        handlelength=1,
        borderaxespad=0.2,
        columnspacing=0.7,
    )


def _big_ticks(axis: Any) -> None:
    from matplotlib.ticker import FuncFormatter

    axis.set_major_formatter(FuncFormatter(lambda v, _: _tick(v)))


def _tick(value: float) -> str:
    for size, letter in ((1e12, "T"), (1e9, "B"), (1e6, "M"), (1e3, "k")):
        if abs(value) >= size:
            return f"{value / size:g} {letter}"
    return f"{value:g}"


def _mark(row: dict[str, Any]) -> tuple[str, str, float, bool]:
    """Marker, colour, vertical shift, filled: the protocol gives colour, a control is hollow."""
    protocol = row.get("scoring") or row["protocol"]
    mark, colour = PROTOCOL_MARKS.get(protocol, ("s", style.TEAL))
    shift = -0.18 if protocol == "cloze" else 0.18
    if row["protocol"] == CONTROL_PROTOCOL:
        return mark, style.FAINT, shift + 0.1, False
    return mark, colour, shift - 0.1, True


def _protocol_legend(figure: Figure, rows: list[dict[str, Any]]) -> None:
    from matplotlib.lines import Line2D

    handles = []
    seen = dict.fromkeys((row["protocol"], row.get("scoring") or row["protocol"]) for row in rows)
    for protocol, scoring in seen:
        mark, colour, _, filled = _mark({"protocol": protocol, "scoring": scoring})
        label = f"question removed ({scoring})" if protocol == CONTROL_PROTOCOL else protocol
        face = colour if filled else style.PAPER
        handles.append(Line2D([], [], color=colour, marker=mark, mfc=face, ms=4.6, lw=1.3, label=label))
    handles.append(Line2D([], [], color=style.FAINT, lw=0.9, ls=(0, (4, 3)), label="chance"))
    figure.legend(handles=handles, loc="outside upper left", ncols=5, fontsize=8.5)


def _svg(figure: Figure) -> str:
    out = io.StringIO()
    with warnings.catch_warnings():
        # a source may be named in Chinese: the page's fonts draw it, only its measured width is a guess
        warnings.filterwarnings("ignore", message="Glyph .* missing from font")
        figure.savefig(out, format="svg", metadata={"Date": None, "Creator": None}, facecolor="none")
    text = out.getvalue()
    text = re.sub(r"<metadata>.*?</metadata>", "", text[text.index("<svg") :], flags=re.DOTALL)
    return text.replace("'DejaVu Sans', sans-serif", style.FONTS).replace("'DejaVu Sans'", style.FONTS)
