"""The folders of a source's jobs put together, without the records that repeat an earlier one."""

from __future__ import annotations

import shutil
from collections import Counter
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import numpy as np
import orjson

from tasks.convert import job, unique
from tasks.convert.job import Example, Quarantined, Tally
from tasks.records import parts
from tasks.records.drops import NotConverted
from tasks.records.record import chars, dump, opening
from tasks.settings.errors import NodeError
from tasks.settings.files import link_or_copy

DUPLICATE = "duplicate-id"
Submit = Callable[..., Future]
Total = Literal["records_in", "chars_in", "kept", "chars_out", "bytes_in", "bytes_lost"]
ByReason = Literal["quarantined", "dropped", "dropped_chars", "cut", "barren"]


@dataclass
class Joined:
    """What the jobs counted, and what of their records repeats an earlier one."""

    tallies: list[Tally]
    repeated: int = 0
    repeated_chars: int = 0
    shown: list[NotConverted] = field(default_factory=list)

    def total(self, key: Total) -> int:
        return sum(tally[key] for tally in self.tallies)

    def counts(self, key: ByReason) -> Counter[str]:
        return sum((Counter(tally[key]) for tally in self.tallies), Counter())

    @property
    def without_records(self) -> list[str]:
        """The files of which not one record came, sorted."""
        cut, barren = self.counts("cut"), self.counts("barren")
        return sorted(file for file, count in barren.items() if count >= cut[file])

    @property
    def first(self) -> dict[str, Quarantined]:
        """Reason -> the first line of quarantine."""
        return {reason: line for tally in reversed(self.tallies) for reason, line in tally["first"].items()}

    def examples(self, most: int) -> dict[str, list[Example | NotConverted]]:
        """Step -> its first examples."""
        by_step: dict[str, list[Example | NotConverted]] = {}
        for tally in self.tallies:
            for step, examples in tally["examples"].items():
                by_step.setdefault(step, []).extend(examples)
        if self.shown:
            by_step[DUPLICATE] = list(self.shown)
        return {step: examples[:most] for step, examples in sorted(by_step.items())}


def join(folders: Sequence[Path], benchmark: bool, out: Path, examples: int, submit: Submit) -> Joined:
    """Link what the jobs made into `out`, without the records that repeat an earlier one.

    At most `examples` of those are kept to show.
    """
    joined = Joined([orjson.loads((folder / job.TALLY).read_bytes()) for folder in folders])
    _concatenate([folder / job.QUARANTINE for folder in folders], out / job.QUARANTINE)
    lost = [folder / job.DROPPED for folder in folders]
    if benchmark:
        link_or_copy(folders[0] / job.QUESTIONS, out / job.QUESTIONS)
        _concatenate(lost, out / job.DROPPED)
        return joined
    number, rewriting = 0, []
    many = joined.total("kept") > unique.BUDGET
    repeated = submit(unique.repeats, folders).result() if many else unique.repeats(folders)
    for folder, tally, rows in zip(folders, joined.tallies, repeated, strict=True):
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
                future = submit(without, folder / part["file"], gone, target, aside, examples)
                rewriting.append((aside, future, part["records"], len(gone)))
            else:
                link_or_copy(folder / part["file"], target)
    for aside, future, held, repeats in rewriting:
        kept, records, size, shown = future.result()
        if (kept, records) != (held - repeats, repeats):
            raise NodeError(
                f"{aside.name}: {kept} + {records} records were written, not {held - repeats} + {repeats}"
            )
        joined.repeated += records
        joined.repeated_chars += size
        joined.shown += shown
        lost.append(aside)
    _concatenate(lost, out / job.DROPPED)
    for aside, *_ in rewriting:
        aside.unlink()
    if number == 1:  # no reason for a number
        (out / parts.name(0)).rename(out / "records.jsonl")
    return joined


def without(
    path: Path, rows: np.ndarray, out: Path | None, aside: Path, examples: int
) -> tuple[int, int, int, list[NotConverted]]:
    """Copy a part without these rows, which are listed in `aside`.

    Returns the records written to `out` and to `aside`, and of the latter the characters and some examples.
    """
    gone, left, listed, size, shown = set(rows.tolist()), 0, 0, 0, []
    with path.open("rb") as source, open(out or "/dev/null", "wb") as kept, aside.open("wb") as lost:
        for row, line in enumerate(source):
            if row not in gone:
                kept.write(line)
                left += 1
                continue
            record = orjson.loads(line)
            size += chars(record)
            repeat = NotConverted(
                id=record["id"], operator=DUPLICATE, at=record["meta"]["at"], excerpt=opening(record)
            )
            lost.write(dump(repeat))
            listed += 1
            if len(shown) < examples:
                shown.append(repeat)
    return left, listed, size, shown


def _concatenate(paths: Sequence[Path], target: Path) -> None:
    with target.open("wb") as whole:
        for path in paths:
            with path.open("rb") as part:
                shutil.copyfileobj(part, whole, 1 << 20)
