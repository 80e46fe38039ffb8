"""What DPO and reinforcement learning have changed, as rows: a measure before and after on the same cases."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from tasks.figures.history import Nodes
from tasks.report.tables import compare, is_control

Row = dict[str, Any]
"""cases, measure, n, before, after (None: has none), ci95_before, ci95_after, gained, lost, p_value."""


def dpo_rows(nodes: Nodes) -> list[Row]:
    """By source of pairs: preference, reward accuracy and behaviour; [] without them."""
    by_set = nodes["dpo:train"].read_json("dpo.json").get("by_set", {}) if "dpo:train" in nodes else {}
    rows = []
    for name, each in by_set.items():
        rows.append(_row(name, "chosen likelier per token", each))
        rows.append(
            {
                "cases": name, "measure": f"reward accuracy, {each['reward_ties']} ties apart", "n": each["n"],
                "before": None, "ci95_before": None,
                "after": each["reward_accuracy"], "ci95_after": each["ci95_reward"],
                "gained": None, "lost": None, "p_value": each["reward_p_value"],
            }
        )  # fmt: skip
        if "behaviour" in each:
            rows.append(_row(name, each["behaviour"]["what"], each["behaviour"]))
    return rows


def _row(cases: str, measure: str, each: Mapping[str, Any]) -> Row:
    kept = {name: each[name] for name in ("n", "ci95_before", "ci95_after", "gained", "lost", "p_value")}
    shares = {when: each[f"accuracy_{when}"] for when in ("before", "after")}
    return {"cases": cases, "measure": measure, **shares, **kept}


def rl(nodes: Nodes) -> dict[str, Any] | None:
    """What summary.json says of reinforcement learning: exact answers to all open questions, before and after; nulls
    where none were held out. None without the stage."""
    if "rl:train" not in nodes:
        return None
    found = nodes["rl:train"].read_json("rl.json")
    exact: Row = next((row for row in found["rows"] if row["measure"] == "exact"), {})
    return {
        "accuracy_before": exact.get("before"),
        "accuracy_after": exact.get("after"),
        "n": exact.get("n", 0),
        "p_value": exact.get("p_value"),
        "start": found["start"],
        "rows": rl_rows(nodes),
    }


def rl_rows(nodes: Nodes) -> list[Row]:
    """Open questions and benchmarks before and after reinforcement learning; [] without it."""
    if "rl:train" not in nodes:
        return []
    found = nodes["rl:train"].read_json("rl.json")
    rows = [
        {"cases": _cases(row), **{name: value for name, value in row.items() if name != "questions"}}
        for row in found["rows"]
    ]
    return [*rows, *_benchmarks(nodes, found["start"])]


def _cases(row: Row) -> str:
    """The questions' name, and how many of them the start model has learned in its fine-tuning."""
    seen = row.get("in_fine_tuning", 0)
    return row["questions"] + (f" ({seen:,} of them in the start model's fine-tuning)" if seen else "")


def _benchmarks(nodes: Nodes, start: str) -> Iterator[Row]:
    """The same questions, as the evaluate stage asked them of the start model and of the trained one."""
    before, after = f"evaluate:{start.replace(':', '-') if start != 'dpo:train' else 'dpo'}", "evaluate:rl"
    if before not in nodes or after not in nodes:
        return
    scores = {
        name: {
            (row["benchmark"], row["protocol"]): row
            for row in nodes[name].read_json("results.json")
            if not is_control(row)
        }
        for name in (before, after)
    }
    for which in (key for key in scores[before] if key in scores[after]):
        was, now = scores[before][which], scores[after][which]
        test = compare(nodes[after], nodes[before], *which)
        yield {
            "cases": which[0], "measure": which[1], "n": test["n"],
            "before": was["accuracy"], "ci95_before": was["ci95"],
            "after": now["accuracy"], "ci95_after": now["ci95"],
            "gained": test["only_a"], "lost": test["only_b"], "p_value": test["p_value"],
        }  # fmt: skip
