"""The DAG as a picture: a column a stage, a line a node, seconds as bars, arcs for what feeds what.

Drawn by hand as SVG: the page's fonts, real text, and titles that a mouse can ask for. Seconds are
those of the run that made the artifact, also where this run only reused it.
"""

from __future__ import annotations

from html import escape

from tasks.figures import style
from tasks.figures.history import Nodes, seconds, units
from tasks.settings.config import STAGES
from tasks.stage.names import stage_of

WIDTH, GAP, HEAD, LINE = 1080, 14, 50, 19
MAX_LINES = 26


def draw(nodes: Nodes) -> str:
    """The picture of every stage that has nodes."""
    stages = [stage for stage in STAGES if stage != "report" and units(nodes, stage)]
    if not stages:
        return ""
    pitch = (WIDTH + GAP) / len(stages)
    wide = pitch - GAP
    arcs = _arcs(nodes, stages)
    top = 12 + 11 * max((b - a for a, b in arcs), default=0)
    longest = max(seconds(a) for a in nodes.values()) or 1.0
    lines = max(min(len(units(nodes, s)), MAX_LINES + 1) for s in stages)
    height = top + HEAD + 16 + LINE * lines + 6
    parts = [
        f'<svg viewBox="-1 0 {WIDTH + 2} {height:.0f}" role="img" aria-label="Stages and nodes with their seconds" '
        f'class="dag"><defs><marker id="tip" viewBox="0 0 8 8" refX="7" refY="4" markerWidth="6" markerHeight="6" '
        f'orient="auto"><path d="M0,0.5 L7.5,4 L0,7.5z" fill="{style.FAINT}"/></marker></defs>'
    ]
    for a, b in arcs:
        parts.append(_arc(a, b, pitch, wide, top))
    for index, stage in enumerate(stages):
        parts.append(_stage(nodes, stage, index * pitch, top, wide, longest))
    return "\n".join([*parts, "</svg>"])


def _stage(nodes: Nodes, stage: str, x: float, top: float, wide: float, longest: float) -> str:
    mine = units(nodes, stage)
    spent = sum(seconds(a) for a in mine.values())
    reused = sum(a.cached for a in mine.values())
    fresh = reused < len(mine)
    state = "made in this run" if not reused else "reused" if not fresh else f"{reused} of {len(mine)} reused"
    colour, fill = (style.STEEL, "#eef3f8") if fresh else (style.FAINT, "#f5f7f9")
    noun = "node" if len(mine) == 1 else "nodes"
    parts = [
        f"<g><title>{escape(stage)}: {style.duration(spent)} of work in {len(mine)} {noun}, {state}</title>"
        f'<rect x="{x:.1f}" y="{top}" width="{wide:.1f}" height="{HEAD}" rx="5" fill="{fill}" stroke="{colour}"/>'
        f'<circle cx="{x + wide - 11:.1f}" cy="{top + 16}" r="3.6" fill="{colour if fresh else "none"}" '
        f'stroke="{colour}"/>'
        f'<text x="{x + 10:.1f}" y="{top + 20}" class="stage">{escape(stage)}</text>'
        f'<text x="{x + 10:.1f}" y="{top + 38}" class="small">{style.duration(spent)}'
        f'<tspan fill="{style.FAINT}"> · {len(mine)}</tspan></text></g>'
    ]
    y = top + HEAD + 16
    shown = dict(list(mine.items())[: MAX_LINES if len(mine) > MAX_LINES + 1 else MAX_LINES + 1])
    for unit, artifact in shown.items():
        parts.append(_line(unit or stage, seconds(artifact), artifact.cached, x, y, wide, longest))
        y += LINE
    if len(shown) < len(mine):
        parts.append(
            f'<text x="{x + 2:.1f}" y="{y + 9}" class="small">+ {len(mine) - len(shown)} more</text>'
        )
    return "\n".join(parts)


def _line(unit: str, spent: float, cached: bool, x: float, y: float, wide: float, longest: float) -> str:
    time = f"{spent:.1f}" if spent < 1000 else f"{spent:,.0f}"
    room = int((wide - 7 * len(time)) / 5.9)
    name = unit if len(unit) <= room else unit[: max(room - 1, 1)] + "…"
    bar = max(wide * spent / longest, 0.8)
    colour = style.FAINT if cached else style.STEEL
    return (
        f"<g><title>{escape(unit)}: {style.duration(spent)}{' (reused)' if cached else ''}</title>"
        f'<text x="{x:.1f}" y="{y + 9}" class="unit">{escape(name)}</text>'
        f'<text x="{x + wide:.1f}" y="{y + 9}" class="unit time">{time}</text>'
        f'<rect x="{x:.1f}" y="{y + 13}" width="{wide:.1f}" height="1.6" fill="{style.HAIRLINE}"/>'
        f'<rect x="{x:.1f}" y="{y + 13}" width="{bar:.1f}" height="1.6" fill="{colour}"/></g>'
    )


def _arcs(nodes: Nodes, stages: list[str]) -> list[tuple[int, int]]:
    """(from, to) for every pair of stages of which one reads the other."""
    place = {stage: i for i, stage in enumerate(stages)}
    arcs = set()
    for name, artifact in nodes.items():
        to = place.get(stage_of(name))
        for entry in artifact.manifest.get("inputs", {}).values():
            start = place.get(stage_of(str(entry.get("node", ""))))
            if start is not None and to is not None and start < to:
                arcs.add((start, to))
    return sorted(arcs | {(i, i + 1) for i in range(len(stages) - 1)})


def _arc(a: int, b: int, pitch: float, wide: float, top: float) -> str:
    if b == a + 1:
        y = top + HEAD / 2
        path = f"M{a * pitch + wide + 1:.1f},{y} L{b * pitch - 1:.1f},{y}"
    else:
        x0, x1 = a * pitch + wide * 0.72, b * pitch + wide * 0.28
        rise = top - 11 * (b - a)
        path = f"M{x0:.1f},{top} C{x0:.1f},{rise:.1f} {x1:.1f},{rise:.1f} {x1:.1f},{top - 1}"
    return f'<path d="{path}" fill="none" stroke="{style.FAINT}" stroke-width="1" marker-end="url(#tip)"/>'
