"""The Steel-LLM paper's Tables 3 and 4, and beside them the same numbers of this run.

What was published has no interval. The standard errors here follow from the number of questions; the protocols differ
from row to row, and from ours: the table says so in its own column, and nothing in it is a ranking.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from tasks.report.tables import is_control

QUESTIONS = {"ceval": 1346, "cmmlu": 11582, "mmlu": 14042}
"""Of the splits that are scored: C-Eval val, CMMLU test, MMLU test."""
TITLES = {"ceval": "C-Eval", "cmmlu": "CMMLU", "mmlu": "MMLU"}

OWN = "0-shot chat, generated; a guess where nothing is parsed"
"""The paper's own scripts."""
BETTER = "the better of perplexity and generation (UltraEval)"
CITED = "as the paper cites it; protocol not stated"


@dataclass(frozen=True)
class Published:
    """One row of a published table, in percent."""

    name: str
    scores: dict[str, float]
    protocol: str


TABLE_3 = (
    Published(
        "1: Infinity-Instruct (all), WanJuan exam", {"ceval": 32.35, "cmmlu": 26.32, "mmlu": 25.50}, OWN
    ),
    Published("2: its Chinese part, WanJuan exam", {"ceval": 38.57, "cmmlu": 33.48, "mmlu": 23.26}, OWN),
    Published("3: Chinese, as much English", {"ceval": 39.21, "cmmlu": 33.20, "mmlu": 26.73}, OWN),
    Published("4: Chinese, a fifth of the English", {"ceval": 40.43, "cmmlu": 35.86, "mmlu": 26.75}, OWN),
    Published("5: and English multiple choice", {"ceval": 41.90, "cmmlu": 36.08, "mmlu": 30.82}, OWN),
)
TABLE_4 = (
    Published("TinyLlama-1.1B", {"ceval": 25.02, "cmmlu": 24.03}, BETTER),
    Published("MiniCPM-1.2B", {"ceval": 49.14, "cmmlu": 46.81}, CITED),
    Published("Qwen1.5-1.8B-Chat", {"ceval": 56.84, "cmmlu": 54.11}, CITED),
    Published("Phi-2", {"ceval": 23.37, "cmmlu": 24.18}, BETTER),
    Published("Gemma-2b-it", {"ceval": 32.30, "cmmlu": 33.07}, CITED),
    Published("CT-LLM-SFT-2B", {"ceval": 41.54, "cmmlu": 41.48}, CITED),
    Published("ChatGLM-6B", {"ceval": 38.90, "cmmlu": 37.48}, "5-shot (the authors of C-Eval and of CMMLU)"),
    Published("Llama2-7B", {"ceval": 32.42, "cmmlu": 31.11}, CITED),
    Published("OLMo-7B", {"ceval": 35.18, "cmmlu": 35.55}, CITED),
    Published("Gemma-7B", {"ceval": 42.57, "cmmlu": 44.20}, CITED),
    Published("MAP-Neo-7B", {"ceval": 56.97, "cmmlu": 55.01}, CITED),
    Published("Llama2-13B", {"ceval": 37.32, "cmmlu": 37.06}, CITED),
    Published("Steel-LLM-1B-Chat", {"ceval": 41.90, "cmmlu": 36.08}, OWN),
    Published("Steel-LLM-1B-Chat-DPO", {"ceval": 42.04, "cmmlu": 36.04}, OWN),
)


@dataclass(frozen=True)
class Cell:
    """A score with its standard error, in percent."""

    score: float
    error: float
    part: str = ""
    """Set where only a part of the benchmark was asked."""


@dataclass(frozen=True)
class Line:
    """A row of the page's table."""

    name: str
    protocol: str
    cells: list[Cell | None]
    ours: bool
    note: str = ""


@dataclass(frozen=True)
class Table:
    """One of the two tables."""

    title: str
    benchmarks: list[str]
    lines: list[Line] = field(default_factory=list)


def beside(rows: list[dict[str, Any]], mixtures: Mapping[str, Mapping[str, Any]]) -> list[Table]:
    """Tables 3 and 4, each with this run's models below; none where no real benchmark was asked."""
    mine = [row for row in rows if row.get("family") in QUESTIONS and not is_control(row)]
    if not mine:
        return []
    tuned = [row for row in mine if row["model"].startswith("sft:")]
    tables = [_table("Table 3: mixtures of instruction data", TABLE_3, tuned, mixtures)] if tuned else []
    final = [row for row in mine if row["model"] in ("base", "dpo", "rl") or row["model"].startswith("sft:")]
    return [*tables, _table("Table 4: models", TABLE_4, final, mixtures)]


def _table(
    title: str, published: tuple[Published, ...], rows: list[dict[str, Any]], mixtures: Mapping[str, Any]
) -> Table:
    known = [name for name in QUESTIONS if any(name in line.scores for line in published)]
    table = Table(title, known)
    for line in published:
        cells = [_published(line.scores.get(name), QUESTIONS[name]) for name in known]
        table.lines.append(Line(line.name, line.protocol, cells, ours=False))
    for model, protocol in dict.fromkeys((row["model"], row["protocol"]) for row in rows):
        found = {row["family"]: row for row in rows if (row["model"], row["protocol"]) == (model, protocol)}
        note = mixtures.get(model.removeprefix("sft:"), {}).get("note", "")
        cells = [_ours(found.get(name)) for name in known]
        if any(cells):
            table.lines.append(Line(model, protocol, cells, ours=True, note=note))
    return table


def _published(score: float | None, n: int) -> Cell | None:
    return None if score is None else Cell(score, 100 * standard_error(score / 100, n))


def _ours(row: Mapping[str, Any] | None) -> Cell | None:
    if row is None:
        return None
    whole = QUESTIONS[row["family"]]
    part = "" if row["n"] == whole else f"{row['n']:,} of {whole:,} questions"
    return Cell(
        100 * row.get("score", row["accuracy"]), 100 * standard_error(row["accuracy"], row["n"]), part
    )


def standard_error(share: float, n: int) -> float:
    """Of a share of `n` independent questions."""
    return math.sqrt(share * (1 - share) / n)


def noise() -> str:
    """What Table 3's steps on C-Eval are worth, in a sentence."""
    last = [line.scores["ceval"] for line in TABLE_3[2:]] + [TABLE_4[-1].scores["ceval"]]
    steps = [after - before for before, after in zip(last, last[1:], strict=False)]
    errors = [standard_error(score / 100, QUESTIONS["ceval"]) for score in last]
    of_difference = 100 * math.sqrt(errors[0] ** 2 + errors[1] ** 2)
    return (
        f"On C-Eval's {QUESTIONS['ceval']:,} questions a score near 40 % has a standard error of {100 * errors[0]:.1f} "
        f"points, and the difference of two of {of_difference:.1f} when they are taken as independent. The published "
        f"steps from mixture 3 to 4, 4 to 5 and on to DPO are {', '.join(f'{step:+.2f}' for step in steps)} points: "
        "within noise. A paired test on the same questions would say more; the answers were not published."
    )
