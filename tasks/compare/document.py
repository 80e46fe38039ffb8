"""The comparison as one JSON document that another clone can verify: every answer hashed, and the whole.

No question is in it (benchmarks keep their licences): an answer names its question by the id that the convert stage
gives it, the same wherever the same file is converted.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import orjson

from tasks.evaluate.asking import Answer
from tasks.evaluate.statistics import paired, wilson

FORMAT = 1
REFUSALS = (
    "我不知道", "无法回答", "不能回答", "无法确定", "抱歉", "对不起", "作为一个人工智能", "作为AI",
    "i don't know", "i do not know", "i cannot", "i can't", "i'm sorry", "as an ai", "unable to answer",
)  # fmt: skip
"""A generated reply that names no option and has one of these is a refusal."""


def answer_hash(files: Mapping[str, str], digest: str, answer: Answer) -> str:
    """sha256 over the model's files, the protocol's digest and all of an answer."""
    told = {key: value for key, value in answer.items() if key != "sha256"}
    whole = [sorted(files.values()), digest, told]
    return hashlib.sha256(orjson.dumps(whole, option=orjson.OPT_SORT_KEYS)).hexdigest()


def document(
    models: Mapping[str, Mapping[str, Any]],
    digests: Mapping[str, str],
    contamination: Mapping[str, Any] | None,
    recipe: Mapping[str, Any],
) -> dict[str, Any]:
    """`models`: name -> files, rows, answers, cost, recipe; `digests`: benchmark -> sha256 of its questions."""
    content: dict[str, Any] = {
        "format": FORMAT,
        **recipe,
        "benchmarks": dict(digests),
        "models": {name: _model(model, contamination) for name, model in models.items()},
        "pairs": pairs({name: model["answers"] for name, model in models.items()}),
    }
    if contamination:
        content["contamination"] = dict(contamination)
    return {**content, "sha256": whole_hash(content)}


def whole_hash(content: Mapping[str, Any]) -> str:
    """Of everything but the hash itself."""
    told = {key: value for key, value in content.items() if key != "sha256"}
    return hashlib.sha256(orjson.dumps(told, option=orjson.OPT_SORT_KEYS)).hexdigest()


def _model(model: Mapping[str, Any], contamination: Mapping[str, Any] | None) -> dict[str, Any]:
    by_protocol = model["recipe"]["protocols"]
    answers = [
        {**a, "sha256": answer_hash(model["files"], by_protocol[a.get("scoring") or a["protocol"]], a)}
        for a in model["answers"]
    ]
    found = {**model, "answers": answers, "rows": [dict(row) for row in model["rows"]]}
    for row in found["rows"]:
        lines = [a for a in answers if _key(a) == _key(row)]
        row |= letters_told(row) | replies_told(lines)
        if contamination:
            row |= halves(lines, _held(contamination))
    return found


def _key(line: Mapping[str, Any]) -> tuple[str, str, str | None]:
    return line["benchmark"], line["protocol"], line.get("scoring")


def letters_told(row: Mapping[str, Any]) -> dict[str, Any]:
    """How much of a model's answers is its favourite letter."""
    counts = row.get("letters")
    if not counts:
        return {}
    letter = max(counts, key=lambda x: (counts[x], x))
    return {"favourite": letter, "favourite_share": counts[letter] / sum(counts.values())}


def replies_told(lines: Sequence[Answer]) -> dict[str, Any]:
    """Of generated replies: the share that was read, and the share that refuses."""
    replies = [line for line in lines if "reply" in line]
    if not replies:
        return {}
    refused = sum(
        not line["parsed"] and any(r in line["reply"].lower() for r in REFUSALS) for line in replies
    )
    parsed = sum(bool(line["parsed"]) for line in replies)
    return {"parse_rate": parsed / len(replies), "refusal_rate": refused / len(replies)}


def halves(lines: Sequence[Answer], held: Mapping[str, Iterable[str]]) -> dict[str, Any]:
    """Accuracy on the questions that stand in the training text, and on the others; Fisher's exact test, two-sided.

    Questions of the text that are answered better than the others, beyond chance, were learned by heart.
    """
    counts = {True: [0, 0], False: [0, 0]}
    ids = {question for some in held.values() for question in some}
    for line in lines:
        cell = counts[line["id"] in ids]
        cell[0] += bool(line["correct"])
        cell[1] += 1
    told: dict[str, Any] = {}
    for name, (right, n) in (("held", counts[True]), ("not_held", counts[False])):
        told[name] = {"n": n, "accuracy": right / n if n else None, "ci95": list(wilson(right, n))}
    told["held_p_value"] = fisher_exact(*counts[True], *counts[False])
    return told


def fisher_exact(right_a: int, n_a: int, right_b: int, n_b: int) -> float:
    """Two-sided p-value that two shares are the same: all tables that are no likelier (R. A. Fisher, 1922)."""
    from math import exp, lgamma

    if not n_a or not n_b:
        return 1.0

    def ln(n: int, k: int) -> float:
        return lgamma(n + 1) - lgamma(k + 1) - lgamma(n - k + 1)

    right = right_a + right_b
    whole = ln(n_a + n_b, right)
    tables = [
        ln(n_a, k) + ln(n_b, right - k) - whole for k in range(max(0, right - n_b), min(n_a, right) + 1)
    ]
    here = ln(n_a, right_a) + ln(n_b, right_b) - whole
    return min(1.0, sum(exp(x) for x in tables if x <= here + 1e-9))


def pairs(answers: Mapping[str, Sequence[Answer]]) -> list[dict[str, Any]]:
    """McNemar's exact test of every two models on every benchmark and protocol; not on controls."""
    found = []
    names = list(answers)
    kinds = dict.fromkeys(
        (a["benchmark"], a["protocol"]) for some in answers.values() for a in some if not a.get("scoring")
    )
    for at, one in enumerate(names):
        for other in names[at + 1 :]:
            for benchmark, protocol in kinds:
                told = paired(answers[one], answers[other], benchmark=benchmark, protocol=protocol)
                found.append({"a": one, "b": other, "benchmark": benchmark, "protocol": protocol, **told})
    return found


def _held(contamination: Mapping[str, Any]) -> Mapping[str, Iterable[str]]:
    return contamination["questions"]
