"""clean:dedup: duplicates inside and across the pre-training sources; the first one is kept.

First in the order of the sources in the profile, then of their records. Two ways:
- exact: equal after normalisation (normalise.py), any length;
- near: SimHash, for texts of `dedup_min_chars` and more. A match of hashes only proposes a pair; the
  Jaccard similarity of their shingles decides (recipe: near_duplicates.min_similarity), because texts
  filled into one template can have close hashes. Only kept records are compared against, so there are
  no chains of ever less similar texts. Without min_similarity (recipe set `paper`) clusters are the
  operator's: chains of close hashes.

Both are decided once, over all sources together: what a pass over a source alone would find is among it, and
a first pass of its own would make chains. Signatures are partitions, made once for each part; the decision
sorts them by hash in buckets on disk (spill.py). In memory: a bucket, one bit a record, and 16 bytes for each
hash that is close to another.

Output: per source `<source>/drops.jsonl` {id, duplicate_of, method} and accounting.json; report.json
with the largest groups; examples.json with the first copies of each source beside what is kept.
"""

from __future__ import annotations

import shutil
from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import orjson

from tasks.clean import signatures
from tasks.clean.dedup_account import DROP, METHODS, Examples, Largest, Part, SourceDrops
from tasks.clean.near import CHUNK, Groups, close_pairs
from tasks.clean.recipe import NearDuplicates
from tasks.clean.shown import sources_table
from tasks.clean.signatures import KINDS, Shingles
from tasks.clean.spill import Spill
from tasks.records import account as accounts
from tasks.records import parts
from tasks.records.account import SourceAccount
from tasks.settings.config import Section
from tasks.settings.errors import NodeError
from tasks.stage.node import Context, Outcome
from tasks.work import partitions

MAX_COMPARED = 64
"""Kept records that one record is compared with, the first ones; more have close hashes only in degenerate
data, and how often is in the report."""
MEMORY = 512 << 20
"""Bytes that a bucket and its sorting may take."""

_EXACT = np.dtype([("exact", "<u8", 2), ("at", "<u8"), ("id", "u1", 16)])
_MEMBER = np.dtype(
    [
        ("group", "<u8"),
        ("at", "<u8"),
        ("simhash", "<u8"),
        ("id", "u1", 16),
        ("part", "<u4"),
        ("offset", "<u8"),
    ]
)
_PAIR = np.dtype([("group", "<u8"), ("pair", "<u8", 2)])


class Settings(Section):
    """The recipe of the node clean:dedup."""

    order: list[str]
    """The sources, those first whose records are kept."""
    min_chars: int
    """Shorter texts have exact copies only."""
    near_duplicates: dict[str, NearDuplicates]
    """By kind of record."""
    examples: int
    """Kept of each source and method."""


def body(ctx: Context) -> Outcome:
    """Make the signatures that are missing, then decide in a worker process."""
    from tasks.work import pool

    settings: Settings = ctx.config
    order, near, min_chars = settings.order, settings.near_duplicates, settings.min_chars
    read = [(name, *part) for name in order for part in parts.digested(ctx.inputs[name])]
    hash_part = signatures.hash_part
    folders = partitions.run(
        ctx,
        [
            partitions.Job(
                partitions.key(hash_part, near, min_chars, digest, code=signatures.JOB_CODE),
                hash_part,
                (path, near, min_chars),
            )
            for _, path, digest in read
        ],
    )
    hashed = [
        (name, path, folder / signatures.FILE) for (name, path, _), folder in zip(read, folders, strict=True)
    ]
    made, report = pool.submit(decide, order, hashed, near, ctx.out, examples=settings.examples).result()
    return Outcome(
        headline=accounts.headline(made),
        counts={f"dropped.{method}": sum(a["dropped"].get(method, 0) for a in made) for method in METHODS}
        | {"records_in": sum(a["records_in"] for a in made), "kept": sum(a["kept"] for a in made)},
        extra={"largest_group": report["largest_groups"][0]["size"] if report["largest_groups"] else 1},
        summary=sources_table(made)
        + f"\nPairs with close hashes: {report['pairs_compared']:,} compared, {report['pairs_similar']:,} similar. "
        f"Copies of a record of another source: {sum(report['across_sources'].values()):,}. "
        f"Records without any shingle (hash 0): {report['hash_zero']:,}.\n",
        files=["report.json", "examples.json", *(f"{name}/{accounts.FILE}" for name in order)],
    )


