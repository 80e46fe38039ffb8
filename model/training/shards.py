"""The shard format: rows of packed tokens in an Arrow IPC file, written as a stream, read by mmap.

A shard is an *uncompressed* Arrow IPC file (random access), so that a row is a NumPy view of the
page cache. docs/shards.md describes the format for other programs. Invariants:

- every row holds block_size + 1 tokens: inputs are the first block_size of them, labels the last;
- `doc_starts` begins with 0 (a document that goes on from the row before starts anew here),
  ascends strictly, and names one `doc_ids` entry each;
- tokens from `valid` on are padding and belong to no document;
- the same rows and metadata give the same bytes.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pyarrow as pa
import xxhash

FORMAT = 1
ROWS_PER_BATCH = 1024
ID_BYTES = 16
"""A record id: 16 bytes, written as 32 hex digits elsewhere."""


class ShardError(ValueError):
    """A shard that cannot be read, or rows that cannot be written: one clear line."""


@dataclass(frozen=True)
class Row:
    """One row. `input_ids` and `loss_mask` have block_size + 1 entries."""

    input_ids: np.ndarray
    doc_starts: np.ndarray
    doc_ids: Sequence[bytes]
    valid: int
    loss_mask: np.ndarray | None = None


@dataclass(frozen=True)
class ShardInfo:
    """What was written; the entry of a shard in shards.json."""

    file: str
    rows: int
    tokens: int
    """Real tokens, separators included, padding not."""
    documents: int
    """Documents with tokens in this shard; one that is split over rows counts once."""
    digest: str


def schema(block_size: int, loss_mask: bool, metadata: Mapping[str, str] | None = None) -> pa.Schema:
    """The columns of a shard, in order."""
    fields = [
        pa.field("input_ids", pa.list_(pa.uint32(), block_size + 1), nullable=False),
        pa.field("doc_starts", pa.list_(pa.int32()), nullable=False),
        pa.field("doc_ids", pa.list_(pa.binary(ID_BYTES)), nullable=False),
        pa.field("valid", pa.int32(), nullable=False),
    ]
    if loss_mask:
        fields.append(pa.field("loss_mask", pa.list_(pa.uint8(), block_size + 1), nullable=False))
    own = {"steel_format": str(FORMAT), "block_size": str(block_size)}
    return pa.schema(fields, metadata={**(metadata or {}), **own})


def file_digest(path: Path) -> str:
    """The content hash by which a shard is known: `xxh3:` and 32 hex digits."""
    digest = xxhash.xxh3_128()
    with open(path, "rb") as file:
        while chunk := file.read(1 << 20):
            digest.update(chunk)
    return "xxh3:" + digest.hexdigest()


# ---------------------------------------------------------------------------------- writing
class ShardWriter:
    """Writes rows as they come (memory: 1,024 rows); the file gets its name when it is complete."""

    def __init__(
        self,
        path: Path | str,
        block_size: int,
        metadata: Mapping[str, str] | None = None,
        *,
        loss_mask: bool = False,
    ) -> None:
        self.path = Path(path)
        self.rows = self.tokens = self.documents = 0
        self._block_size = block_size
        self._schema = schema(block_size, loss_mask, metadata)
        self._partial = self.path.with_name(self.path.name + ".part")
        self._sink = pa.OSFile(str(self._partial), "wb")
        self._writer = pa.ipc.new_file(self._sink, self._schema)
        self._pending: list[Row] = []
        self._last_id: bytes | None = None

    @property
    def rows_written(self) -> int:
        """Rows taken so far."""
        return self.rows + len(self._pending)

    def write(self, row: Row) -> None:
        """Take a row; what it refers to must not change any more."""
        if len(self._pending) == ROWS_PER_BATCH:
            self._flush(last=False)
        self._pending.append(row)

    def close(self) -> ShardInfo:
        """Finish the file and say what it holds."""
        self._flush(last=True)
        self._writer.close()
        self._sink.close()
        os.replace(self._partial, self.path)
        return ShardInfo(self.path.name, self.rows, self.tokens, self.documents, file_digest(self.path))

    def _flush(self, last: bool) -> None:
        if not self._pending:
            return
        batch = _record_batch(self._pending, self._block_size, self._schema)
        for row in self._pending:
            self._count(row)
        self._pending = []
        # The totals are known only at the end of the stream: they ride on the last batch.
        totals = {"rows": str(self.rows), "tokens": str(self.tokens), "documents": str(self.documents)}
        self._writer.write_batch(batch, custom_metadata=totals if last else None)

    def _count(self, row: Row) -> None:
        self.rows += 1
        self.tokens += row.valid
        # A document that fills the row before to its end and goes on here was counted there.
        self.documents += len(row.doc_ids) - (row.doc_ids[0] == self._last_id)
        self._last_id = row.doc_ids[-1] if row.valid == len(row.input_ids) else None


def write_shard(
    path: Path | str,
    rows: Iterable[Row],
    block_size: int,
    metadata: Mapping[str, str] | None = None,
    *,
    loss_mask: bool = False,
) -> ShardInfo:
    """Write a shard from any iterable of rows."""
    writer = ShardWriter(path, block_size, metadata, loss_mask=loss_mask)
    for row in rows:
        writer.write(row)
    return writer.close()


def _record_batch(rows: Sequence[Row], block_size: int, columns: pa.Schema) -> pa.RecordBatch:
    width = block_size + 1
    for row in rows:
        starts = row.doc_starts
        if len(row.input_ids) != width:
            raise ShardError(f"a row has {len(row.input_ids)} tokens, {width} are due")
        if not 0 < row.valid <= width or len(starts) != len(row.doc_ids) or not len(starts):
            raise ShardError("a row needs valid tokens, and one id per document start")
        if starts[0] != 0 or starts[-1] >= row.valid or (np.diff(starts) <= 0).any():
            raise ShardError("document starts begin with 0, ascend, and lie before the padding")
    starts = [np.asarray(row.doc_starts, np.int32) for row in rows]
    offsets = pa.array(np.cumsum([0] + [len(s) for s in starts], dtype=np.int32))
    ids = b"".join(b for row in rows for b in row.doc_ids)
    count = int(offsets[-1].as_py())
    if len(ids) != count * ID_BYTES:
        raise ShardError(f"a document id has {ID_BYTES} bytes")
    id_array = pa.FixedSizeBinaryArray.from_buffers(pa.binary(ID_BYTES), count, [None, pa.py_buffer(ids)])
    arrays = [
        _fixed([row.input_ids for row in rows], width, np.uint32),
        pa.ListArray.from_arrays(offsets, pa.array(np.concatenate(starts))),
        pa.ListArray.from_arrays(offsets, id_array),
        pa.array(np.array([row.valid for row in rows], np.int32)),
    ]
    if "loss_mask" in columns.names:
        if any(row.loss_mask is None for row in rows):
            raise ShardError("a row lacks its loss mask")
        arrays.append(_fixed([row.loss_mask for row in rows], width, np.uint8))
    return pa.RecordBatch.from_arrays(arrays, schema=columns)


def _fixed(rows: Sequence[np.ndarray], width: int, dtype: type) -> pa.Array:
    flat = np.concatenate([np.asarray(row, dtype) for row in rows])
    return pa.FixedSizeListArray.from_arrays(pa.array(flat), width)


# ---------------------------------------------------------------------------------- reading
@dataclass(frozen=True)
class Columns:
    """NumPy views of one record batch; they keep the mapping alive."""

    input_ids: np.ndarray
    starts: np.ndarray
    offsets: np.ndarray
    """Document starts of row i: starts[offsets[i]:offsets[i + 1]]; doc_ids likewise."""
    doc_ids: np.ndarray
    valid: np.ndarray
    loss_mask: np.ndarray | None


@dataclass
class ShardFile:
    """A shard, mapped into memory. Opening reads the footer only."""

    path: Path
    rows: int = field(init=False)
    block_size: int = field(init=False)
    metadata: dict[str, str] = field(init=False)

    def __post_init__(self) -> None:
        self.path = Path(self.path)
        try:
            self._reader = pa.ipc.open_file(pa.memory_map(str(self.path)))
        except FileNotFoundError:
            raise ShardError(f"there is no shard {self.path}") from None
        except (pa.ArrowInvalid, OSError) as error:
            raise ShardError(f"{self.path} is not a readable Arrow file: {error}") from None
        raw = self._reader.schema.metadata or {}
        self.metadata = {key.decode(): value.decode() for key, value in raw.items()}
        if self.metadata.get("steel_format") != str(FORMAT):
            found = self.metadata.get("steel_format", "none")
            raise ShardError(f"{self.path}: shard format {found}, this program reads {FORMAT}")
        self.block_size = int(self.metadata["block_size"])
        self.has_loss_mask = "loss_mask" in self._reader.schema.names
        self._columns: dict[int, Columns] = {}
        batches = self._reader.num_record_batches
        # All batches but the last are full.
        self._per_batch = len(self.columns(0).valid) if batches else 0
        self.rows = (batches - 1) * self._per_batch + len(self.columns(batches - 1).valid) if batches else 0

    def totals(self) -> dict[str, int]:
        """rows, tokens and documents, as counted when the shard was written."""
        batches = self._reader.num_record_batches
        if not batches:
            return {"rows": 0, "tokens": 0, "documents": 0}
        found = self._reader.get_batch_with_custom_metadata(batches - 1).custom_metadata
        if found is None:
            raise ShardError(f"{self.path} was not written to its end")
        return {key.decode(): int(value) for key, value in found.items()}

    def columns(self, batch: int) -> Columns:
        """The views of a record batch."""
        if (views := self._columns.get(batch)) is None:
            views = self._columns[batch] = self._views(self._reader.get_batch(batch))
        return views

    def locate(self, row: int) -> tuple[Columns, int]:
        """The record batch of a row, and the row's place in it."""
        if not 0 <= row < self.rows:
            raise IndexError(f"{self.path} has {self.rows} rows, not a row {row}")
        batch, place = divmod(row, self._per_batch)
        return self.columns(batch), place

    def read(self, row: int) -> Row:
        """One row; its arrays are read-only views of the mapped file."""
        columns, i = self.locate(row)
        part = slice(columns.offsets[i], columns.offsets[i + 1])
        return Row(
            input_ids=columns.input_ids[i],
            doc_starts=columns.starts[part],
            doc_ids=[bytes(b) for b in columns.doc_ids[part]],
            valid=int(columns.valid[i]),
            loss_mask=None if columns.loss_mask is None else columns.loss_mask[i],
        )

    def _views(self, batch: pa.RecordBatch) -> Columns:
        width = self.block_size + 1
        by_name = dict(zip(batch.schema.names, batch.columns, strict=True))
        ids = by_name["doc_ids"].values
        raw = np.frombuffer(ids.buffers()[1] or b"", np.uint8)[: len(ids) * ID_BYTES]
        mask = by_name.get("loss_mask")
        return Columns(
            input_ids=by_name["input_ids"].values.to_numpy(zero_copy_only=True).reshape(-1, width),
            starts=by_name["doc_starts"].values.to_numpy(zero_copy_only=True),
            offsets=by_name["doc_starts"].offsets.to_numpy(zero_copy_only=True),
            doc_ids=raw.reshape(-1, ID_BYTES),
            valid=by_name["valid"].to_numpy(zero_copy_only=True),
            loss_mask=None if mask is None else mask.values.to_numpy(zero_copy_only=True).reshape(-1, width),
        )
