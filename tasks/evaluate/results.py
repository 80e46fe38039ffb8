"""From answers to tables: one row per benchmark and protocol, with its interval and its subjects."""

from __future__ import annotations

import csv
from collections import Counter
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from tasks.evaluate.scorer import CONTROL
from tasks.evaluate.statistics import macro, wilson

HELD_OUT = "demo-held-out-facts"


def rows(model: str, answers: Iterable[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """results.json: accuracy is over questions (micro), `macro` is the mean of the subjects.

    `prompts_cut`: questions whose prompt lost its beginning, because the model's context is shorter.
    """
    groups: dict[tuple[str, str, str | None], dict[str, list[int]]] = {}
    cut: Counter[tuple[str, str, str | None]] = Counter()
    for answer in answers:
        key = (answer["benchmark"], answer["protocol"], answer.get("scoring"))
        cut[key] += "prompt_tokens_cut" in answer
        right_asked = groups.setdefault(key, {}).setdefault(answer["subject"], [0, 0])
        right_asked[0] += answer["correct"]
        right_asked[1] += 1
    table = []
    for (benchmark, protocol, scoring), subjects in groups.items():
        right = sum(r for r, _ in subjects.values())
        asked = sum(n for _, n in subjects.values())
        row = {
            "model": model,
            "benchmark": benchmark,
            "protocol": protocol,
            "accuracy": right / asked,
            "n": asked,
            "ci95": list(wilson(right, asked)),
            "macro": macro([(r, n) for r, n in subjects.values()]),
            "subjects": {s: {"accuracy": r / n, "n": n} for s, (r, n) in sorted(subjects.items())},
        }
        if scoring:
            row["scoring"] = scoring
        if questions_cut := cut[benchmark, protocol, scoring]:
            row["prompts_cut"] = questions_cut
        if benchmark == HELD_OUT:
            row["subset"] = "held-out-facts"
        table.append(row)
    return table


def write_by_subject(path: Path, table: Iterable[Mapping[str, Any]]) -> None:
    with path.open("w", encoding="utf-8", newline="") as file:
        out = csv.writer(file, lineterminator="\n")
        out.writerow(["model", "benchmark", "protocol", "scoring", "subject", "n", "accuracy", "low", "high"])
        for row in table:
            for subject, cell in row["subjects"].items():
                low, high = wilson(round(cell["accuracy"] * cell["n"]), cell["n"])
                head = [row["model"], row["benchmark"], row["protocol"], row.get("scoring", "")]
                shares = [f"{x:.4f}" for x in (cell["accuracy"], low, high)]
                out.writerow([*head, subject, cell["n"], *shares])


def headline(table: Iterable[Mapping[str, Any]]) -> str:
    """`cloze 97.3 % known, 91.0 % new · letters 25.1 % known, 24.8 % new`."""
    parts: dict[str, list[str]] = {}
    for row in table:
        if row["protocol"] == CONTROL or row.get("subset"):
            continue
        short = row["benchmark"].removeprefix("demo-").removesuffix("-words")
        name = {"paper-first-token": "letters"}.get(row["protocol"], row["protocol"])
        parts.setdefault(name, []).append(f"{100 * row['accuracy']:.1f} % {short}")
    return " · ".join(f"{name} {', '.join(cells)}" for name, cells in parts.items())


def markdown(table: Iterable[Mapping[str, Any]]) -> str:
    lines = ["| benchmark | protocol | accuracy | 95 % interval | n |", "|---|---|---|---|---|"]
    for row in table:
        protocol = row["protocol"] + (f" ({row['scoring']})" if row.get("scoring") else "")
        low, high = (100 * x for x in row["ci95"])
        lines.append(
            f"| {row['benchmark']} | {protocol} | {100 * row['accuracy']:.1f} % | {low:.1f} to {high:.1f} % | {row['n']} |"
        )
    return "\n".join(lines)
