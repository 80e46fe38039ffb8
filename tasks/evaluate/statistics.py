"""Intervals and tests for shares of correct answers: nothing is reported without them.

Wilson's interval (E. B. Wilson, JASA 22, 1927) holds near 0 and 1 where the normal one does not.
McNemar's test compares two models on the same questions and looks only at those on which they differ;
its exact form is a two-sided binomial test at one half.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

Z95 = 1.959963984540054


def wilson(correct: int, n: int, z: float = Z95) -> tuple[float, float]:
    """95 % interval of a share; (0, 1) when nothing was asked."""
    if n == 0:
        return 0.0, 1.0
    share = correct / n
    centre = share + z * z / (2 * n)
    spread = z * math.sqrt(share * (1 - share) / n + z * z / (4 * n * n))
    scale = 1 + z * z / n
    # at the ends rounding must not push the bound past the share itself
    low = 0.0 if correct == 0 else (centre - spread) / scale
    high = 1.0 if correct == n else (centre + spread) / scale
    return low, high


def mcnemar_exact(only_a: int, only_b: int) -> float:
    """Two-sided p-value for `only_a` against `only_b` discordant pairs (1.0 when there are none)."""
    n = only_a + only_b
    if n == 0:
        return 1.0
    tail = sum(math.comb(n, k) for k in range(min(only_a, only_b) + 1))
    return min(1.0, 2 * (tail / (1 << n) if n < 1000 else math.exp(math.log(tail) - n * math.log(2))))


def paired(
    answers_a: Iterable[Mapping[str, Any]],
    answers_b: Iterable[Mapping[str, Any]],
    *,
    benchmark: str | None = None,
    protocol: str | None = None,
) -> dict[str, Any]:
    """Compare two `answers.jsonl` question by question; filters apply to both.

    Keys: n, accuracy_a, accuracy_b, only_a (a right, b wrong), only_b, p_value (exact McNemar).
    """
    a = _correct(answers_a, benchmark, protocol)
    b = _correct(answers_b, benchmark, protocol)
    if a.keys() != b.keys():
        raise ValueError(f"the two models were asked different questions ({len(a.keys() ^ b.keys())} differ)")
    only_a = sum(a[key] and not b[key] for key in a)
    only_b = sum(b[key] and not a[key] for key in a)
    return {
        "n": len(a),
        "accuracy_a": sum(a.values()) / len(a) if a else 0.0,
        "accuracy_b": sum(b.values()) / len(b) if b else 0.0,
        "only_a": only_a,
        "only_b": only_b,
        "p_value": mcnemar_exact(only_a, only_b),
    }


def _correct(
    answers: Iterable[Mapping[str, Any]], benchmark: str | None, protocol: str | None
) -> dict[tuple, bool]:
    correct: dict[tuple, bool] = {}
    for answer in answers:
        if benchmark is not None and answer["benchmark"] != benchmark:
            continue
        if protocol is not None and answer["protocol"] != protocol:
            continue
        key = (answer["benchmark"], answer["protocol"], answer.get("scoring"), answer["id"])
        if key in correct:
            raise ValueError(f"question {answer['id']} is answered twice")
        correct[key] = bool(answer["correct"])
    return correct


def kept_choice(first: Iterable[Mapping[str, Any]], others: Iterable[Mapping[str, Any]]) -> float:
    """Share of the questions whose answer is the same option in every order of the options."""
    picks: dict[str, set[Any]] = {answer["id"]: {answer["answer"]} for answer in first}
    for answer in others:
        picks[answer["id"]].add(answer["answer"])
    return sum(len(each) == 1 and None not in each for each in picks.values()) / len(picks)


def macro(groups: Sequence[tuple[int, int]]) -> float:
    """Mean of the groups' shares, each a (correct, n): every subject weighs the same."""
    shares = [correct / n for correct, n in groups if n]
    return sum(shares) / len(shares) if shares else 0.0
