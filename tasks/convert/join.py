"""What the jobs of a source made, put together without the records that repeat an earlier one."""

from __future__ import annotations

import shutil
from collections import Counter
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import orjson

from tasks.convert import job, unique
from tasks.convert.verdicts import chars, opening
from tasks.records import parts
from tasks.settings.errors import NodeError
from tasks.work import partitions

DUPLICATE = "duplicate-id"
Submit = Callable[..., Future]


@dataclass
class Gathered:
    """What the jobs counted, and what of their records repeats an earlier one."""

    tallies: list[dict[str, Any]]
    repeated: int = 0
    repeated_chars: int = 0
    shown: list[dict[str, str]] = field(default_factory=list)

    def total(self, key: str) -> int:
        return sum(tally[key] for tally in self.tallies)

    def counts(self, key: str) -> Counter[str]:
        return sum((Counter(tally[key]) for tally in self.tallies), Counter())

    @property
    def without_records(self) -> list[str]:
        """The files of which not one record came, sorted."""
        parts = self.names("cut")
        return sorted(file for file, n in self.names("barren").items() if n >= parts[file])

    def names(self, key: str) -> Counter[str]:
        return Counter(file for tally in self.tallies for file in tally[key])

    @property
    def first(self) -> dict[str, dict[str, Any]]:
        """Reason -> the first line of quarantine."""
        return {reason: line for tally in reversed(self.tallies) for reason, line in tally["first"].items()}

    def examples(self, most: int) -> dict[str, list[dict[str, str]]]:
        """Step -> its first examples."""
        found: dict[str, list[dict[str, str]]] = {}
        for tally in self.tallies:
            for step, examples in tally["examples"].items():
                found.setdefault(step, []).extend(examples)
        if self.shown:
            found[DUPLICATE] = self.shown
        return {step: examples[:most] for step, examples in sorted(found.items())}


def gather(folders: Sequence[Path], benchmark: bool, out: Path, submit: Submit) -> Gathered:
    """Link what the jobs made into `out`, without the records that repeat an earlier one."""
    gathered = Gathered([orjson.loads((folder / job.TALLY).read_bytes()) for folder in folders])
    _concatenate([folder / job.QUARANTINE for folder in folders], out / job.QUARANTINE)
    lost = [folder / job.DROPPED for folder in folders]
    if benchmark:
        partitions.link(folders[0] / job.QUESTIONS, out / job.QUESTIONS)
        _concatenate(lost, out / job.DROPPED)
        return gathered
    number, rewriting = 0, []
    many = gathered.total("kept") > unique.BUDGET
    repeated = submit(unique.repeats, folders).result() if many else unique.repeats(folders)
    for folder, tally, rows in zip(folders, gathered.tallies, repeated, strict=True):
        before = 0
        for part in tally["parts"]:
            gone = rows[(rows >= before) & (rows < before + part["records"])] - before
            before += part["records"]
            if len(gone) == part["records"]:  # a part of nothing but repeats leaves no file of records
                target = None
            else:
                target, number = out / parts.name(number), number + 1
            if len(gone):
                aside = out / f"{len(rewriting):05d}.{job.DROPPED}.part"
                future = submit(without, folder / part["file"], gone, target, aside)
                rewriting.append((aside, future, part["records"], len(gone)))
            else:
                partitions.link(folder / part["file"], target)
    for aside, future, held, repeats in rewriting:
        kept, records, size, shown = future.result()
        if (kept, records) != (held - repeats, repeats):
            raise NodeError(
                f"{aside.name}: {kept} + {records} records were written, not {held - repeats} + {repeats}"
            )
        gathered.repeated += records
        gathered.repeated_chars += size
        gathered.shown += shown
        lost.append(aside)
    _concatenate(lost, out / job.DROPPED)
    for aside, *_ in rewriting:
        aside.unlink()
    if number == 1:  # no reason for a number
        (out / parts.name(0)).rename(out / "records.jsonl")
    return gathered


def without(
    path: Path, rows: np.ndarray, out: Path | None, aside: Path
) -> tuple[int, int, int, list[dict[str, str]]]:
    """Copy a part without these rows, which are listed in `aside`: records written here and there (counted as
    they are), characters and examples of the latter."""
    gone, left, listed, size, shown = set(rows.tolist()), 0, 0, 0, []
    with path.open("rb") as source, open(out or "/dev/null", "wb") as kept, aside.open("wb") as lost:
        for row, line in enumerate(source):
            if row not in gone:
                kept.write(line)
                left += 1
                continue
            record = orjson.loads(line)
            size += chars(record)
            found = {"id": record["id"], "operator": DUPLICATE, "at": record["meta"]["at"]}
            found["excerpt"] = opening(record)
            lost.write(orjson.dumps(found, option=orjson.OPT_APPEND_NEWLINE))
            listed += 1
            if len(shown) < job.SETTINGS["examples"]:
                shown.append(found)
    return left, listed, size, shown


def _concatenate(paths: Sequence[Path], target: Path) -> None:
    with target.open("wb") as whole:
        for path in paths:
            with path.open("rb") as part:
                shutil.copyfileobj(part, whole, 1 << 20)
