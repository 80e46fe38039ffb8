"""From answers to tables: one row per benchmark and protocol, with its interval, its subjects and its categories."""

from __future__ import annotations

import csv
from collections import Counter
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from tasks.evaluate import protocols, subjects
from tasks.evaluate.asking import CONTROL, SHUFFLED
from tasks.evaluate.statistics import kept_choice, macro, wilson
from tasks.evaluate.wording import LETTERS

HELD_OUT = "demo-held-out-facts"
CONTROLS = (CONTROL, SHUFFLED)
OWN_AVERAGE = {"mmlu": "micro"}
"""By family. C-Eval and CMMLU publish the mean of the subjects (macro), MMLU the mean over questions (micro)."""

Key = tuple[str, str, str | None]
"""(benchmark, protocol, the protocol that a control belongs to)."""


def rows(
    model: str,
    answers: Iterable[Mapping[str, Any]],
    families: Mapping[str, str] | None = None,
    chances: Mapping[str, float] | None = None,
) -> list[dict[str, Any]]:
    """results.json. `families`: benchmark -> reader, for categories and the average it is published with; `chances`:
    benchmark -> what guessing gives.

    accuracy: over questions (micro)          macro: mean of the subjects
    average, score: which of the two the protocol or the benchmark publishes, and its value
    version, protocol_hash: of the protocol   prompts_cut: prompts that lost their beginning
    family: C-Eval, CMMLU or MMLU, where all subjects are of it
    chance: what guessing gives               letters: how often each was taken
    readings: cloze, normalised otherwise     shots_dropped: examples that did not fit
    unparsed: replies without an answer       agreement: share of replies that name the likeliest first token
    same: share of questions with the same option in every order, of those asked in several
    """
    groups: dict[Key, list[Mapping[str, Any]]] = {}
    for answer in answers:
        groups.setdefault((answer["benchmark"], answer["protocol"], answer.get("scoring")), []).append(answer)
    table = []
    for key, lines in groups.items():
        row = _row(model, key, lines, (families or {}).get(key[0], "ceval"))
        generated = (
            row["protocol"] in protocols.PROTOCOLS and protocols.of(row["protocol"]).asks == "short reply"
        )
        row["chance"] = 0.0 if generated else (chances or {}).get(key[0], 0.25)
        table.append(row)
    for row in table:
        if row["protocol"] == SHUFFLED:
            first = groups[row["benchmark"], row["scoring"], None]
            row["same"] = kept_choice(first, groups[row["benchmark"], SHUFFLED, row["scoring"]])
    return table


def _row(model: str, key: Key, lines: list[Mapping[str, Any]], family: str) -> dict[str, Any]:
    benchmark, protocol, scoring = key
    of = protocols.PROTOCOLS.get(scoring or protocol)
    counts: dict[str, list[int]] = {}
    for line in lines:
        cell = counts.setdefault(line["subject"], [0, 0])
        cell[0] += line["correct"]
        cell[1] += 1
    right, asked = (sum(cell[k] for cell in counts.values()) for k in (0, 1))
    # orders of the same question are no independent evidence
    distinct = len({line["id"] for line in lines})
    row: dict[str, Any] = {
        "model": model,
        "benchmark": benchmark,
        "protocol": protocol,
        "accuracy": right / asked,
        "n": distinct,
        "ci95": list(wilson(round(right * distinct / asked), distinct)),
        "macro": macro([(r, n) for r, n in counts.values()]),
        "subjects": {s: {"accuracy": r / n, "n": n} for s, (r, n) in sorted(counts.items())},
    }
    row["average"] = (of.average if of else "") or OWN_AVERAGE.get(family, "macro")
    row["score"] = row["accuracy"] if row["average"] == "micro" else row["macro"]
    if of:
        row |= {"version": of.version, "protocol_hash": of.digest, "form": lines[0].get("form", "")}
    if counts.keys() <= subjects.names(family).keys():
        row["family"] = family
        row["categories"] = _categories(family, counts)
    if scoring:
        row["scoring"] = scoring
    row |= _extras(lines, of)
    if benchmark == HELD_OUT:
        row["subset"] = "held-out-facts"
    return row


def _extras(lines: list[Mapping[str, Any]], of: protocols.Protocol | None) -> dict[str, Any]:
    """What only some protocols have to say."""
    found: dict[str, Any] = {}
    if cut := sum("prompt_tokens_cut" in line for line in lines):
        found["prompts_cut"] = cut
    if dropped := sum(line.get("shots_dropped", 0) for line in lines):
        found["shots_dropped"] = dropped
    if of and of.shows_options:
        found["letters"] = letters(lines)
    if of and of.generates:
        found["unparsed"] = sum(not line["parsed"] for line in lines)
    twins = [line for line in lines if "first_token" in line]
    if twins:
        found["agreement"] = sum(line["answer"] == line["first_token"] for line in twins) / len(twins)
    read = [line for line in lines if "readings" in line]
    if read:
        names = {"per-token": [line["answer"] for line in read]}
        names |= {name: [line["readings"][name] for line in read] for name in read[0]["readings"]}
        gold = [line["gold"] for line in read]
        found["readings"] = {
            name: sum(a == b for a, b in zip(picked, gold, strict=True)) / len(gold)
            for name, picked in names.items()
        }
    return found


def letters(lines: Iterable[Mapping[str, Any]]) -> dict[str, int]:
    """How often each letter was taken: a model that has collapsed to one takes it nearly always."""
    taken: Counter[str] = Counter()
    for line in lines:
        if line["answer"] is not None:
            at = line["answer"] if "order" not in line else line["order"].index(line["answer"])
            taken[LETTERS[at]] += 1
    return dict(sorted(taken.items()))


def _categories(family: str, counts: Mapping[str, list[int]]) -> dict[str, dict[str, Any]]:
    """Category or group -> its mean of subjects (macro), its mean over questions (accuracy), n."""
    found = {}
    for name, members in subjects.categories(family, counts).items():
        cells = [counts[subject] for subject in members]
        right, asked = (sum(cell[k] for cell in cells) for k in (0, 1))
        found[name] = {"accuracy": right / asked, "macro": macro([(r, n) for r, n in cells]), "n": asked}
    return found


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
        if row["protocol"] in CONTROLS or row.get("subset"):
            continue
        short = row["benchmark"].removeprefix("demo-").removesuffix("-words")
        name = {"paper-first-token": "letters"}.get(row["protocol"], row["protocol"])
        parts.setdefault(name, []).append(f"{100 * row['accuracy']:.1f} % {short}")
    return " · ".join(f"{name} {', '.join(cells)}" for name, cells in parts.items())


def markdown(table: Iterable[Mapping[str, Any]]) -> str:
    lines = [
        "| benchmark | protocol | digest | accuracy | 95 % interval | macro | n |",
        "|---|---|---|---|---|---|---|",
    ]
    for row in table:
        protocol = row["protocol"] + (f" ({row['scoring']})" if row.get("scoring") else "")
        low, high = (100 * x for x in row["ci95"])
        lines.append(
            f"| {row['benchmark']} | {protocol} | {row.get('digest', '')[:8]} | {100 * row['accuracy']:.1f} % "
            f"| {low:.1f} to {high:.1f} % | {100 * row['macro']:.1f} % | {row['n']} |"
        )
    return "\n".join(lines)
