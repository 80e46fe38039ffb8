"""Accuracy by the share of Chinese: a panel for each arm, a line for each language, with intervals."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from tasks.ablation.language_ratio.table import ARMS, LANGUAGES
from tasks.figures import style
from tasks.figures.canvas import drawn, new

if TYPE_CHECKING:
    from matplotlib.figure import Figure


@drawn
def accuracies(rows: Sequence[Mapping[str, Any]]) -> Figure:
    """`rows` as in language-ratio.json."""
    arms = list(dict.fromkeys(r["arm"] for r in rows))
    figure, panels = new(3.6, columns=len(arms), share_y=True)
    for axes, arm in zip(panels, arms, strict=True):
        mine = [r for r in rows if r["arm"] == arm]
        for language, label in LANGUAGES.items():
            points = [(r["share"], r["accuracy"][language]) for r in mine if language in r["accuracy"]]
            if not points:
                continue
            means = [100 * a["mean"] for _, a in points]
            errors = [[100 * abs(a["mean"] - a["ci95"][side]) for _, a in points] for side in (0, 1)]
            axes.errorbar(
                [share for share, _ in points],
                means,
                yerr=errors,
                color=style.LANGUAGES[language],
                marker="o",
                markersize=4,
                capsize=3,
                elinewidth=1,
                label=label,
            )
        axes.set_title(ARMS[arm], fontsize=9, color=style.INK)
        axes.set_xlabel("Chinese, % of the supervised tokens")
        axes.grid(axis="y")
        axes.tick_params(length=0, labelcolor=style.MUTED)
    panels[0].set_ylabel("accuracy, %")
    panels[0].legend(loc="best", fontsize=8.5)
    return figure
