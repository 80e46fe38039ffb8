"""Texts as numpy arrays of code points, and how often n-grams repeat in each of them.

Shapes: N texts one after the other make a flat array of L code points or word numbers; `lengths` is [N].
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from functools import cache

import numpy as np

_GROUP_CODES, _GROUP_TEXTS = 1 << 18, 1 << 10
"""A group of texts is sorted at once: its keys fit into the cache, the number of a text into 10 bits."""
_HASH_BITS = np.uint64(54)
_A, _B = np.uint64(0x9E3779B97F4A7C15), np.uint64(0xC2B2AE3D27D4EB4F)


def code_points(texts: Sequence[str]) -> tuple[np.ndarray, np.ndarray]:
    """Code points of all texts, uint32 [L], and their lengths, int64 [N]."""
    codes = np.frombuffer("".join(texts).encode("utf-32-le", "surrogatepass"), np.uint32)
    return codes, np.fromiter(map(len, texts), np.int64, len(texts))


def class_table(is_member: Callable[[str], bool]) -> np.ndarray:
    """Bool for each of Unicode's code points."""
    return np.fromiter(map(is_member, map(chr, range(0x110000))), np.bool_, 0x110000)


def members(texts: Sequence[str], table: np.ndarray) -> list[int]:
    """Characters of each text that are in the class."""
    codes, lengths = code_points(texts)
    return sums(table[codes], lengths).tolist()


def sums(values: np.ndarray, lengths: np.ndarray) -> np.ndarray:
    """Sum over each text of flat values [L], int64 [N]."""
    totals = np.concatenate([[0], np.cumsum(values, dtype=np.int64)])
    ends = np.cumsum(lengths)
    return totals[ends] - totals[ends - lengths]


def repeated(codes: np.ndarray, lengths: np.ndarray, n: int) -> Iterator[np.ndarray]:
    """For each text how often each of its n-grams that come more than once does, most frequent first.

    n-grams are told apart by 54 bits of a hash: two of a text of m characters are taken for one with
    a chance of some m²/10^16.
    """
    start = 0
    ends = np.cumsum(lengths)
    for first, last in _groups(ends, len(lengths)):
        stop = int(ends[last - 1])
        yield from _repeated(codes[start:stop], lengths[first:last], n)
        start = stop


def _groups(ends: np.ndarray, count: int) -> Iterator[tuple[int, int]]:
    first, begin = 0, 0
    while first < count:
        last = int(np.searchsorted(ends, begin + _GROUP_CODES, side="right"))
        last = min(max(last, first + 1), first + _GROUP_TEXTS)
        yield first, last
        first, begin = last, int(ends[last - 1])


def _repeated(codes: np.ndarray, lengths: np.ndarray, n: int) -> Iterator[np.ndarray]:
    text = np.repeat(np.arange(len(lengths), dtype=np.uint64), lengths)
    counts, owner = np.empty(0, np.int64), np.empty(0, np.int64)
    if len(codes) >= n:
        keys = (_window_hashes(codes.astype(np.uint64), n) >> (np.uint64(64) - _HASH_BITS)) | (
            text[: len(text) - n + 1] << _HASH_BITS
        )
        keys = keys[text[: len(text) - n + 1] == text[n - 1 :]]  # not across two texts
        keys.sort()
        first_of_run = np.flatnonzero(np.concatenate([[True], keys[1:] != keys[:-1]])) if len(keys) else keys
        counts = np.diff(np.append(first_of_run, len(keys)).astype(np.int64))
        several = counts > 1
        counts = counts[several]
        owner = (keys[first_of_run[several].astype(np.int64)] >> _HASH_BITS).astype(np.int64)
        order = np.lexsort((-counts, owner))
        counts, owner = counts[order], owner[order]
    bounds = np.searchsorted(owner, np.arange(len(lengths) + 1))
    for i in range(len(lengths)):
        yield counts[bounds[i] : bounds[i + 1]]


def _window_hashes(codes: np.ndarray, n: int) -> np.ndarray:
    """A hash of codes[i : i + n] for every i, by doubling."""
    if n == 1:
        return codes
    if n % 2:
        return _combined(_window_hashes(codes, n - 1)[: len(codes) - n + 1], codes[n - 1 :])
    half = _window_hashes(codes, n // 2)
    return _combined(half[: -n // 2 or None], half[n // 2 :])


def _combined(left: np.ndarray, right: np.ndarray) -> np.ndarray:
    mixed = left * _A
    mixed += right * _B
    mixed ^= mixed >> np.uint64(29)
    return mixed


@cache
def alnum() -> np.ndarray:
    """Letters and digits, as `str.isalnum` has it."""
    return class_table(str.isalnum)


@cache
def alpha() -> np.ndarray:
    """Letters, as `str.isalpha` has it."""
    return class_table(str.isalpha)


@cache
def special() -> np.ndarray:
    """Data-Juicer's special characters; its emoji of several characters can never be one."""
    from data_juicer.ops.common.special_characters import SPECIAL_CHARACTERS

    return class_table(SPECIAL_CHARACTERS.__contains__)
