"""Which records of a set go into post-training: those that were not dropped, chosen by hash.

A choice is a function of (seed, record id) alone: adding records to a set, or running on another
machine, does not reshuffle what was taken before, and a smaller share of a set is contained in a
larger one. Shares are exact: of n records, round(share · n) are taken. So are numbers of records.
"""

from __future__ import annotations

import hashlib
from array import array
from bisect import bisect_left
from collections.abc import Iterator, Mapping, Set
from dataclasses import dataclass
from pathlib import Path
from typing import Generic, NamedTuple, TypeVar

from tasks.records import drops as dropped
from tasks.records import parts
from tasks.records.record import Dialogue, Preference, id_of, read
from tasks.settings.errors import NodeError
from tasks.stage.node import Artifact
from tasks.tokenize.chat import Refused

Some = TypeVar("Some", Dialogue, Preference)


class Share(NamedTuple):
    """How much of a set a mixture takes."""

    name: str
    records: Path
    """Folder of the set's records."""
    drops: Path | None
    """Folder of the drops to subtract from them; None: there are none."""
    share: float
    """0 … 1"""
    number: int | None = None
    """So many records instead of a share."""


@dataclass(frozen=True)
class Work:
    """What to make of a mixture; picklable."""

    tokenizer: Path
    sets: tuple[Share, ...]
    seed: int
    max_tokens: int

    def taken(self) -> list[Taken]:
        """The parts of the sets that go into training, in the order of their names."""
        return [take(*each[:4], self.seed, *each[4:]) for each in sorted(self.sets, key=lambda s: s[0])]


def of_mixture(
    mixture: Mapping[str, float], inputs: Mapping[str, Artifact], counts: Mapping[str, int] | None = None
) -> tuple[Share, ...]:
    """The sets of a node's mixture, by share, and those of `counts`, by number of records."""
    asked: dict[str, tuple[float, int | None]] = {name: (share, None) for name, share in mixture.items()}
    asked |= {name: (1.0, count) for name, count in (counts or {}).items()}
    return tuple(
        Share(name, inputs[name].path, inputs[f"{name}.drops"].path, *how) for name, how in asked.items()
    )


def key(seed: int, purpose: str, *parts: str) -> int:
    """64 bits that depend on nothing but the arguments."""
    text = "\0".join((str(seed), purpose, *parts))
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "big")


def smallest(keys: array, count: int) -> int:
    """The largest key among the `count` smallest; -1 where count is 0."""
    import numpy as np

    if count <= 0:
        return -1
    if count > len(keys):
        raise ValueError(f"{count} of {len(keys)} keys")
    return int(np.partition(np.asarray(keys, np.uint64), count - 1)[count - 1])


@dataclass
class Taken(Generic[Some]):
    """The part of one set that goes into training, as bounds on the keys of its records."""

    name: str
    folder: Path
    drops: Set[bytes]
    """16-byte ids to leave out."""
    seed: int
    keys: array
    """Of every record that could be taken."""
    counts: dict[str, int]
    """records (in the set), dropped (by earlier stages), duplicates (of an id), taken, held_out."""
    bound: int = -1
    held_out_bound: int = -1
    only: array | None = None
    """Keys of the records to take, rising, where they are not all that lie within the bound."""
    refused: int = 0
    """Records that the tokenizer's chat template has no form for, as `refuse` was told."""
    refusal: str = ""
    """What the template said of the first of them."""

    def hold_out(self, count: int) -> None:
        """Keep the records with the smallest keys for validation: the same ones whatever the share."""
        self.counts["held_out"] = count
        self.held_out_bound = smallest(self.keys if self.only is None else self.only, count)

    def __iter__(self) -> Iterator[tuple[Some, bool]]:
        """(record, is it held out) in the order of the set, each id once."""
        seen: set[int] = set()
        for record in dropped.without(read(self.folder), self.drops):
            mine = key(self.seed, "mixture", record["id"])
            if mine <= self.bound and mine not in seen and self._takes(mine):
                seen.add(mine)
                yield record, mine <= self.held_out_bound

    def refuse(self, why: Refused) -> None:
        """Count a record that has no form. NodeError when that is all of them."""
        self.refused += 1
        self.refusal = self.refusal or str(why)
        if self.refused == self.counts["taken"]:
            raise NodeError(f"{self.name}: none of its {self.refused:,} records has a form: {self.refusal}")

    def _takes(self, mine: int) -> bool:
        if self.only is None:
            return True
        at = bisect_left(self.only, mine)
        return at < len(self.only) and self.only[at] == mine


def take(
    name: str, folder: Path, drops: Path | None, share: float, seed: int, count: int | None = None
) -> Taken:
    """Decide which records of a set are taken, a share or `count` of them: one pass over its ids. NodeError where there
    are fewer."""
    if not 0 <= share <= 1:
        raise NodeError(f"mixture: the share of {name} is {share:g}; it has to lie between 0 and 1")
    out = dropped.ids(drops / dropped.DROPS if drops else None)
    keys = array("Q")
    seen: set[int] = set()
    counts = {"records": 0, "dropped": 0, "duplicates": 0, "held_out": 0}
    for record_id in map(id_of, parts.lines(folder)):
        counts["records"] += 1
        if record_id in out:
            counts["dropped"] += 1
            continue
        mine = key(seed, "mixture", record_id.hex())
        if mine in seen:
            counts["duplicates"] += 1
            continue
        seen.add(mine)
        keys.append(mine)
    if count is not None and count > len(keys):
        raise NodeError(
            f"counts: {count:,} records of {name} are asked for, and there are {len(keys):,} "
            f"({counts['records']:,} less {counts['dropped']:,} dropped and {counts['duplicates']:,} repeated)"
        )
    counts["taken"] = int(share * len(keys) + 0.5) if count is None else count
    return Taken(name, folder, out, seed, keys, counts, bound=smallest(keys, counts["taken"]))