@dataclass
class Search:
    """One decision at work."""

    parts: list[Part]
    work: Path
    memory: int
    gone: np.ndarray
    """A bit for each record: an exact copy of an earlier one."""
    drops: Spill
    report: Counter[str] = field(default_factory=Counter)

    @property
    def total(self) -> int:
        return self.parts[-1].first + self.parts[-1].count if self.parts else 0

    def spill(self, name: str, dtype: Any, rows: int, buckets: int = 0) -> Spill:
        return Spill(self.work / name, dtype, rows, self.memory, buckets)

    def drop(self, rows: np.ndarray, first: np.ndarray, method: str) -> None:
        """Record that the records `rows` (with at) are copies of the records `first` (with at and id)."""
        self.report["dropped"] += len(rows)
        drops = np.zeros(len(rows), DROP)
        drops["at"], drops["of"], drops["of_id"] = rows["at"], first["at"], first["id"]
        drops["method"] = METHODS.index(method)
        self.drops.by_rank(drops["at"], self.total, drops)

    def left(self, kind: int) -> Iterator[tuple[int, np.ndarray, np.ndarray]]:
        """Part by part: (its number, numbers of records, their signatures) of those to search near copies of."""
        for number, part in enumerate(self.parts):
            at, rows = part.numbers, part.rows()
            chosen = rows["kind"] == kind
            chosen &= (self.gone[at >> np.uint64(3)] >> (at & np.uint64(7)).astype(np.uint8)) & 1 == 0
            if chosen.any():
                yield number, at[chosen], rows[chosen]


