"""All pairs of close 64-bit hashes, with memory bounded by a bucket, and the groups they form.

Two hashes that differ in at most d of 64 bits, cut into b blocks, agree on at least b - d whole blocks
(Manku, Jain and Sarma, "Detecting near-duplicates for web crawling", 2007). So for each choice of
b - d blocks the hashes are bucketed and sorted by these blocks, and compared where they agree. Every pair is found,
whatever b is; more blocks mean more passes over longer keys, which many hashes need: `blocks_for`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from itertools import combinations
from math import comb
from pathlib import Path

import numpy as np

from tasks.clean.spill import Spill

CHUNK = 1 << 18
"""Hashes, or pairs of them, that are looked at in one step."""


def blocks_for(count: int, distance: int) -> int:
    """The number of blocks for which this many random hashes take the fewest comparisons."""

    def cost(blocks: int) -> float:
        key_bits = 64 * (blocks - distance) / blocks
        return comb(blocks, distance) * count * (8 + count / 2**key_bits)

    return min(range(distance + 2, distance + 7), key=cost)


def close_pairs(
    hashes: Callable[[], Iterable[np.ndarray]],
    count: int,
    distance: int,
    memory: int,
    work: Path,
    blocks: int | None = None,
) -> Iterator[np.ndarray]:
    """Arrays [n, 2] of uint64: every pair of distinct hashes at most `distance` bits apart, once.

    `hashes()` streams `count` distinct hashes (uint64) in chunks, once a pass; `work` is an empty place on disk.
    """
    blocks = blocks or blocks_for(count, distance)
    edges = [64 * i // blocks for i in range(blocks + 1)]
    masks = [np.uint64((1 << high) - (1 << low)) for low, high in zip(edges, edges[1:], strict=False)]
    for number, chosen in enumerate(combinations(range(blocks), blocks - distance)):
        mask = np.bitwise_or.reduce([masks[i] for i in chosen])
        spill = Spill(work / f"blocks-{number}", np.uint64, count, memory)
        for chunk in hashes():
            spill.by_hash(chunk & mask, chunk)
        for bucket in spill.read():
            order = np.argsort(bucket & mask, kind="stable")
            for a, b in _agreeing(bucket[order], mask):
                differ = a ^ b
                near = np.bitwise_count(differ) <= distance
                a, b, differ = a[near], b[near], differ[near]
                first = _first_choice(differ, masks, blocks - distance) == mask
                if first.any():
                    yield np.stack([a[first], b[first]], axis=1)


def _agreeing(values: np.ndarray, mask: np.uint64) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Pairs of sorted hashes that are equal under the mask: neighbours, then those two apart, and so on."""
    keys = values & mask
    starts = np.arange(len(values))
    apart = 1
    while True:
        starts = starts[starts + apart < len(values)]
        starts = starts[keys[starts] == keys[starts + apart]]
        if not len(starts):
            return
        for at in range(0, len(starts), CHUNK):
            some = starts[at : at + CHUNK]
            yield values[some], values[some + apart]
        apart += 1


def _first_choice(differ: np.ndarray, masks: list[np.uint64], blocks: int) -> np.ndarray:
    """Mask of the first `blocks` blocks on which each pair agrees: the one pass that reports it."""
    choice = np.zeros(len(differ), np.uint64)
    taken = np.zeros(len(differ), np.int64)
    for mask in masks:
        equal = ((differ & mask) == 0) & (taken < blocks)
        choice[equal] |= mask
        taken += equal
    return choice


class Groups:
    """Connected components of hashes: 16 bytes for each hash that is close to another, in memory."""

    def __init__(self, hashes: np.ndarray):
        """`hashes`: sorted, distinct."""
        self.hashes = hashes
        self.parent = np.arange(len(hashes), dtype=np.uint64)

    def join(self, pairs: np.ndarray) -> None:
        """Put the two hashes of each pair [n, 2] into one group."""
        a, b = (np.searchsorted(self.hashes, pairs[:, side]) for side in (0, 1))
        while True:
            a, b = self._root(a), self._root(b)
            apart = a != b
            if not apart.any():
                return
            low, high = np.minimum(a, b)[apart], np.maximum(a, b)[apart]
            np.minimum.at(self.parent, high, low)

    def of(self, hashes: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """(which of these hashes are in a group, the groups of those)."""
        if not len(self.hashes):
            return np.zeros(len(hashes), bool), np.zeros(0, np.uint64)
        at = np.minimum(np.searchsorted(self.hashes, hashes), len(self.hashes) - 1)
        held = self.hashes[at] == hashes
        return held, self._root(at[held])

    def _root(self, at: np.ndarray) -> np.ndarray:
        at = at.astype(np.uint64)
        while True:
            up = self.parent[at]
            if (up == at).all():
                return at
            self.parent[at] = self.parent[up]
            at = up
