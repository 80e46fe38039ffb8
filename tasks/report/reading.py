"""What the numbers say, in sentences. Every sentence is decided by the numbers, never by hope."""

from __future__ import annotations

import math
from typing import Any

from tasks.figures.style import big, count, interval, p_value, percent
from tasks.report.tables import CONTROL_PROTOCOL, HELD_OUT, chance, is_control


def best_model(rows: list[dict[str, Any]], variant: str | None, rl_start: str = "sft") -> str | None:
    """The furthest tuned model with scores: dpo, rl (before it, if it started there), the chosen variant, else base."""
    models = {row["model"] for row in rows}
    last = ["rl", "dpo"] if rl_start == "dpo" else ["dpo", "rl"]
    order = [
        *last,
        f"sft:{variant}",
        *sorted(m for m in models if m.startswith("sft:")),
        "base",
        "untrained",
        "start",
    ]
    return next((m for m in order if m in models), None)


def lead(facts: dict[str, Any]) -> str:
    """The run in one paragraph of plain language."""
    parts = []
    total = facts["total"]
    if total.records_in:
        text = f"Of {count(total.records_in)} raw records from {facts['n_sources']} sources, {count(total.kept)} "
        text += f"({percent(total.kept / total.records_in)} %) were kept"
        parts.append(text + (f" and became {big(facts['tokens'])} tokens." if facts["tokens"] else "."))
    if facts["parameters"]:
        text = f"A model of {big(facts['parameters'])} parameters was trained on them {facts['start']}"
        if facts["val_loss"] is not None:
            text += f"; its validation loss ended at {facts['val_loss']:.2f} nats per token"
            if facts["unigram"] is not None:
                relation = (
                    "against" if facts["val_loss"] < facts["unigram"] else "which is no better than the"
                )
                text += f", {relation} {facts['unigram']:.2f} of a model that knows only how often each token occurs"
        parts.append(text + ".")
    if facts["n_variants"] == 1:
        text = f"It was then tuned on an instruction mixture, {facts['variant'] or 'the only one'}"
        parts.append(text + (", and aligned by DPO." if facts["dpo"] else "."))
    elif facts["n_variants"]:
        text = f"It was then tuned on {facts['n_variants']} instruction mixtures"
        if facts["variant"]:
            text += f"; {facts['variant']} was chosen, on questions that no score below is taken from"
        parts.append(text + (", and aligned by DPO." if facts["dpo"] else "."))
    parts += _scores_in_words(facts["benchmarks"], facts["model"])
    return " ".join(parts)


def _scores_in_words(rows: list[dict[str, Any]], model: str | None) -> list[str]:
    mine = [r for r in rows if r["model"] == model and not is_control(r) and r["protocol"] == "cloze"]
    mine = mine or [r for r in rows if r["model"] == model and not is_control(r)]
    if not mine:
        return []
    scores = ", ".join(
        f"{percent(r['accuracy'])} % of {r['benchmark']} ({interval(r['ci95'])})" for r in mine
    )
    above = [r for r in mine if r["ci95"][0] > chance(r)]
    verdict = "" if above else ": not distinguishable from guessing, as expected of a run this short"
    return [
        f"Asked by {mine[0]['protocol']}, the {_title(model)} is right on {scores}{verdict}. "
        f"Guessing gives {guessing(mine)} %."
    ]


def guessing(rows: list[dict[str, Any]]) -> str:
    """What guessing gives, in percent."""
    shares = sorted({percent(chance(r), 0) for r in rows if chance(r)}, key=int)
    return " or ".join(shares) or "nothing"


def about_benchmarks(rows: list[dict[str, Any]], model: str | None) -> list[str]:
    """Honest notes on the benchmark table."""
    notes = []
    mine = [r for r in rows if r["model"] == model]
    for protocol in dict.fromkeys(r["protocol"] for r in mine if not is_control(r)):
        low = [r for r in mine if r["protocol"] == protocol and not is_control(r) and _at_chance(r)]
        high = [
            r for r in mine if r["protocol"] == protocol and not is_control(r) and r["ci95"][0] > chance(r)
        ]
        if low:
            names = ", ".join(f"{r['benchmark']} {percent(r['accuracy'])} %" for r in low)
            why = ""
            if protocol == "paper-first-token" and any(
                r["protocol"] == "cloze" and not is_control(r) and r["ci95"][0] > 2 * chance(r) for r in mine
            ):
                why = (
                    " It knows the answers (see cloze) but not the letters: binding an option to its letter is a "
                    "look-up skill that a model of this size does not acquire in this time."
                )
            notes.append(
                f"By {protocol}, {model} stays at chance: {names} (the interval holds {percent(chance(low[0]), 0)} %).{why}"
            )
        if high:
            names = ", ".join(f"{r['benchmark']} {percent(r['accuracy'])} %" for r in high)
            notes.append(f"By {protocol}, {model} is above chance: {names}.")
    notes += _untrained(rows) + _options_only(rows) + _held_out(mine, model)
    return notes


