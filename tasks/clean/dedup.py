"""clean:dedup: duplicates inside and across the pre-training sources; the first one is kept.

First in the order of the sources in the profile, then of their records. Two ways:
- exact: equal after normalisation (normalise.py), any length;
- near: SimHash by Data-Juicer's document_simhash_deduplicator, for texts of `dedup_min_chars` and
  more. A match of hashes only proposes a pair; the Jaccard similarity of their shingles decides
  (recipe: near_duplicates.min_similarity), because texts filled into one template can have close
  hashes. Only kept records are compared against, so there are no chains of ever less similar texts.
  Without min_similarity (recipe set `paper`) clusters are the operator's: chains of close hashes.

Output: per source `<source>/drops.jsonl` {id, duplicate_of, method} and accounting.json; report.json
with the largest groups. Cost: one pass over the records for their hashes in worker processes, then
some tens of bytes a record in memory here.
"""

from __future__ import annotations

import hashlib
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import orjson

from tasks import parts
from tasks.clean import accounting, normalise, records
from tasks.clean.accounting import Accounting, StepCount
from tasks.clean.recipe import NearDuplicates
from tasks.node import Context, Outcome

MAX_COMPARED = 64
"""Kept records that one record is compared with; more share its hash only in degenerate data."""
KINDS = ("text", "dialogue", "code")


@dataclass
class Fingerprints:
    """Hashes of one source, as parallel arrays in the order of its records."""

    ids: list[bytes]
    exact: list[bytes]
    """Digest of the normalised text."""
    simhash: Sequence[int]
    kind: Sequence[int]
    """Index into KINDS, or -1: no near-duplicate search for this record."""
    chars: Sequence[int]
    offset: Sequence[int]
    """Where the record's line starts in the parts, one after the other."""


@dataclass
class Drop:
    duplicate_of: bytes
    method: str


def body(ctx: Context) -> Outcome:
    """Hash every source in the pool, then decide here."""
    from tasks import pool

    order: list[str] = ctx.config["order"]
    near = ctx.config["near_duplicates"]
    paths = {name: ctx.inputs[name].path for name in order}
    jobs = {
        name: pool.submit(fingerprints, path, near, ctx.config["min_chars"]) for name, path in paths.items()
    }
    hashed = {name: job.result() for name, job in jobs.items()}
    settings = {kind: NearDuplicates.model_validate(value) for kind, value in near.items()}
    drops, report = find_duplicates(paths, hashed, settings)
    accounts = [_write(ctx.out / name, name, hashed[name], drops[name]) for name in order]
    (ctx.out / "report.json").write_bytes(orjson.dumps(report, option=orjson.OPT_INDENT_2))
    methods = Counter(drop.method for found in drops.values() for drop in found.values())
    return Outcome(
        headline=accounting.headline(accounts),
        counts={f"dropped.{method}": methods[method] for method in ("exact", "near")}
        | {"records_in": sum(a["records_in"] for a in accounts), "kept": sum(a["kept"] for a in accounts)},
        extra={"largest_group": report["largest_groups"][0]["size"] if report["largest_groups"] else 1},
        summary=accounting.sources_table(accounts)
        + f"\nPairs with close hashes: {report['pairs_compared']:,} compared, {report['pairs_similar']:,} similar. "
        f"Records without any shingle (hash 0): {report['hash_zero']:,}.\n",
        files=["report.json"],
    )


def fingerprints(path: Path, near: Mapping[str, Any], min_chars: int) -> Fingerprints:
    """Hash the records of one source (runs in a worker process)."""
    import numpy as np

    found = Fingerprints([], [], [], [], [], [])
    searches = {kind: _Simhash(NearDuplicates.model_validate(settings)) for kind, settings in near.items()}
    offset = 0
    for line in parts.lines(path):
        record = orjson.loads(line)
        text = records.whole_text(record)
        search = searches[record["kind"]]
        is_near = search.settings.every_length or len(text) >= min_chars
        found.ids.append(bytes.fromhex(record["id"]))
        found.exact.append(_digest(record["kind"], text))
        found.simhash.append(search(text) if is_near else 0)
        found.kind.append(KINDS.index(record["kind"]) if is_near else -1)
        found.chars.append(records.chars(record))
        found.offset.append(offset)
        offset += len(line)
    found.simhash = np.asarray(found.simhash, dtype=np.uint64)
    found.kind = np.asarray(found.kind, dtype=np.int8)
    return found


def find_duplicates(
    paths: Mapping[str, Path], hashed: Mapping[str, Fingerprints], near: Mapping[str, NearDuplicates]
) -> tuple[dict[str, dict[int, Drop]], dict[str, Any]]:
    """`{source: {position of a dropped record: why}}` and the report."""
    drops: dict[str, dict[int, Drop]] = {name: {} for name in hashed}
    first: dict[bytes, bytes] = {}
    for name, source in hashed.items():
        for i, key in enumerate(source.exact):
            if key in first:
                drops[name][i] = Drop(first[key], "exact")
            else:
                first[key] = source.ids[i]
    report: dict[str, Any] = {"hash_zero": 0, "pairs_compared": 0, "pairs_similar": 0}
    for kind, settings in near.items():
        _near(KINDS.index(kind), settings, paths, hashed, drops, report)
    groups = Counter((drop.duplicate_of, drop.method) for found in drops.values() for drop in found.values())
    report["largest_groups"] = [
        {"id": kept.hex(), "method": method, "size": count + 1}
        for (kept, method), count in sorted(groups.items(), key=lambda item: (-item[1], item[0]))[:10]
    ]
    return drops, report


