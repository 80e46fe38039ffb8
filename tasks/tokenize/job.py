"""One job of tokenize: a part of a source -> train-*.arrow, val-*.arrow, accounting.json, in a worker.

Every record that came in is tokenized or dropped, and the account is checked. A document goes to the
validation shards by a hash of its record id. A part ends its own last row, so its shards depend on
nothing but the part: what is added to a source later leaves them as they are.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import orjson
import xxhash

from model.training.shards import ROWS_PER_BATCH, ShardWriter
from tasks.records import account as accounts
from tasks.records import drops
from tasks.records.account import SPLITS, SplitAccount, TokenizeAccount
from tasks.records.record import Code, Dialogue, Text
from tasks.settings.config import Section
from tasks.tokenize.documents import Tokenizer
from tasks.tokenize.encode import shared_encoder
from tasks.tokenize.packing import Documents, Packer

ROWS_PER_SHARD = 65_536
"""512 MiB a shard at 2,048 tokens a row."""
BATCH_BYTES = 1 << 19
"""Bytes of records that are worked on at a time."""


class Settings(Section):
    """The recipe of a node tokenize:<source>."""

    block_size: int
    """A row has block_size + 1 tokens."""
    val_share: float
    """Of the documents, for validation."""


def tokenize_part(
    out: Path, source: str, part: str, dropped: bytes, tokenizer: str, backend: str, settings: Settings
) -> TokenizeAccount:
    """The job: write the shards of one file of records; returns the account.

    `dropped`: the 16-byte ids, one after the other, of records to leave out.
    """
    encoder = shared_encoder(tokenizer, backend)
    tokenize = Tokenizer(encoder)
    metadata = {"source": source, "tokenizer_digest": encoder.digest, "separator": str(encoder.end_of_text)}
    outputs = {
        split: _Shards(out, split, settings.block_size, encoder.end_of_text, metadata) for split in SPLITS
    }
    leave_out, records_in, documents_in = drops.unpacked(dropped), 0, 0
    with open(part, "rb") as file:
        while lines := file.readlines(BATCH_BYTES):
            records: list[Text | Code | Dialogue] = orjson.loads(
                b"[%b]" % b",".join(lines)
            )  # a third cheaper than line by line
            records_in += len(records)
            records = list(drops.without(records, leave_out))
            documents_in += len(records)
            documents = tokenize(records)
            held_out = _held_out(documents.ids, settings.val_share)
            outputs["train"].add(documents.select(~held_out))
            outputs["val"].add(documents.select(held_out))
    train, val = outputs["train"].close(), outputs["val"].close()
    empty = documents_in - train["documents"] - val["documents"]
    account = TokenizeAccount(
        source=source,
        records_in=records_in,
        dropped={"drops": records_in - documents_in, "empty": empty},
        characters=tokenize.characters,
        tokenizer_digest=encoder.digest,
        encoder=encoder.backend,
        warnings=encoder.warnings,
        train=train,
        val=val,
    )
    accounts.write(out, account, b"\n")
    return account


def _held_out(ids: np.ndarray, share: float) -> np.ndarray:
    """bool [n]: validation. It depends on a document's id alone: more data, or another order, never moves it."""
    digest, limit = xxhash.xxh3_64_intdigest, share * 2**64
    return np.array([digest(b"steel-val" + id) < limit for id in ids.view("V16").ravel().tolist()], bool)


class _Shards:
    """The shards of one split: a new file after every ROWS_PER_SHARD rows; none if there are no rows."""

    def __init__(
        self, out: Path, split: str, block_size: int, separator: int, metadata: dict[str, str]
    ) -> None:
        self._out, self._split, self._block_size = out, split, block_size
        self._metadata = {**metadata, "split": split}
        self._packer = Packer(block_size, separator, min(ROWS_PER_BATCH, ROWS_PER_SHARD))
        self._writer: ShardWriter | None = None
        self._rows = 0
        self._done: list[dict[str, Any]] = []
        self._documents = 0

    def add(self, documents: Documents) -> None:
        self._documents += len(documents.ids)
        self._write(self._packer.add(documents))

    def close(self) -> SplitAccount:
        self._write(self._packer.close())
        self._close_shard()
        return SplitAccount(
            documents=self._documents,
            rows=sum(shard["rows"] for shard in self._done),
            tokens=sum(shard["tokens"] for shard in self._done),
            shards=self._done,
        )

    def _write(self, batches: Iterator[Any]) -> None:
        for batch in batches:
            if self._writer is None:
                path = self._out / f"{self._split}-{len(self._done):05d}.arrow"
                self._writer, self._rows = ShardWriter(path, self._block_size, self._metadata), 0
            self._writer.write_batch(batch)
            self._rows += len(batch.valid)
            if self._rows >= ROWS_PER_SHARD:
                self._close_shard()

    def _close_shard(self) -> None:
        if self._writer is not None:
            self._done.append(asdict(self._writer.close()))
            self._writer = None
