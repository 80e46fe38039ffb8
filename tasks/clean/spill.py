"""Rows in buckets on disk: how more hashes than fit into memory are grouped by hash.

A bucket holds every row of its part of the hash space, in the order in which they were added. So a
bucket can be sorted and compared alone, and its size, not the number of rows, decides the memory.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

MAX_BUCKETS = 4096
_ODD = np.uint64(0x9E3779B97F4A7C15)


class Spill:
    """Rows of one dtype (no objects), spread over files; at most `memory` bytes a bucket where hashes allow."""

    def __init__(self, folder: Path, dtype: Any, rows: int, memory: int, buckets: int = 0):
        """`rows` is about how many will come: it sets the number of buckets, unless that is given."""
        self.folder, self.dtype = folder, np.dtype(dtype)
        # sorting a bucket takes a few times its size
        self.buckets = buckets or min(MAX_BUCKETS, 4 * rows * self.dtype.itemsize // memory + 1)
        self.limit = max(1 << 12, memory // 4 // self.dtype.itemsize)
        self.waiting: list[tuple[np.ndarray, np.ndarray]] = []
        self.count = 0
        folder.mkdir(parents=True)

    def by_hash(self, keys: np.ndarray, rows: np.ndarray) -> None:
        """Add rows where their 64-bit key belongs; equal keys share a bucket, close ones do not."""
        mixed = (keys ^ (keys >> np.uint64(31))) * _ODD
        self.add(((mixed >> np.uint64(32)) * np.uint64(self.buckets)) >> np.uint64(32), rows)

    def by_rank(self, ranks: np.ndarray, total: int, rows: np.ndarray) -> None:
        """Add rows by their place among `total`: the buckets, one after the other, are in that order."""
        self.add(ranks * np.uint64(self.buckets) // np.uint64(max(1, total)), rows)

    def add(self, buckets: np.ndarray, rows: np.ndarray) -> None:
        """Add rows to the buckets of these numbers."""
        self.waiting.append((buckets.astype(np.uint16), rows))
        self.count += len(rows)
        if self.count >= self.limit:
            self._flush()

    def read(self) -> Iterator[np.ndarray]:
        """The buckets that hold anything, in order; each is gone from disk once it has been handed out."""
        for number in range(self.buckets):
            rows = self.bucket(number)
            if len(rows):
                yield rows

    def bucket(self, number: int) -> np.ndarray:
        """The rows of one bucket, which is then gone from disk."""
        return np.concatenate([np.zeros(0, self.dtype), *self.pieces(number)])

    def pieces(self, number: int) -> Iterator[np.ndarray]:
        """The same in pieces, for a bucket that one key has filled beyond the bound."""
        self._flush()
        path = self.folder / f"{number:04d}"
        if path.exists():
            with path.open("rb") as file:
                while len(rows := np.fromfile(file, self.dtype, self.limit)):
                    yield rows
            path.unlink()

    def _flush(self) -> None:
        if not self.count:
            return
        buckets = np.concatenate([where for where, _ in self.waiting])
        rows = np.concatenate([what for _, what in self.waiting])
        order = np.argsort(buckets, kind="stable")
        buckets, rows = buckets[order], rows[order]
        starts = np.flatnonzero(np.diff(buckets, prepend=-1))
        for start, end in zip(starts, [*starts[1:], len(rows)], strict=True):
            with (self.folder / f"{buckets[start]:04d}").open("ab") as file:
                rows[start:end].tofile(file)
        self.waiting, self.count = [], 0
