"""summary.json: the numbers of the report for machines, under the names that others rely on.

`stages` and `exports` are not here: they are added when the flow run has ended (latest.py), so that they are complete
and fresh also when every node was reused.
"""

from __future__ import annotations

from typing import Any

from tasks.figures.history import Curve
from tasks.report.funnel import Funnel


def build(
    benchmarks: list[dict[str, Any]],
    ablation: list[dict[str, Any]],
    dpo: dict[str, Any] | None,
    rl: dict[str, Any] | None,
    funnels: list[Funnel],
    curves: dict[str, Curve],
    variant: str | None,
) -> dict[str, Any]:
    """Everything but `stages` and `exports`; what the run did not reach is empty (lists) or null (`dpo`). Without the
    stage rl there is no `rl`."""
    return {
        "benchmarks": benchmarks,
        "sft_ablation": ablation,
        "dpo": dpo,
        **({} if rl is None else {"rl": rl}),
        "funnel": [funnel.row() for funnel in funnels],
        "losses": {
            "pretrain": _points(curves.get("pretrain")),
            "sft": _points(curves.get(f"sft:{variant}") or _first_sft(curves)),
            "dpo": _points(curves.get("dpo:train")),
        },
    }


def _points(curve: Curve | None) -> list[list[float]]:
    return [[step, loss] for step, loss in curve.loss] if curve else []


def _first_sft(curves: dict[str, Curve]) -> Curve | None:
    return next((curve for name, curve in curves.items() if name.startswith("sft:")), None)
