"""The figures of data and scores: bars and dots. No titles inside (the page has headings).

Every function returns the text of an SVG.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from tasks.figures import style
from tasks.figures.canvas import HALF, drawn, new, number_ticks
from tasks.report.funnel import Funnel
from tasks.report.tables import CONTROL_PROTOCOL, HELD_OUT, SHUFFLED_PROTOCOL, chance

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

PROTOCOL_MARKS = {
    "cloze": ("o", style.STEEL),
    "paper-first-token": ("D", style.AMBER),
    "paper-gen": ("^", style.OLIVE),
    "official-5shot": ("s", style.TEAL),
    "lm-eval-compat": ("v", style.INK),
    "lm-eval-compat-5shot": (">", style.INK),
    "open-exact": ("P", style.MUTED),
}


@drawn
def funnel_bars(funnels: list[Funnel]) -> Figure:
    """What became of each source's records: 100 % bars."""
    fates = {
        "kept": [f.kept for f in funnels],
        "filtered out": [f.by_hop.get("convert", 0) + f.by_hop.get("clean", 0) for f in funnels],
        "duplicates": [f.by_hop.get("dedup", 0) for f in funnels],
        "decontaminated": [f.by_hop.get("decontaminate", 0) for f in funnels],
        "quarantined": [f.quarantined_total for f in funnels],
    }
    figure, axes = new(0.9 + 0.3 * len(funnels))
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
    figure, axes = new(0.7 + 0.25 * len(ranked), HALF)
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
    figure, axes = new(0.9 + 0.27 * len(rows))
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
    number_ticks(axes.xaxis)
    _bars(axes, "tokens per epoch")
    _legend_above(axes)
    return figure


@drawn
def benchmark_dots(rows: list[dict[str, Any]]) -> Figure:
    """Accuracy with 95 % intervals: a panel a benchmark, a line a model, chance dashed."""
    rows = [row for row in rows if row["protocol"] != SHUFFLED_PROTOCOL]
    names = list(dict.fromkeys(row["benchmark"] for row in rows))
    names.sort(key=lambda name: HELD_OUT in name)
    models = list(dict.fromkeys(row["model"] for row in rows))
    lanes = list(dict.fromkeys(row.get("scoring") or row["protocol"] for row in rows))
    columns = min(len(names), 3)
    lines = -(-len(names) // columns)
    height = 0.36 * max(1, len(lanes) / 2) * len(models)
    figure, grid = new(lines * (0.85 + height) + 0.25, columns=columns, lines=lines, share_y=True)
    for axes, name in zip(grid, names, strict=False):
        mine = [row for row in rows if row["benchmark"] == name]
        for row in mine:
            mark, colour, filled = _mark(row)
            x, y = 100 * row["accuracy"], models.index(row["model"]) + _shift(row, lanes)
            low, high = (100 * v for v in row["ci95"])
            axes.plot([low, high], [y, y], color=colour, lw=1.3, zorder=2)
            axes.plot(
                x, y, mark, ms=4.6, color=colour, mfc=colour if filled else style.PAPER, mew=1.2, zorder=3
            )
        for guess in sorted({chance(row) for row in mine} - {0.0}):
            axes.axvline(100 * guess, color=style.FAINT, lw=0.9, ls=(0, (4, 3)), zorder=1)
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


# ------------------------------------------------------------------------------ helpers
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


def _mark(row: dict[str, Any]) -> tuple[str, str, bool]:
    """Marker, colour, filled: the protocol gives colour, a control is hollow."""
    mark, colour = PROTOCOL_MARKS.get(row.get("scoring") or row["protocol"], ("s", style.TEAL))
    if row["protocol"] == CONTROL_PROTOCOL:
        return mark, style.FAINT, False
    return mark, colour, True


def _shift(row: dict[str, Any], lanes: list[str]) -> float:
    """Below the middle of the model's line; each protocol has a lane, a control stands under its protocol."""
    width = min(0.36, 0.72 / len(lanes))
    lane = lanes.index(row.get("scoring") or row["protocol"]) - (len(lanes) - 1) / 2
    beside = 0.1 * width / 0.36
    return lane * width + (beside if row["protocol"] == CONTROL_PROTOCOL else -beside)


def _protocol_legend(figure: Figure, rows: list[dict[str, Any]]) -> None:
    from matplotlib.lines import Line2D

    handles = []
    seen = dict.fromkeys((row["protocol"], row.get("scoring") or row["protocol"]) for row in rows)
    for protocol, scoring in seen:
        mark, colour, filled = _mark({"protocol": protocol, "scoring": scoring})
        label = f"question removed ({scoring})" if protocol == CONTROL_PROTOCOL else protocol
        face = colour if filled else style.PAPER
        handles.append(Line2D([], [], color=colour, marker=mark, mfc=face, ms=4.6, lw=1.3, label=label))
    handles.append(Line2D([], [], color=style.FAINT, lw=0.9, ls=(0, (4, 3)), label="chance"))
    figure.legend(handles=handles, loc="outside upper left", ncols=5, fontsize=8.5)
