"""What was dropped, as lines of JSON, and its subtraction from the records.

Every stage that drops a record writes a line that begins with its id (`record.line_start`):

    convert, clean            dropped.jsonl, beside the records, whose later parts hold them no more
    dedup, decontaminate      drops.jsonl, to be subtracted by whoever reads the records

An id is held as 16 bytes. `of_part` reads of a record's line the first bytes only.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Set
from functools import lru_cache
from pathlib import Path
from typing import Any, Literal, NotRequired, TypedDict, TypeVar

from tasks.records.record import ID_BYTES, id_bytes, id_of

DROPPED = "dropped"
"""Stem of the file in which convert and clean list what they dropped (see `parts`)."""
DROPS = "drops.jsonl"
"""The file in which deduplication and decontamination list what is to be subtracted."""
HITS = "hits.jsonl"
"""The file in which decontamination lists what holds a question, dropped or not."""
Some = TypeVar("Some", bound=Mapping[str, Any])


class NotConverted(TypedDict):
    """A record that an option of its source excludes, or that repeats an earlier one."""

    id: str
    operator: str
    """The step that dropped it."""
    at: str
    """Its place in the raw data."""
    excerpt: str


class NotClean(TypedDict):
    """A record that an operator of the recipe dropped."""

    id: str
    operator: str
    why: dict[str, Any]
    """The statistics that the operator judged by."""
    excerpt: str
    quarantined: NotRequired[str]
    """The reason, where the operator failed on the record instead of judging it."""


class Copy(TypedDict):
    """A copy of a record that is kept."""

    id: str
    step: NotRequired[Literal["dedup"]]
    """Once the line has come to clean:decontaminate."""
    duplicate_of: str
    method: str


class Hit(TypedDict):
    """A record that holds questions of a benchmark."""

    id: str
    step: NotRequired[Literal["decontaminate"]]
    """Where the record was dropped for it."""
    questions: list[list[str]]
    """[benchmark, id of the question]"""


def read_ids(drops: Path | str) -> Iterator[bytes]:
    """The 16-byte ids of a file of dropped lines, one at a time."""
    with open(drops, "rb") as lines:
        yield from map(id_of, lines)


def ids(drops: Path | str | None) -> frozenset[bytes]:
    """All ids of a file of dropped lines (None: there are none); a process reads it once for many parts."""
    return _ids(str(drops), Path(drops).stat().st_mtime_ns) if drops else frozenset()


def of_part(part: Path | str, drops: Path | str) -> bytes:
    """The ids of a part's records that are in `drops`, one after the other (a job for a worker).

    Not the whole list: a later part's duplicates are no reason to tokenize this one again.
    """
    if not (dropped := ids(drops)):
        return b""
    with open(part, "rb") as lines:
        return b"".join(one for one in map(id_of, lines) if one in dropped)


def unpacked(joined: bytes) -> frozenset[bytes]:
    """The ids that lie one after the other in `joined`, as `of_part` gave them."""
    return frozenset(joined[at : at + ID_BYTES] for at in range(0, len(joined), ID_BYTES))


def without(records: Iterable[Some], dropped: Set[bytes]) -> Iterator[Some]:
    """The records that were not dropped, in their order."""
    return (record for record in records if id_bytes(record) not in dropped) if dropped else iter(records)


@lru_cache(maxsize=2)
def _ids(drops: str, changed: int) -> frozenset[bytes]:
    return frozenset(read_ids(drops))