def _untrained(rows: list[dict[str, Any]]) -> list[str]:
    mine = [r for r in rows if r["model"] == "untrained" and not is_control(r)]
    if not mine:
        return []
    low, high = min(r["accuracy"] for r in mine), max(r["accuracy"] for r in mine)
    return [
        f"The untrained model answers {percent(low)} to {percent(high)} %: the questions give nothing away by form."
    ]


def _options_only(rows: list[dict[str, Any]]) -> list[str]:
    mine = [r for r in rows if r["protocol"] == CONTROL_PROTOCOL and HELD_OUT not in r["benchmark"]]
    if not mine:
        return []
    worst = max(mine, key=lambda r: r["accuracy"])
    # the worst of many controls is high by chance alone: Bonferroni's bound on a one-sided normal test
    guess = chance(worst)
    z = (worst["accuracy"] - guess) / math.sqrt(guess * (1 - guess) / worst["n"])
    betrayed = math.erfc(z / math.sqrt(2)) / 2 * len(mine) < 0.05
    text = f"With the question removed, no model exceeds {percent(worst['accuracy'])} % ({worst['model']}, {worst['benchmark']})"
    verdict = (
        "the options alone give something away" if betrayed else "the options alone do not betray the answer"
    )
    return [f"{text}: {verdict}."]


def _held_out(mine: list[dict[str, Any]], model: str | None) -> list[str]:
    notes = []
    for r in mine:
        if HELD_OUT in r["benchmark"] and r["protocol"] != CONTROL_PROTOCOL and r["protocol"] == "cloze":
            reach = r["ci95"][0] <= chance(r)
            verdict = (
                "no better than guessing, as it should be"
                if reach
                else "above chance, so something helps it guess"
            )
            notes.append(
                f"On facts that no training text states, {model} answers {percent(r['accuracy'])} % "
                f"({interval(r['ci95'])}, n = {r['n']}): {verdict}."
            )
    return notes


def about_ablation(table: list[dict[str, Any]]) -> list[str]:
    """Which variants differ from the base at all."""
    tested = [r for r in table if r["p_vs_base"] is not None]
    if not tested:
        return []
    sure = [r for r in tested if r["p_vs_base"] < 0.05 / len(tested)]
    text = f"{len(sure)} of {len(tested)} comparisons with the base differ at p < 0.05 after Bonferroni's correction"
    best: dict[tuple[str, str], list[dict[str, Any]]] = {}
    for row in table:
        best.setdefault((row["benchmark"], row["protocol"]), []).append(row)
    ties = [key for key, rows in best.items() if _overlap(rows)]
    notes = [
        text + ". Tuned models are asked in the chat template, the base model plainly: p tests both at once."
    ]
    if ties:
        names = "; ".join(f"{b} by {p}" for b, p in ties)
        notes.append(
            f"The intervals of the best and the worst variant overlap on {names}: do not rank variants there."
        )
    return notes


def about_dpo(dpo: dict[str, Any]) -> str:
    """One sentence on the effect."""
    moved = dpo["accuracy_after"] - dpo["accuracy_before"]
    sure = dpo["p_value"] < 0.05
    before, after = (f"{percent(dpo[key])} %" for key in ("accuracy_before", "accuracy_after"))
    change = f"{'rose' if moved > 0 else 'fell'} from {before} to {after}" if moved else f"stayed at {after}"
    p = p_value(dpo["p_value"])
    p = p if p.startswith("<") else f"= {p}"
    return (
        f"On {count(dpo['n'])} held-out pairs the share whose chosen reply is likelier (per token) than the rejected one "
        f"{change} (McNemar p {p}{'' if sure else ', so this may be chance'})."
    )


def _title(model: str | None) -> str:
    return {
        "dpo": "final model (dpo)",
        "base": "base model",
        "untrained": "untrained model",
        "start": "model that it started from",
    }.get(str(model), f"tuned model ({model})")


def _at_chance(row: dict[str, Any]) -> bool:
    return row["ci95"][0] <= chance(row) <= row["ci95"][1]


def _overlap(rows: list[dict[str, Any]]) -> bool:
    if len(rows) < 2:
        return False
    best, worst = max(rows, key=lambda r: r["accuracy"]), min(rows, key=lambda r: r["accuracy"])
    return best["ci95"][0] <= worst["ci95"][1]
