"""Interpolated modified Kneser-Ney n-gram models (Chen & Goodman 1998), written as ARPA text for KenLM.

    p(w | h) = (c(h w) - D(c)) / c(h .) + g(h) p(w | h')        h' = h without its first word

with g(h) the mass taken by the discounts, D1, D2, D3+ from counts of counts, and, below the highest
order, c = number of distinct words seen before (except after <s>, where nothing can stand before).
n-grams of order 2 and up that were seen once are pruned and their mass goes to g(h): distributions
still sum to one, the file stays small, and junk that slipped into the seed corpus (which hardly ever
repeats) is not learnt.

Counting is numpy on integer keys, one per n-gram: (number of its prefix, last word). One million
characters take about three seconds.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TextIO

import numpy as np

UNK, BOS, EOS = 0, 1, 2
SPECIALS = ("<unk>", "<s>", "</s>")


@dataclass
class Order:
    """All distinct n-grams of one order, as parallel arrays."""

    word: np.ndarray
    """Last word."""
    prefix: np.ndarray
    """Index of the n-gram without its last word, in the order below."""
    suffix: np.ndarray
    """Index of the n-gram without its first word, in the order below."""
    raw: np.ndarray
    """Times seen."""
    first: np.ndarray
    """First word."""
    at: np.ndarray
    """Position of each n-gram start in the corpus -> index here, or -1."""


@dataclass
class Level:
    """The smoothed n-grams of one order, parallel to `Order`."""

    probability: np.ndarray
    backoff: np.ndarray
    """Weight of the next lower order after this n-gram; 1 where nothing was seen after it."""
    kept: np.ndarray


def estimate(sentences: Iterable[Sequence[str]], order: int, path: Path) -> dict[str, int]:
    """Train on tokenised sentences and write `path`; returns how many n-grams of each order it holds."""
    vocabulary: dict[str, int] = {word: i for i, word in enumerate(SPECIALS)}
    ids: list[int] = []
    for sentence in sentences:
        ids.append(BOS)
        ids.extend(vocabulary.setdefault(word, len(vocabulary)) for word in sentence)
        ids.append(EOS)
    if not ids:
        raise ValueError("a language model needs at least one sentence")
    words = list(vocabulary)
    orders = _count(np.asarray(ids, dtype=np.int64), order, len(words))
    levels, unknown = _smooth(orders, len(words))
    while len(levels) > 2 and not levels[-1].kept.any():
        levels.pop()  # KenLM refuses an order without n-grams
    if len(levels) < 2 or not levels[1].kept.any():
        raise ValueError("the seed corpus is too small: no two words follow each other twice")
    with path.open("w", encoding="utf-8") as file:
        _write(file, words, orders, levels, unknown)
    return {str(n + 1): int(level.kept.sum()) for n, level in enumerate(levels)}


def _count(ids: np.ndarray, order: int, size: int) -> list[Order]:
    """n-grams within sentences: none spans </s> <s>, and none but <s> itself ends in <s>."""
    # ends[i]: position of the </s> of the sentence that i stands in
    is_end = ids == EOS
    positions = np.arange(len(ids))
    ends = positions[is_end][np.searchsorted(positions[is_end], positions)]
    orders: list[Order] = []
    for n in range(1, order + 1):
        starts = positions[positions + n - 1 <= ends]
        last = ids[starts + n - 1]
        below = orders[-1].at[starts] if orders else np.zeros(len(starts), dtype=np.int64)
        keys, first_seen, inverse, raw = np.unique(
            below * size + last, return_index=True, return_inverse=True, return_counts=True
        )
        at = np.full(len(ids), -1, dtype=np.int64)
        at[starts] = inverse
        example = starts[first_seen]
        suffix = orders[-1].at[example + 1] if orders else np.zeros(len(keys), dtype=np.int64)
        orders.append(Order(keys % size, keys // size, suffix, raw, ids[example], at))
    return orders


def _smooth(orders: list[Order], size: int) -> tuple[list[Level], float]:
    """The smoothed model of every order, and the probability of an unknown word."""
    levels: list[Level] = []
    unknown = 0.0
    for n, grams in enumerate(orders):
        count = grams.raw.astype(np.float64)
        if n < len(orders) - 1:
            before = np.bincount(orders[n + 1].suffix, minlength=len(count)).astype(np.float64)
            count = np.where(grams.first == BOS, count, before)
        if n == 0:
            count[grams.word == BOS] = 0  # never predicted
        kept = np.ones(len(count), dtype=bool) if n == 0 else grams.raw > 1
        discounted = np.where(kept, count - _discounts(count)[np.minimum(count, 3).astype(np.int64)], 0.0)
        contexts = 1 if n == 0 else len(orders[n - 1].word)
        total = np.maximum(np.bincount(grams.prefix, count, contexts), 1e-30)
        weight = 1.0 - np.bincount(grams.prefix, discounted, contexts) / total
        if n == 0:
            # the taken mass is spread over all words but <s>; <unk> has nothing else
            lower = unknown = weight[0] / (size - 1)
        else:
            levels[-1].backoff = weight
            lower = weight[grams.prefix] * levels[-1].probability[grams.suffix]
        levels.append(Level(discounted / total[grams.prefix] + lower, np.ones(len(count)), kept))
    return levels, unknown


def _discounts(count: np.ndarray) -> np.ndarray:
    """[0, D1, D2, D3+] from counts of counts; 0.75 where the corpus is too small to tell."""
    n1, n2, n3, n4 = (int((count == k).sum()) for k in (1, 2, 3, 4))
    if min(n1, n2, n3, n4) == 0:
        return np.array([0.0, 0.75, 0.75, 0.75])
    y = n1 / (n1 + 2 * n2)
    estimates = [1 - 2 * y * n2 / n1, 2 - 3 * y * n3 / n2, 3 - 4 * y * n4 / n3]
    return np.array([0.0] + [d if 0 < d < k else 0.75 for k, d in enumerate(estimates, start=1)])


def _write(file: TextIO, words: list[str], orders: list[Order], levels: list[Level], unknown: float) -> None:
    counts = [int(level.kept.sum()) for level in levels]
    counts[0] += 1  # <unk>, which is never seen
    file.write("\\data\\\n" + "".join(f"ngram {n + 1}={count}\n" for n, count in enumerate(counts)))
    texts: list[str] = []
    for n, (grams, level) in enumerate(zip(orders, levels, strict=False)):
        file.write(f"\n\\{n + 1}-grams:\n")
        last = [words[w] for w in grams.word]
        texts = last if n == 0 else [f"{texts[p]} {w}" for p, w in zip(grams.prefix, last, strict=True)]
        log_p = np.log10(np.maximum(level.probability, 1e-12))
        log_b = np.log10(np.maximum(level.backoff, 1e-12))
        if n == 0:
            log_p[grams.word == BOS] = -99.0
            file.write(f"{np.log10(unknown):.5f}\t<unk>\t0\n")
        for i in np.flatnonzero(level.kept):
            backoff = f"\t{log_b[i]:.5f}" if n + 1 < len(levels) else ""
            file.write(f"{log_p[i]:.5f}\t{texts[i]}{backoff}\n")
    file.write("\n\\end\\\n")