def decide(
    order: Sequence[str],
    hashed: Sequence[tuple[str, Path, Path]],
    near: Mapping[str, NearDuplicates],
    out: Path,
    memory: int = MEMORY,
    examples: int = 0,
) -> tuple[list[SourceAccount], dict[str, Any]]:
    """Find all duplicates and write the node's output; returns the accounts and the report.

    `hashed`: (source, its part, the part's signatures) in the order of the sources.
    """
    all_parts, first = [], 0
    for source, path, signed in hashed:
        count = len(np.load(signed, mmap_mode="r", allow_pickle=False))
        all_parts.append(Part(source, path, signed, first, count))
        first += count
    work = out / ".work"
    shutil.rmtree(work, ignore_errors=True)
    drops = Spill(work / "drops", DROP, first, memory)
    search = Search(all_parts, work, memory, np.zeros(first // 8 + 1, np.uint8), drops)
    _exact(search)
    for kind, settings in near.items():
        _near(search, KINDS.index(kind), settings)
    made, report = _write(search, order, out, examples)
    shutil.rmtree(work)
    return made, report


def _exact(search: Search) -> None:
    spill = search.spill("exact", _EXACT, search.total)
    for part in search.parts:
        signed, rows = part.rows(), np.zeros(part.count, _EXACT)
        rows["exact"], rows["at"], rows["id"] = signed["exact"], part.numbers, signed["id"]
        spill.by_hash(rows["exact"][:, 0], rows)
    for bucket in spill.read():
        bucket = bucket[
            np.lexsort((bucket["exact"][:, 1], bucket["exact"][:, 0]))
        ]  # stable: at stays in order
        is_first = np.ones(len(bucket), bool)
        is_first[1:] = (bucket["exact"][1:] != bucket["exact"][:-1]).any(axis=1)
        _drop_all_but_first(search, bucket, is_first, "exact")
        at = bucket["at"][~is_first]
        np.bitwise_or.at(search.gone, at >> np.uint64(3), np.uint8(1) << (at & np.uint64(7)).astype(np.uint8))


def _drop_all_but_first(search: Search, rows: np.ndarray, is_first: np.ndarray, method: str) -> None:
    first = np.maximum.accumulate(np.where(is_first, np.arange(len(rows)), 0))
    search.drop(rows[~is_first], rows[first[~is_first]], method)


def _near(search: Search, kind: int, settings: NearDuplicates) -> None:
    """Find the near-duplicates among the records of one kind."""
    name = KINDS[kind]
    groups, pairs = _groups(search, kind, settings.hamming_distance)
    if not len(groups.hashes):
        return
    # compared as Python objects, several times larger than the rows: more and smaller buckets
    members = search.spill(f"{name}-members", _MEMBER, 16 * len(groups.hashes))
    for number, at, rows in search.left(kind):
        held, group = groups.of(rows["simhash"])
        some = np.zeros(len(group), _MEMBER)
        some["group"], some["at"], some["part"] = group, at[held], number
        for column in ("simhash", "id", "offset"):
            some[column] = rows[column][held]
        members.by_hash(group, some)
    if settings.min_similarity is None:
        for number in range(members.buckets):
            _drop_clusters(search, members.pieces(number))
        return
    close = search.spill(f"{name}-close", _PAIR, 0, members.buckets)
    for chunk in _stream(pairs, 2):
        rows = np.zeros(len(chunk), _PAIR)
        rows["group"], rows["pair"] = groups.of(chunk[:, 0])[1], chunk
        close.by_hash(rows["group"], rows)
    shingles = Shingles(settings)
    for number in range(members.buckets):
        bucket = members.bucket(number)
        _compare(search, bucket, close.bucket(number)["pair"], shingles, settings.min_similarity)


def _drop_clusters(search: Search, pieces: Iterator[np.ndarray]) -> None:
    """Keep the first record of each group; a group may be half of all records, so they come in pieces."""
    first: dict[int, np.ndarray] = {}
    for rows in pieces:
        groups, at, which = np.unique(rows["group"], return_index=True, return_inverse=True)
        for group, row in zip(groups.tolist(), rows[at], strict=True):
            first.setdefault(group, row)
        kept = np.array([first[group] for group in groups.tolist()], _MEMBER)[which]
        copies = rows["at"] != kept["at"]
        search.drop(rows[copies], kept[copies], "near")


def _groups(search: Search, kind: int, distance: int) -> tuple[Groups, Path]:
    """Groups of close or equal hashes, and the file of all close pairs."""
    name = KINDS[kind]
    folder = search.work / name
    folder.mkdir()
    distinct, pairs = folder / "distinct", folder / "pairs"
    held = _Distinct()  # hashes of two records, or close to another
    spill = search.spill(f"{name}-hashes", np.uint64, search.total)
    for _, _, rows in search.left(kind):
        search.report["hash_zero"] += int((rows["simhash"] == 0).sum())
        values, times = np.unique(rows["simhash"], return_counts=True)  # one that all share comes once a part
        held.add(values[times > 1])
        spill.by_hash(values, values)
    count = 0
    with distinct.open("wb") as file:
        for bucket in spill.read():
            values, times = np.unique(bucket, return_counts=True)
            values.tofile(file)
            count += len(values)
            held.add(values[times > 1])
    with pairs.open("wb") as file:
        for chunk in close_pairs(lambda: _stream(distinct, 1), count, distance, search.memory, folder):
            np.ascontiguousarray(chunk).tofile(file)
            held.add(chunk.ravel())
    groups = Groups(held.all())
    for chunk in _stream(pairs, 2):
        groups.join(chunk)
    return groups, pairs


class _Distinct:
    """The distinct among many hashes."""

    def __init__(self) -> None:
        self.sorted = np.zeros(0, np.uint64)
        self.new: list[np.ndarray] = []
        self.count = 0

    def add(self, hashes: np.ndarray) -> None:
        self.new.append(hashes)
        self.count += len(hashes)
        if self.count > max(CHUNK, len(self.sorted)):
            self.all()

    def all(self) -> np.ndarray:
        self.sorted = np.unique(np.concatenate([self.sorted, *self.new]))
        self.new, self.count = [], 0
        return self.sorted


def _stream(path: Path, columns: int) -> Iterator[np.ndarray]:
    with path.open("rb") as file:
        while len(rows := np.fromfile(file, np.uint64, CHUNK * columns)):
            yield rows if columns == 1 else rows.reshape(-1, columns)


def _compare(
    search: Search, members: np.ndarray, pairs: np.ndarray, shingles: Shingles, min_similarity: float
) -> None:
    """Walk the records of some groups in order; a record that is like a kept one goes."""
    neighbours: dict[int, list[int]] = defaultdict(list)
    for a, b in pairs.tolist():
        neighbours[a].append(b)
        neighbours[b].append(a)
    kept: dict[int, list[int]] = defaultdict(list)
    copies: list[tuple[int, int]] = []
    members = members[np.argsort(members["at"])]
    places = [
        (search.parts[part].path, offset)
        for part, offset in zip(members["part"].tolist(), members["offset"].tolist(), strict=True)
    ]
    for i, value in enumerate(members["simhash"].tolist()):
        candidates = [j for v in (value, *sorted(neighbours[value])) for j in kept[v]]
        for j in candidates[:MAX_COMPARED]:
            search.report["pairs_compared"] += 1
            mine, theirs = shingles(*places[i]), shingles(*places[j])
            if len(mine & theirs) >= min_similarity * len(mine | theirs):
                search.report["pairs_similar"] += 1
                copies.append((i, j))
                break
        else:
            search.report["not_compared_with_all"] += len(candidates) > MAX_COMPARED
            kept[value].append(i)
    if copies:
        which, of = np.array(copies).T
        search.drop(members[which], members[of], "near")


def _write(
    search: Search, order: Sequence[str], out: Path, examples: int
) -> tuple[list[SourceAccount], dict[str, Any]]:
    """drops.jsonl and accounting.json per source, report.json, examples.json."""
    starts = np.array([part.first for part in search.parts], np.uint64)
    sources = {name: SourceDrops(name, out / name) for name in order}
    for part in search.parts:
        sources[part.source].take(part)
    largest = Largest(search.spill("copied", DROP, search.total))
    shown = Examples(search.parts, examples)
    for bucket in search.drops.read():
        bucket = bucket[np.argsort(bucket["at"])]
        largest.add(bucket)
        of_part = np.searchsorted(starts, bucket["at"], side="right") - 1
        for number in np.unique(of_part):
            part = search.parts[number]
            sources[part.source].drop(part, bucket[of_part == number])
            shown.add(part.source, bucket[of_part == number])
    made = [sources[name].close() for name in order]
    written = sum(sum(account["dropped"].values()) for account in made)
    if written != search.report["dropped"]:
        raise NodeError(f"{search.report['dropped']:,} copies were found, but {written:,} written down")
    report = {
        "hash_zero": search.report["hash_zero"],
        "pairs_compared": search.report["pairs_compared"],
        "pairs_similar": search.report["pairs_similar"],
        "not_compared_with_all": search.report["not_compared_with_all"],
        "across_sources": {name: account.across for name, account in sources.items()},
        "largest_groups": largest.top(),
    }
    for name, content in (("report.json", report), ("examples.json", shown.shown)):
        (out / name).write_bytes(orjson.dumps(content, option=orjson.OPT_INDENT_2))
    return made, report
