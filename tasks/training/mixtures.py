"""Reading converted records for post-training, and choosing among them by hash.

A choice is a function of (seed, record id) alone: adding records to a set, or running on another
machine, does not reshuffle what was taken before, and a smaller share of a set is contained in a
larger one. Shares are exact: of n records, round(share · n) are taken.
"""

from __future__ import annotations

import hashlib
from array import array
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import orjson

from tasks.records import parts
from tasks.settings.errors import NodeError
from tasks.stage.node import Artifact


def of_mixture(
    mixture: Mapping[str, float], inputs: Mapping[str, Artifact]
) -> tuple[tuple[str, Path, Path, float], ...]:
    """For each set of a mixture: its name, its records, what was dropped of them, the share to take."""
    return tuple(
        (name, inputs[name].path, inputs[f"{name}.drops"].path, share) for name, share in mixture.items()
    )


def read(folder: Path) -> Iterator[dict[str, Any]]:
    """The records of a converted set, in their order."""
    yield from map(orjson.loads, parts.lines(folder))


def dropped_ids(folder: Path | None) -> set[str]:
    """Ids that deduplication or decontamination took out."""
    if folder is None or not (folder / "drops.jsonl").exists():
        return set()
    with (folder / "drops.jsonl").open("rb") as lines:
        return {orjson.loads(line)["id"] for line in lines}


def key(seed: int, purpose: str, *parts: str) -> int:
    """64 bits that depend on nothing but the arguments."""
    text = "\0".join((str(seed), purpose, *parts))
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "big")


def smallest(keys: array, count: int) -> int:
    """The largest key among the `count` smallest, or -1 when none is wanted."""
    import numpy as np

    if count <= 0:
        return -1
    if count > len(keys):
        raise ValueError(f"{count} of {len(keys)} keys")
    return int(np.partition(np.asarray(keys, np.uint64), count - 1)[count - 1])


@dataclass
class Taken:
    """The part of one set that goes into training, as bounds on the keys of its records."""

    name: str
    folder: Path
    drops: set[str]
    seed: int
    keys: array
    """Of every record that could be taken."""
    counts: dict[str, int]
    """records (in the set), dropped (by earlier stages), duplicates (of an id), taken, held_out."""
    bound: int = -1
    held_out_bound: int = -1

    def hold_out(self, count: int) -> None:
        """Keep the records with the smallest keys for validation: the same ones whatever the share."""
        self.counts["held_out"] = count
        self.held_out_bound = smallest(self.keys, count)

    def __iter__(self) -> Iterator[tuple[dict[str, Any], bool]]:
        """(record, is it held out) in the order of the set, each id once."""
        seen: set[int] = set()
        for record in read(self.folder):
            if record["id"] in self.drops:
                continue
            mine = key(self.seed, "mixture", record["id"])
            if mine <= self.bound and mine not in seen:
                seen.add(mine)
                yield record, mine <= self.held_out_bound


def take(name: str, folder: Path, drops: Path | None, share: float, seed: int) -> Taken:
    """Decide which records of a set are taken: one pass over its ids."""
    if not 0 <= share <= 1:
        raise NodeError(f"mixture: the share of {name} is {share:g}; it has to lie between 0 and 1")
    out = dropped_ids(drops)
    keys = array("Q")
    seen: set[int] = set()
    counts = {"records": 0, "dropped": 0, "duplicates": 0, "held_out": 0}
    for record in read(folder):
        counts["records"] += 1
        if record["id"] in out:
            counts["dropped"] += 1
            continue
        mine = key(seed, "mixture", record["id"])
        if mine in seen:
            counts["duplicates"] += 1
            continue
        seen.add(mine)
        keys.append(mine)
    counts["taken"] = int(share * len(keys) + 0.5)
    return Taken(name, folder, out, seed, keys, counts, bound=smallest(keys, counts["taken"]))
