"""The sheet that figures are drawn on: settings, sizes, number ticks, and the way to SVG text.

Letters stay letters in the SVG, so that the page's own fonts draw them; the bytes depend on the
numbers alone. matplotlib is used without pyplot: no global state, safe in any thread.
"""

from __future__ import annotations

import functools
import io
import re
import warnings
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from tasks.figures import style

if TYPE_CHECKING:
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


def drawn(figure: Callable[..., Figure]) -> Callable[..., str]:
    """Draw with the report's settings, and give the SVG's text."""

    @functools.wraps(figure)
    def draw(*args: Any, **kwargs: Any) -> str:
        import matplotlib

        with matplotlib.rc_context(_RC):
            return _svg(figure(*args, **kwargs))

    return draw


def new(
    height: float, width: float = WIDTH, *, columns: int = 1, lines: int = 1, share_y: bool = False
) -> Any:
    """(figure, its only axes), or (figure, list of axes) when there may be several."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), layout="constrained")
    flat = list(figure.subplots(lines, columns, sharey=share_y, squeeze=False).flat)
    return figure, flat if columns * lines > 1 or share_y else flat[0]


def number_ticks(axis: Any) -> None:
    """Whole numbers, as 50 k or 1.2 M."""
    from matplotlib.ticker import FuncFormatter, MaxNLocator

    axis.set_major_locator(MaxNLocator(8, integer=True, steps=[1, 2, 2.5, 5, 10]))
    axis.set_major_formatter(FuncFormatter(lambda v, _: _tick(v)))


def _tick(value: float) -> str:
    for size, letter in ((1e12, "T"), (1e9, "B"), (1e6, "M"), (1e3, "k")):
        if abs(value) >= size:
            return f"{value / size:g} {letter}"
    return f"{value:g}"


def _svg(figure: Figure) -> str:
    out = io.StringIO()
    with warnings.catch_warnings():
        # a source may be named in Chinese: the page's fonts draw it, only its measured width is a guess
        warnings.filterwarnings("ignore", message="Glyph .* missing from font")
        figure.savefig(out, format="svg", metadata={"Date": None, "Creator": None}, facecolor="none")
    text = out.getvalue()
    text = re.sub(r"<metadata>.*?</metadata>", "", text[text.index("<svg") :], flags=re.DOTALL)
    return text.replace("'DejaVu Sans', sans-serif", style.FONTS).replace("'DejaVu Sans'", style.FONTS)
