"""Which records repeat an earlier one of their source: ids of all jobs compared, in bounded memory.

Every job left its ids sorted, so a range of ids is one slice of each job's file. The space of ids is
walked in as many ranges as keep a range's ids within `budget`; what is remembered is a bit a record.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from tasks.convert.job import ID, IDS

BUDGET = 4_000_000
"""Ids in memory at a time (some 100 bytes each while they are sorted)."""


def repeats(folders: Sequence[Path], budget: int = 0) -> list[np.ndarray]:
    """For each job, ascending, the rows of records whose id an earlier record of the source has.

    At most some `budget` (0: BUDGET) ids are compared at a time.
    """
    budget = budget or BUDGET
    ids = [np.load(folder / IDS, mmap_mode="r") for folder in folders]
    total = sum(len(each) for each in ids)
    repeated = [np.zeros(-(-len(each) // 8), np.uint8) for each in ids]
    ranges = -(-total // budget)
    borders = [at * 2**64 // max(1, ranges) for at in range(ranges)]
    cuts = [np.append(np.searchsorted(each["hi"], np.array(borders, ID["hi"])), len(each)) for each in ids]
    for number in range(ranges):
        slices = [each[cut[number] : cut[number + 1]] for each, cut in zip(ids, cuts, strict=True)]
        hi, lo, row = (np.concatenate([s[key] for s in slices]).astype(np.uint64) for key in ID.names)
        job = np.repeat(np.arange(len(slices)), [len(s) for s in slices])
        order = np.lexsort((row, job, lo, hi))
        same = (np.diff(hi[order]) == 0) & (np.diff(lo[order]) == 0)
        later = order[1:][same]
        for which in np.unique(job[later]):
            rows = row[later[job[later] == which]].astype(np.int64)
            np.bitwise_or.at(repeated[which], rows >> 3, np.uint8(1) << (rows & 7).astype(np.uint8))
    return [np.flatnonzero(np.unpackbits(bits, bitorder="little")) for bits in repeated]