def _near(
    kind: int,
    settings: NearDuplicates,
    paths: Mapping[str, Path],
    hashed: Mapping[str, Fingerprints],
    drops: dict[str, dict[int, Drop]],
    report: dict[str, Any],
) -> None:
    """Add the near-duplicates among the records of one kind to `drops`."""
    import numpy as np
    import simhash

    left = [
        (name, i, int(source.simhash[i]))
        for name, source in hashed.items()
        for i in range(len(source.ids))
        if source.kind[i] == kind and i not in drops[name]
    ]
    report["hash_zero"] += sum(value == 0 for _, _, value in left)
    values = np.unique(np.asarray([value for _, _, value in left], dtype=np.uint64))
    neighbours: dict[int, set[int]] = defaultdict(set)
    for a, b in simhash.find_all(values, settings.num_blocks, settings.hamming_distance):
        neighbours[int(a)].add(int(b))
        neighbours[int(b)].add(int(a))
    if settings.min_similarity is None:
        _drop_clusters(left, neighbours, hashed, drops)
        return
    shingles = _ShingleReader(paths, settings)
    kept: dict[int, list[tuple[str, int]]] = defaultdict(list)
    for name, i, value in left:
        candidates = [at for v in (value, *sorted(neighbours[value])) for at in kept[v]][:MAX_COMPARED]
        for other, j in candidates:
            report["pairs_compared"] += 1
            mine = shingles(name, hashed[name].offset[i])
            theirs = shingles(other, hashed[other].offset[j])
            if len(mine & theirs) >= settings.min_similarity * len(mine | theirs):
                report["pairs_similar"] += 1
                drops[name][i] = Drop(hashed[other].ids[j], "near")
                break
        else:
            kept[value].append((name, i))


def _drop_clusters(
    left: Sequence[tuple[str, int, int]],
    neighbours: Mapping[int, set[int]],
    hashed: Mapping[str, Fingerprints],
    drops: dict[str, dict[int, Drop]],
) -> None:
    """Data-Juicer's rule: of each connected component of close hashes only the first record is kept."""
    first_of: dict[int, bytes] = {}
    for name, i, value in left:
        if value in first_of:
            drops[name][i] = Drop(first_of[value], "near")
            continue
        component, queue = {value}, [value]
        while queue:
            for other in neighbours.get(queue.pop(), ()):
                if other not in component:
                    component.add(other)
                    queue.append(other)
        first_of.update(dict.fromkeys(component, hashed[name].ids[i]))


class _Simhash:
    """Data-Juicer's operator as a function of one text."""

    def __init__(self, settings: NearDuplicates):
        from tasks.clean import operators

        self.settings = settings
        parameters = settings.model_dump(
            include={"tokenization", "window_size", "ignore_pattern", "num_blocks", "hamming_distance"}
        )
        self.op = operators.load("document_simhash_deduplicator", {"lowercase": True, **parameters}, None)

    def __call__(self, text: str) -> int:
        from data_juicer.utils.constant import HashKeys

        return int(self.op.compute_hash({"text": text})[HashKeys.simhash])


class _ShingleReader:
    """Shingles of the record at an offset, as the operator cuts them; the latest are remembered."""

    def __init__(self, paths: Mapping[str, Path], settings: NearDuplicates):
        import regex

        self.paths = paths
        self.settings = settings
        self.ignore = regex.compile(settings.ignore_pattern) if settings.ignore_pattern else None
        self.read = lru_cache(maxsize=4096)(self._read)

    def __call__(self, name: str, offset: int) -> frozenset[str]:
        return self.read(name, offset)

    def _read(self, name: str, offset: int) -> frozenset[str]:
        with parts.open_all(self.paths[name]) as file:
            file.seek(offset)
            text = records.whole_text(orjson.loads(file.readline())).lower()
        if self.ignore:
            text = self.ignore.sub("", text)
        n = self.settings.window_size
        if self.settings.tokenization == "character":
            return frozenset(text[i : i + n] for i in range(max(1, len(text) - n + 1)))
        words = text.split()
        return frozenset(" ".join(words[i : i + n]) for i in range(max(1, len(words) - n + 1)))


def _digest(kind: str, text: str) -> bytes:
    key = "c" + normalise.code_key(text) if kind == "code" else "p" + normalise.squeezed(text)
    return hashlib.blake2b(key.encode(), digest_size=16).digest()


def _write(folder: Path, name: str, source: Fingerprints, drops: Mapping[int, Drop]) -> dict[str, Any]:
    folder.mkdir(parents=True)
    account = Accounting(name, records_in=len(source.ids), chars_in=sum(source.chars))
    steps = {method: StepCount(method, "dedup") for method in ("exact", "near")}
    with (folder / "drops.jsonl").open("wb") as file:
        for i in sorted(drops):
            drop = drops[i]
            steps[drop.method].dropped += 1
            account.dropped[drop.method] += 1
            line = {"id": source.ids[i].hex(), "duplicate_of": drop.duplicate_of.hex(), "method": drop.method}
            file.write(records.dump(line))
    account.kept = account.records_in - len(drops)
    account.chars_out = account.chars_in - sum(source.chars[i] for i in drops)
    reached, chars = account.records_in, account.chars_in
    for method, step in steps.items():
        step.records_in, step.chars_in = reached, chars
        reached -= step.dropped
        chars -= sum(source.chars[i] for i, drop in drops.items() if drop.method == method)
        step.records_out, step.chars_out = reached, chars
    account.steps = list(steps.values())
    result = account.as_json()
    (folder / "accounting.json").write_bytes(orjson.dumps(result, option=orjson.OPT_INDENT_2))
    return result
