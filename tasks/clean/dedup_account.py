"""What clean:dedup writes: who was dropped as a copy of whom, source by source, and the largest groups."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import orjson

from tasks.clean.shown import excerpt
from tasks.clean.spill import Spill
from tasks.records import account as accounts
from tasks.records import record
from tasks.records.account import Accounting, SourceAccount, StepCount
from tasks.records.drops import DROPS, Copy
from tasks.settings.errors import NodeError

METHODS = ("exact", "near")
DROP = np.dtype([("at", "<u8"), ("of", "<u8"), ("of_id", "u1", 16), ("method", "u1")])
"""A copy: its number, number and id of the record that is kept, index into METHODS."""


@dataclass
class Part:
    """A part of a source and its signatures; its records are number `first` and on, over all sources."""

    source: str
    path: Path
    signed: Path
    first: int
    count: int

    def rows(self) -> np.ndarray:
        """[count] of signatures.ROW, read anew each time: one part at a time is in memory."""
        return np.load(self.signed, allow_pickle=False)

    @property
    def numbers(self) -> np.ndarray:
        return np.arange(self.first, self.first + self.count, dtype=np.uint64)


class SourceDrops:
    """drops.jsonl and account of one source; its dropped records come in their order, each once."""

    def __init__(self, source: str, folder: Path):
        folder.mkdir(parents=True)
        self.source, self.folder = source, folder
        self.file = (folder / DROPS).open("wb")
        self.records_in = self.chars_in = self.across = 0
        self.first: int | None = None
        self.last = -1
        """Number of the record dropped last."""
        self.dropped: Counter[str] = Counter()
        self.chars: Counter[str] = Counter()

    def take(self, part: Part) -> None:
        self.first = part.first if self.first is None else self.first
        self.records_in += part.count
        self.chars_in += int(part.rows()["chars"].sum(dtype=np.int64))

    def drop(self, part: Part, rows: np.ndarray) -> None:
        if (np.diff(rows["at"].astype(np.int64), prepend=self.last) <= 0).any():
            raise NodeError(f"{self.source}: a record was dropped twice, or out of order")
        self.last = int(rows["at"][-1])
        mine = part.rows()[(rows["at"] - np.uint64(part.first)).astype(np.int64)]
        self.across += int((rows["of"] < self.first).sum())
        for number, method in enumerate(METHODS):
            chosen = rows["method"] == number
            self.dropped[method] += int(chosen.sum())
            self.chars[method] += int(mine["chars"][chosen].sum(dtype=np.int64))
        for row, record_id in zip(rows, mine["id"], strict=True):
            kept, method = row["of_id"].tobytes().hex(), METHODS[row["method"]]
            line = Copy(id=record_id.tobytes().hex(), duplicate_of=kept, method=method)
            self.file.write(record.dump(line))

    def close(self) -> SourceAccount:
        """The account, also written; NodeError if drops.jsonl, read back, does not hold what was counted."""
        self.file.close()
        listed = Counter(line["method"] for line in record.read(Path(self.file.name)))
        kept = self.records_in - listed.total()
        if listed != +self.dropped or kept < 0:
            raise NodeError(
                f"{self.source}: of {self.records_in} records {dict(+self.dropped)} were dropped, but drops.jsonl "
                f"lists {dict(listed)}"
            )
        reached, chars, steps = self.records_in, self.chars_in, []
        for method in METHODS:
            lost, lost_chars = self.dropped[method], self.chars[method]
            steps.append(
                StepCount(
                    method,
                    "dedup",
                    reached,
                    reached - lost,
                    dropped=lost,
                    chars_in=chars,
                    chars_out=chars - lost_chars,
                )
            )
            reached, chars = steps[-1].records_out, steps[-1].chars_out
        account = Accounting(
            self.source, self.records_in, self.chars_in, kept, chars, dropped=self.dropped, steps=steps
        )
        result = account.as_json()
        accounts.write(self.folder, result)
        return result


class Examples:
    """The first copies that each method found in a source, beside the records that are kept."""

    def __init__(self, parts: Sequence[Part], most: int):
        self.parts, self.most = parts, most
        self.starts = np.array([part.first for part in parts], np.uint64)
        self.shown: dict[str, dict[str, list[dict[str, str]]]] = {}
        """Source -> method -> the examples."""

    def add(self, source: str, rows: np.ndarray) -> None:
        """Some dropped records (of DROP) of a source, in order."""
        shown = self.shown.setdefault(source, {})
        for number, method in enumerate(METHODS):
            mine = shown.setdefault(method, [])
            for row in rows[rows["method"] == number][: self.most - len(mine)]:
                kept, text = row["of_id"].tobytes().hex(), self._excerpt(row["of"])
                mine.append({"dropped": self._excerpt(row["at"]), "kept": text, "duplicate_of": kept})

    def _excerpt(self, at: np.uint64) -> str:
        part = self.parts[int(np.searchsorted(self.starts, at, side="right")) - 1]
        with part.path.open("rb") as file:
            file.seek(int(part.rows()["offset"][int(at) - part.first]))
            return excerpt(record.whole_text(orjson.loads(file.readline())))


class Largest:
    """The records with the most copies."""

    def __init__(self, spill: Spill):
        self.spill = spill

    def add(self, drops: np.ndarray) -> None:
        self.spill.by_hash(drops["of"], drops)

    def top(self, count: int = 10) -> list[dict[str, Any]]:
        """The largest groups; of two that are equal the one with the smaller id comes first."""
        largest: list[tuple[int, str, str]] = []
        for bucket in self.spill.read():
            keys = bucket["of"] * np.uint64(2) + bucket["method"]
            _, at, sizes = np.unique(keys, return_index=True, return_counts=True)
            ids = bucket["of_id"][at].view(">u8")
            for i in np.lexsort((bucket["method"][at], ids[:, 1], ids[:, 0], -sizes))[:count]:
                row = bucket[at[i]]
                largest.append((-int(sizes[i]), row["of_id"].tobytes().hex(), METHODS[row["method"]]))
            largest = sorted(largest)[:count]
        return [{"id": kept, "method": method, "size": 1 - size} for size, kept, method in largest]
