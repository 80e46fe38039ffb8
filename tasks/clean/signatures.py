"""What deduplication knows of a record: 53 bytes, made once for each part of a source and kept as a partition.

The near-duplicate hash is that of Data-Juicer's document_simhash_deduplicator; `Shingles` cuts a text
as that operator does.
"""

from __future__ import annotations

import hashlib
from collections import OrderedDict
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import orjson

from tasks.clean import normalise
from tasks.clean.recipe import NearDuplicates
from tasks.records import parts
from tasks.records import record as records
from tasks.records.record import Record

FILE = "signatures.npy"
KINDS = ("text", "dialogue", "code")
ROW = np.dtype(
    [
        ("id", "u1", 16),
        ("exact", "<u8", 2),  # digest of the normalised text
        ("simhash", "<u8"),
        ("kind", "i1"),  # index into KINDS, or -1: no near-duplicate search for this record
        ("chars", "<u4"),
        ("offset", "<u8"),  # where the record's line starts in its part
    ]
)
JOB_CODE = (
    "tasks.clean.normalise",
    "tasks.clean.operators",
    "tasks.clean.fast",
    "tasks.clean.recipe",
    "tasks.records",
)
"""Modules that decide what is in the folder of a job."""


def hash_part(out: Path, path: Path, near: Mapping[str, NearDuplicates], min_chars: int) -> None:
    """Job: signatures.npy of a part, an array [records] of ROW."""
    searches = {kind: _Simhash(settings) for kind, settings in near.items()}
    rows, offset = [], 0
    for line in parts.lines(path):
        record: Record = orjson.loads(line)
        text = records.whole_text(record)
        search = searches[record["kind"]]
        is_near = search.settings.every_length or len(text) >= min_chars
        rows.append(
            (
                np.frombuffer(records.id_bytes(record), np.uint8),
                np.frombuffer(_digest(record["kind"], text), "<u8"),
                search(text) if is_near else 0,
                KINDS.index(record["kind"]) if is_near else -1,
                records.chars(record),
                offset,
            )
        )
        offset += len(line)
    np.save(out / FILE, np.array(rows, ROW), allow_pickle=False)


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


class Shingles:
    """Shingles of the record at an offset of a part, as the operator cuts them; the latest are remembered."""

    MAX_REMEMBERED = 1_000_000
    """Shingles: some 100 MB."""

    def __init__(self, settings: NearDuplicates):
        import regex

        self.settings = settings
        self.ignore = regex.compile(settings.ignore_pattern) if settings.ignore_pattern else None
        self.latest: OrderedDict[tuple[Path, int], frozenset[str]] = OrderedDict()
        self.remembered = 0

    def __call__(self, path: Path, offset: int) -> frozenset[str]:
        at = path, offset
        if at in self.latest:
            self.latest.move_to_end(at)
            return self.latest[at]
        shingles = self.latest[at] = self._read(path, offset)
        self.remembered += len(shingles)
        while self.remembered > self.MAX_REMEMBERED and len(self.latest) > 2:
            self.remembered -= len(self.latest.popitem(last=False)[1])
        return shingles

    def _read(self, path: Path, offset: int) -> frozenset[str]:
        with path.open("rb") as file:
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
