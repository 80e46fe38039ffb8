"""The order of blocks: a function of (seed, epoch, manifest history) alone.

A *position* counts the blocks consumed since the start of training, over all epochs; the plan maps
it to a *block* number. Nothing is stored but the history, a few integers per append: the order
inside an epoch is a Feistel permutation, evaluated at the positions that are asked for, forward
or backward, in any order. So a resume costs nothing, and every rank computes the same order.

History: each *era* began at a position when blocks were appended. In the epoch where that happens
what was consumed stays consumed, the unread rest and the new blocks are permuted together; later
epochs permute everything. Hence every block is seen exactly once an epoch (a block that joins in
mid-epoch: once in what is left of it), however often data is appended.

Feistel networks over an arbitrary range by cycle walking: Black and Rogaway, "Ciphers with
Arbitrary Finite Domains" (CT-RSA 2002). The halves may differ by a bit, so that the domain is less
than twice the range and a walk takes less than two tries on average.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

ROUNDS = 8


class Feistel:
    """A pseudo-random permutation of range(n), by random access, with its inverse."""

    def __init__(self, n: int, *key: int) -> None:
        self.n = n
        bits = max(2, (n - 1).bit_length())
        self._low, self._high = np.uint64(bits - bits // 2), np.uint64(bits // 2)
        words = ":".join(["steel-plan-1", str(n), *map(str, key)]).encode()
        digest = hashlib.blake2b(words, digest_size=8 * ROUNDS).digest()
        self._keys = np.frombuffer(digest, "<u8").astype(np.uint64)

    def __call__(self, index: np.ndarray) -> np.ndarray:
        """Permute each of `index` (int64 in, int64 out)."""
        return self._walk(index, range(ROUNDS))

    def inverse(self, index: np.ndarray) -> np.ndarray:
        """Where each of `index` came from."""
        return self._walk(index, range(ROUNDS - 1, -1, -1))

    def _walk(self, index: np.ndarray, rounds: range) -> np.ndarray:
        # Values that fall outside the range go round again; since the network is a bijection,
        # each comes back inside after finitely many rounds and no two meet.
        x = self._network(np.asarray(index, np.int64).astype(np.uint64), rounds)
        outside = np.flatnonzero(x >= np.uint64(self.n))
        while outside.size:
            x[outside] = moved = self._network(x[outside], rounds)
            outside = outside[moved >= np.uint64(self.n)]
        return x.astype(np.int64)

    def _network(self, x: np.ndarray, rounds: range) -> np.ndarray:
        low_mask = (np.uint64(1) << self._low) - np.uint64(1)
        high_mask = (np.uint64(1) << self._high) - np.uint64(1)
        high, low = x >> self._low, x & low_mask
        for r in rounds:
            # Each round changes one half by a function of the other, so it is its own inverse.
            if r % 2:
                low = low ^ (_mix(high, self._keys[r]) & low_mask)
            else:
                high = high ^ (_mix(low, self._keys[r]) & high_mask)
        return (high << self._low) | low


def _mix(x: np.ndarray, key: np.uint64) -> np.ndarray:
    """The finalizer of splitmix64 (Steele, Lea, Flood 2014); arithmetic is modulo 2^64."""
    x = x + key
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return x ^ (x >> np.uint64(31))


@dataclass(frozen=True)
class Era:
    """From position `start` on there are `blocks` blocks; the epoch then under way is `epoch`."""

    start: int
    blocks: int
    epoch: int
    epoch_start: int
    """Position at which that epoch began."""

    @property
    def epoch_end(self) -> int:
        return self.epoch_start + self.blocks


def _epochs_between(era: Era, until: int) -> Iterator[int]:
    """Where the epochs begin of which an era reads something before position `until`."""
    if era.start < era.epoch_end:
        yield era.epoch_start
    yield from range(era.epoch_end, until, era.blocks)


class Plan:
    """Position -> (epoch, block), for a history of appends."""

    def __init__(self, seed: int, blocks: int) -> None:
        if blocks < 1:
            raise ValueError("a plan needs at least one block")
        self.seed = seed
        self.eras = [Era(start=0, blocks=blocks, epoch=0, epoch_start=0)]
        self._orders: dict[tuple[int, int, int], Feistel] = {}

    @classmethod
    def of_history(cls, seed: int, history: Sequence[Mapping[str, Any]]) -> Plan:
        """The plan of a loader's history: [{"position", "blocks"}], blocks of all data from that position on."""
        plan = cls(seed, history[0]["blocks"])
        for before, entry in zip(history, history[1:], strict=False):
            plan.append(entry["blocks"] - before["blocks"], entry["position"])
        return plan

    @property
    def blocks(self) -> int:
        """Blocks of an epoch, now."""
        return self.eras[-1].blocks

    def append(self, new_blocks: int, position: int) -> None:
        """`new_blocks` more blocks, numbered after the old ones, from `position` on."""
        last = self.eras[-1]
        if new_blocks < 1 or position < last.start:
            raise ValueError("an append adds blocks, at or after the one before it")
        epoch, begun = self._epoch_of(last, position)
        self.eras.append(Era(position, last.blocks + new_blocks, epoch, begun))

    def epoch(self, position: int) -> tuple[int, int]:
        """The epoch a position lies in, and the position at which that epoch began."""
        return self._epoch_of(self._era_of(position), position)

    def end(self, epochs: float) -> int:
        """The position at which so many epochs, counted from the start of training, are through (rounded up)."""
        last = self.eras[-1]
        if epochs <= last.epoch:
            raise ValueError(f"epoch {last.epoch + 1} has begun: {epochs} epochs are over")
        return last.epoch_start + math.ceil(round((epochs - last.epoch) * last.blocks, 6))

    def block(self, positions: np.ndarray) -> np.ndarray:
        """The block at each position (int64 array, any order)."""
        positions = np.asarray(positions, np.int64)
        if positions.size and positions.min() < 0:
            raise ValueError("positions count from 0")
        return self._block(positions, len(self.eras) - 1)

    def _block(self, positions: np.ndarray, k: int) -> np.ndarray:
        """The blocks as the history of the first k + 1 eras has them."""
        era = self.eras[k]
        out = np.empty(positions.shape, np.int64)
        before = positions < era.start
        if before.any():
            out[before] = self._block(positions[before], k - 1)
        rest_of_epoch = ~before & (positions < era.epoch_end)
        if rest_of_epoch.any():
            out[rest_of_epoch] = self._rest_of_epoch(positions[rest_of_epoch], k)
        later = positions >= era.epoch_end
        if later.any():
            epochs, offsets = np.divmod(positions[later] - era.epoch_end, era.blocks)
            found = np.empty(offsets.shape, np.int64)
            for epoch in np.unique(epochs):
                here = epochs == epoch
                begins = era.epoch_end + int(epoch) * era.blocks
                order = self._order(era.blocks, era.epoch + 1 + int(epoch), begins)
                found[here] = order(offsets[here])
            out[later] = found
        return out

    def _rest_of_epoch(self, positions: np.ndarray, k: int) -> np.ndarray:
        """The unread tail of era k - 1's epoch and the blocks that joined with era k, mixed."""
        era = self.eras[k]
        drawn = self._order(era.epoch_end - era.start, era.epoch, era.start)(positions - era.start)
        if k == 0:
            return drawn
        old = self.eras[k - 1].blocks
        tail = era.epoch_start + old - era.start
        new = drawn >= tail
        drawn[new] += old - tail
        if not new.all():
            drawn[~new] = self._block(era.start + drawn[~new], k - 1)
        return drawn

    def positions(self, blocks: np.ndarray, end: int) -> list[int]:
        """Where blocks were read before position `end`, in order: the inverse of `block`, epoch by epoch."""
        blocks = np.asarray(blocks, np.int64)
        found: list[np.ndarray] = []
        for k, era in enumerate(self.eras):
            until = self.eras[k + 1].start if k + 1 < len(self.eras) else end
            known = blocks[blocks < era.blocks]
            for begins in _epochs_between(era, until):
                if (
                    begins == era.epoch_start
                ):  # its rest, from this era on; what was read before is an older era's
                    places = self._place_in_rest(known, k)
                else:
                    epoch = era.epoch + 1 + (begins - era.epoch_end) // era.blocks
                    places = begins + self._order(era.blocks, epoch, begins).inverse(known)
                found.append(places[(places >= era.start) & (places < min(until, end))])
        return sorted(int(p) for places in found for p in places)

    def _place_in_rest(self, blocks: np.ndarray, k: int) -> np.ndarray:
        """The position of blocks in the epoch under way when era k began; below its start: read before."""
        era = self.eras[k]
        order = self._order(era.epoch_end - era.start, era.epoch, era.start)
        if k == 0:
            return order.inverse(blocks)
        before = self.eras[k - 1]
        tail = era.epoch_start + before.blocks - era.start
        drawn = blocks - before.blocks + tail
        old = blocks < before.blocks
        if old.any():
            drawn[old] = self._place_in_epoch(blocks[old], k - 1, era) - era.start
        unread = drawn >= 0
        places = era.start + drawn
        places[unread] = era.start + order.inverse(drawn[unread])
        return places

    def _place_in_epoch(self, blocks: np.ndarray, k: int, of: Era) -> np.ndarray:
        """The position of blocks in the epoch of era `of`, as the history up to era k has it."""
        era = self.eras[k]
        if of.epoch_start == era.epoch_start:
            return self._place_in_rest(blocks, k)
        return of.epoch_start + self._order(era.blocks, of.epoch, of.epoch_start).inverse(blocks)

    def _order(self, n: int, epoch: int, begins: int) -> Feistel:
        """The permutation of the n blocks read from position `begins` to the end of the epoch."""
        key = (n, epoch, begins)
        if key not in self._orders:
            if len(self._orders) >= 64:
                self._orders.clear()
            self._orders[key] = Feistel(n, self.seed, epoch, begins)
        return self._orders[key]

    def _era_of(self, position: int) -> Era:
        return next(era for era in reversed(self.eras) if era.start <= position)

    @staticmethod
    def _epoch_of(era: Era, position: int) -> tuple[int, int]:
        if position < era.epoch_end:
            return era.epoch, era.epoch_start
        epochs, offset = divmod(position - era.epoch_end, era.blocks)
        return era.epoch + 1 + epochs, position - offset
