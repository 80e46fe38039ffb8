"""What stands beside the scores: the protocols with their digests, letters taken, replies read, other readings."""

from __future__ import annotations

from typing import Any

from tasks.report.tables import SHUFFLED_PROTOCOL, is_control

HELD_OUT = "held-out"
COLLAPSED = 0.9
"""Share of one letter above which a model is said to take it whatever is asked."""


def protocols(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Name, version and digest of every protocol that was used."""
    used = {row["protocol"]: row for row in rows if "protocol_hash" in row and "scoring" not in row}
    return [{name: row[name] for name in ("protocol", "version", "protocol_hash")} for row in used.values()]


def letters(rows: list[dict[str, Any]], model: str | None) -> list[dict[str, Any]]:
    """For each benchmark and letter protocol of a model: the letters, replies without one, agreement, other orders."""
    found = []
    for row in rows:
        if row["model"] != model or is_control(row) or ("letters" not in row and "unparsed" not in row):
            continue
        taken: dict[str, int] = row.get("letters", {})
        shuffled = next((r for r in rows if _is_shuffled(r, row)), None)
        most = max(taken, key=lambda letter: taken[letter], default="")
        asked = sum(taken.values()) + row.get("unparsed", 0)
        found.append(
            {
                "benchmark": row["benchmark"],
                "protocol": row["protocol"],
                "letters": [(letter, n, n / asked) for letter, n in taken.items()],
                "collapsed": most if taken and taken[most] > COLLAPSED * asked else "",
                "unparsed": row["unparsed"] / row["n"] if "unparsed" in row else None,
                "agreement": row.get("agreement"),
                "same": shuffled["same"] if shuffled else None,
            }
        )
    return found


def readings(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Cloze of every model and benchmark, by each normalisation."""
    return [
        {"model": row["model"], "benchmark": row["benchmark"], "n": row["n"], **row["readings"]}
        for row in rows
        if "readings" in row and HELD_OUT not in row["benchmark"]
    ]


def averages(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Micro and macro of every score that is no control."""
    return [
        {name: row[name] for name in ("model", "benchmark", "protocol", "accuracy", "macro", "average", "n")}
        for row in rows
        if not is_control(row) and "macro" in row and "average" in row
    ]


def steps(curve: list[dict[str, Any]]) -> dict[str, Any]:
    """Score against tokens, as a table: its columns, and a line a step."""
    names = [name for name in (curve[0] if curve else {}) if name.startswith("accuracy/")]
    heads = [name.removeprefix("accuracy/").replace("/", ", ") for name in names]
    lines = [
        {"step": line["step"], "tokens": line["tokens"], "accuracies": [line.get(name) for name in names]}
        for line in curve
    ]
    return {"heads": heads, "lines": lines, "n": curve[0]["n"] if curve else {}}


def _is_shuffled(row: dict[str, Any], of: dict[str, Any]) -> bool:
    same = all(row[name] == of[name] for name in ("model", "benchmark"))
    return same and row["protocol"] == SHUFFLED_PROTOCOL and row.get("scoring") == of["protocol"]
