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
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

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
    doc_sources: np.ndarray | None = None
    """uint8, one for each document: a number of a list of sources that is kept elsewhere."""


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


def schema(
    block_size: int, loss_mask: bool, metadata: Mapping[str, str] | None = None, *, doc_sources: bool = False
) -> pa.Schema:
    """The columns of a shard, in order."""
    fields = [
        pa.field("input_ids", pa.list_(pa.uint32(), block_size + 1), nullable=False),
        pa.field("doc_starts", pa.list_(pa.int32()), nullable=False),
        pa.field("doc_ids", pa.list_(pa.binary(ID_BYTES)), nullable=False),
        pa.field("valid", pa.int32(), nullable=False),
    ]
    if loss_mask:
        fields.append(pa.field("loss_mask", pa.list_(pa.uint8(), block_size + 1), nullable=False))
    if doc_sources:
        fields.append(pa.field("doc_sources", pa.list_(pa.uint8()), nullable=False))
    own = {"steel_format": str(FORMAT), "block_size": str(block_size)}
    return pa.schema(fields, metadata={**(metadata or {}), **own})


def file_digest(path: Path) -> str:
    """The content hash by which a shard is known: `xxh3:` and 32 hex digits. Several GB a second."""
    digest = xxhash.xxh3_128()
    buffer = bytearray(1 << 20)
    with open(path, "rb", buffering=0) as file:
        while count := file.readinto(buffer):
            digest.update(memoryview(buffer)[:count])
    return "xxh3:" + digest.hexdigest()


def verify(path: Path | str, digest: str) -> None:
    """Raise ShardError unless the file's content is what `digest` says.

    Before a file is opened: Arrow trusts what its footer says, so a flipped bit there may do anything.
    """
    try:
        found = file_digest(Path(path))
    except OSError as error:
        raise ShardError(f"the shard {path} cannot be read: {error.strerror}") from None
    if found != digest:
        raise ShardError(
            f"the shard {path} has changed since it was written: its content is {found}, the manifest says "
            f"{digest}. Force the node that wrote it (FORCE=tokenize:<source>) to have it made again"
        )


def tokenizer_of(path: Path | str) -> str:
    """The digest of the tokenizer a shard was made with, from its schema ("": none is named)."""
    return ShardFile(Path(path)).metadata.get("tokenizer_digest", "")


def look_over(path: Path | str) -> tuple[int, int]:
    """Of all rows of a shard: the largest token id, padding included (-1: no rows), and the number of targets."""
    shard = ShardFile(Path(path))
    largest, targets = -1, 0
    for columns in shard.batches():
        try:
            columns.check(shard.block_size)
        except ShardError as error:
            raise ShardError(f"{path}: {error}") from None
        largest = max(largest, int(columns.input_ids.max(initial=0)))
        targets += columns.targets()
    return largest, targets


# ------------------------------------------------------------------------------ rows of an epoch
def row_of(number: Any, rows: Any, repeats: Any, extra_rows: Any) -> Any:
    """The row behind the number-th block of a shard's share of an epoch (integers or NumPy arrays).

    An epoch takes each of its rows `repeats` times, and `extra_rows` of them (fewer than `rows`,
    evenly spread, never the last and perhaps padded one) once more: rows * repeats + extra_rows blocks.
    """
    again = number - rows * repeats
    spread = again * rows // np.maximum(extra_rows, 1)
    return np.where(again < 0, number % rows, spread)


def repeats_of(rows: int, repeats: int, extra_rows: int) -> np.ndarray:
    """int64 [rows]: how often an epoch takes each row."""
    blocks = np.arange(rows * repeats + extra_rows)
    return np.bincount(row_of(blocks, rows, repeats, extra_rows), minlength=rows)


# ---------------------------------------------------------------------------------- writing
@dataclass(frozen=True)
class Columns:
    """Rows of a shard as arrays. Those that were read are views and keep the mapping alive."""

    input_ids: np.ndarray
    """uint32 [rows, block_size + 1]"""
    starts: np.ndarray
    """int32; document starts of row i are starts[offsets[i]:offsets[i + 1]], and doc_ids likewise."""
    offsets: np.ndarray
    """int32 [rows + 1]"""
    doc_ids: np.ndarray
    """uint8 [documents, 16]"""
    valid: np.ndarray
    """int32 [rows]"""
    loss_mask: np.ndarray | None = None
    """uint8, as input_ids"""
    doc_sources: np.ndarray | None = None
    """uint8 [documents]"""

    @classmethod
    def of(cls, rows: Sequence[Row]) -> Columns:
        """The same rows, side by side."""
        for row in rows:
            if len(row.doc_starts) != len(row.doc_ids):
                raise ShardError("a row needs one id per document start")
            if any(len(id) != ID_BYTES for id in row.doc_ids):
                raise ShardError(f"a document id has {ID_BYTES} bytes")
        masks = [row.loss_mask for row in rows if row.loss_mask is not None]
        if masks and len(masks) < len(rows):
            raise ShardError("a row lacks its loss mask")
        sources = [row.doc_sources for row in rows if row.doc_sources is not None]
        if sources and len(sources) < len(rows):
            raise ShardError("a row lacks the sources of its documents")
        ids = np.frombuffer(b"".join(id for row in rows for id in row.doc_ids), np.uint8)
        return cls(
            input_ids=_stack([row.input_ids for row in rows], np.uint32),
            starts=np.concatenate([np.asarray(row.doc_starts, np.int32) for row in rows]),
            offsets=np.cumsum([0] + [len(row.doc_starts) for row in rows], dtype=np.int32),
            doc_ids=ids.reshape(-1, ID_BYTES),
            valid=np.array([row.valid for row in rows], np.int32),
            loss_mask=_stack(masks, np.uint8) if masks else None,
            doc_sources=np.concatenate(sources).astype(np.uint8) if sources else None,
        )

    @property
    def positions(self) -> np.ndarray:
        """int64 [block_size + 1]: places in a row."""
        return np.arange(self.input_ids.shape[1])

    def targets(self) -> int:
        """How many tokens are predicted: neither padding, nor masked, nor the first of a document."""
        if self.loss_mask is None:
            return int(self.valid.sum(dtype=np.int64)) - len(self.starts)
        wanted = (self.positions < self.valid[:, None]) & (self.loss_mask != 0)
        wanted[np.repeat(np.arange(len(wanted)), np.diff(self.offsets)), self.starts] = False
        return int(wanted.sum())

    def check(self, block_size: int) -> None:
        """Raise ShardError if a row breaks the invariants of the format."""
        width, starts, offsets = block_size + 1, self.starts, self.offsets
        if self.input_ids.shape[1:] != (width,):
            raise ShardError(f"a row has {self.input_ids.shape[-1]} tokens, {width} are due")
        if ((self.valid < 1) | (self.valid > width) | (np.diff(offsets) < 1)).any():
            raise ShardError("a row needs valid tokens, and a document")
        if len(starts) != offsets[-1] or len(self.doc_ids) != len(starts):
            raise ShardError("a row needs one id per document start")
        if self.doc_sources is not None and len(self.doc_sources) != len(starts):
            raise ShardError("a row needs one source per document start")
        first = np.zeros(len(starts), bool)
        first[offsets[:-1]] = True
        ascend = first[1:] | (np.diff(starts) > 0)
        if starts[first].any() or not ascend.all() or (starts[offsets[1:] - 1] >= self.valid).any():
            raise ShardError("document starts begin with 0, ascend, and lie before the padding")

    def arrow(self, columns: pa.Schema) -> pa.RecordBatch:
        """The record batch; shares the arrays' memory."""
        count, width = len(self.starts), self.input_ids.shape[1]
        offsets = pa.array(self.offsets)
        ids = pa.py_buffer(np.ascontiguousarray(self.doc_ids))
        id_array = pa.FixedSizeBinaryArray.from_buffers(pa.binary(ID_BYTES), count, [None, ids])
        arrays = [
            pa.FixedSizeListArray.from_arrays(pa.array(self.input_ids.reshape(-1)), width),
            pa.ListArray.from_arrays(offsets, pa.array(self.starts)),
            pa.ListArray.from_arrays(offsets, id_array),
            pa.array(self.valid),
        ]
        if "loss_mask" in columns.names:
            if self.loss_mask is None:
                raise ShardError("a row lacks its loss mask")
            arrays.append(pa.FixedSizeListArray.from_arrays(pa.array(self.loss_mask.reshape(-1)), width))
        if "doc_sources" in columns.names:
            if self.doc_sources is None:
                raise ShardError("a row lacks the sources of its documents")
            arrays.append(pa.ListArray.from_arrays(offsets, pa.array(self.doc_sources)))
        return pa.RecordBatch.from_arrays(arrays, schema=columns)


def _stack(rows: Sequence[np.ndarray], dtype: type) -> np.ndarray:
    if len({len(row) for row in rows}) != 1:
        raise ShardError(f"rows have different numbers of tokens: {sorted({len(row) for row in rows})}")
    return np.stack([np.asarray(row, dtype) for row in rows])


class ShardWriter:
    """Writes rows as they come (memory: 1,024 rows); the file gets its name when it is complete."""

    def __init__(
        self,
        path: Path | str,
        block_size: int,
        metadata: Mapping[str, str] | None = None,
        *,
        loss_mask: bool = False,
        doc_sources: bool = False,
    ) -> None:
        self.path = Path(path)
        self.rows = self.tokens = self.documents = 0
        self._block_size = block_size
        self._schema = schema(block_size, loss_mask, metadata, doc_sources=doc_sources)
        self._partial = self.path.with_name(self.path.name + ".part")
        self._sink = pa.OSFile(str(self._partial), "wb")
        self._writer = pa.ipc.new_file(self._sink, self._schema)
        self._waiting: Columns | None = None
        self._rows: list[Row] = []
        self._last_id: bytes | None = None

    def write(self, row: Row) -> None:
        """Take a row; what it refers to must not change any more."""
        self._rows.append(row)
        if len(self._rows) == ROWS_PER_BATCH:
            self._take_rows()

    def write_batch(self, columns: Columns) -> None:
        """Take up to 1,024 rows that are a record batch: fewer only at the end of the shard."""
        columns.check(self._block_size)
        self._flush()
        if self.rows % ROWS_PER_BATCH or len(columns.valid) > ROWS_PER_BATCH:
            raise ShardError(f"a record batch has {ROWS_PER_BATCH} rows, only the last one may have fewer")
        self._waiting = columns

    def close(self) -> ShardInfo:
        """Finish the file and say what it holds."""
        if self._rows:
            self._take_rows()
        self._flush(last=True)
        self._writer.close()
        self._sink.close()
        digest = file_digest(self._partial)
        os.replace(self._partial, self.path)
        return ShardInfo(self.path.name, self.rows, self.tokens, self.documents, digest)

    def _take_rows(self) -> None:
        self.write_batch(Columns.of(self._rows))
        self._rows = []

    def _flush(self, last: bool = False) -> None:
        """Write the batch that waits; it did because the last one carries the totals of the stream."""
        if (columns := self._waiting) is None:
            return
        self._count(columns)
        totals = {"rows": str(self.rows), "tokens": str(self.tokens), "documents": str(self.documents)}
        self._writer.write_batch(columns.arrow(self._schema), custom_metadata=totals if last else None)
        self._waiting = None

    def _count(self, columns: Columns) -> None:
        firsts, lasts = columns.doc_ids[columns.offsets[:-1]], columns.doc_ids[columns.offsets[1:] - 1]
        full = columns.valid == self._block_size + 1
        # A document that fills a row to its end and goes on in the next was counted there.
        goes_on = int(((firsts[1:] == lasts[:-1]).all(axis=1) & full[:-1]).sum())
        goes_on += bytes(firsts[0]) == self._last_id
        self._last_id = bytes(lasts[-1]) if full[-1] else None
        self.rows += len(columns.valid)
        self.tokens += int(columns.valid.sum(dtype=np.int64))
        self.documents += len(columns.doc_ids) - goes_on


def write_shard(
    path: Path | str,
    rows: Iterable[Row],
    block_size: int,
    metadata: Mapping[str, str] | None = None,
    *,
    loss_mask: bool = False,
    doc_sources: bool = False,
) -> ShardInfo:
    """Write a shard from any iterable of rows."""
    writer = ShardWriter(path, block_size, metadata, loss_mask=loss_mask, doc_sources=doc_sources)
    for row in rows:
        writer.write(row)
    return writer.close()


# ---------------------------------------------------------------------------------- reading
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
            source = pa.memory_map(str(self.path))
            self._mapping = source.read_buffer()
            self._reader = pa.ipc.open_file(self._mapping)
        except FileNotFoundError:
            raise ShardError(f"there is no shard {self.path}") from None
        except (pa.ArrowInvalid, OSError) as error:
            raise ShardError(f"{self.path} is not a readable Arrow file: {error}") from None
        raw = self._reader.schema.metadata or {}
        self.metadata = {key.decode(): value.decode() for key, value in raw.items()}
        if self.metadata.get("steel_format") != str(FORMAT):
            found = self.metadata.get("steel_format", "none")
            raise ShardError(f"{self.path}: shard format {found}, this program reads {FORMAT}")
        size = self.metadata.get("block_size", "none")
        if not size.isdecimal():
            raise ShardError(f"{self.path}: block_size in its metadata is {size}, not a number")
        self.block_size = int(size)
        self.has_loss_mask = "loss_mask" in self._reader.schema.names
        self._check_columns()
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
            try:
                views = self._views(self._reader.get_batch(batch))
            except (pa.ArrowInvalid, OSError) as error:
                raise ShardError(f"{self.path} is not a readable Arrow file: {error}") from None
            rows = len(views.valid)
            # a row is found by division; of the first batch nothing is known yet
            if batch and (
                rows > self._per_batch
                or (rows < self._per_batch and batch + 1 < self._reader.num_record_batches)
            ):
                raise ShardError(
                    f"{self.path}: record batch {batch} has {rows} rows, the first one {self._per_batch}; only the last "
                    "one may have fewer"
                )
            self._columns[batch] = views
        return views

    def batches(self) -> Iterator[Columns]:
        """All rows, a record batch at a time."""
        return map(self.columns, range(self._reader.num_record_batches))

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
            doc_sources=None if columns.doc_sources is None else columns.doc_sources[part],
        )

    def _check_columns(self) -> None:
        """Whether an Arrow file that calls itself a shard is one."""
        there = self._reader.schema
        wanted = schema(self.block_size, self.has_loss_mask, doc_sources="doc_sources" in there.names)
        for column in wanted:
            if there.names.count(column.name) != 1:
                raise ShardError(f"{self.path} is no shard: it needs one column {column.name}")
            if _kind(there.field(column.name).type) != _kind(column.type):
                raise ShardError(
                    f"{self.path} is no shard: its column {column.name} is {there.field(column.name).type}, "
                    f"{column.type} is due"
                )

    def _views(self, batch: pa.RecordBatch) -> Columns:
        width = self.block_size + 1
        by_name = dict(zip(batch.schema.names, batch.columns, strict=True))
        first, end = self._mapping.address, self._mapping.address + self._mapping.size
        buffers = [b for column in batch.columns for b in column.buffers() if b is not None and b.size]
        if not all(first <= buffer.address < end for buffer in buffers):
            raise ShardError(
                f"{self.path} is compressed: rows are read in place, which needs the plain bytes"
            )
        ids = by_name["doc_ids"].values
        raw = np.frombuffer(ids.buffers()[1] or b"", np.uint8)[: len(ids) * ID_BYTES]
        mask, sources = by_name.get("loss_mask"), by_name.get("doc_sources")
        return Columns(
            input_ids=flat(by_name["input_ids"].values).reshape(-1, width),
            starts=flat(by_name["doc_starts"].values),
            offsets=flat(by_name["doc_starts"].offsets),
            doc_ids=raw.reshape(-1, ID_BYTES),
            valid=flat(by_name["valid"]),
            loss_mask=None if mask is None else flat(mask.values).reshape(-1, width),
            doc_sources=None if sources is None else flat(sources.values),
        )


def _kind(column: pa.DataType) -> tuple[object, ...]:
    """A column's type as far as it decides where its bytes lie: whether nulls are allowed does not."""
    if pa.types.is_list(column) or pa.types.is_fixed_size_list(column):
        return column.id, getattr(column, "list_size", None), column.value_type
    return (column,)


def flat(numbers: pa.Array) -> np.ndarray:
    """A read-only view. Not by to_numpy, which loads pandas: 40 MB and half a second in every rank."""
    kind = np.dtype(str(numbers.type))
    return np.frombuffer(numbers.buffers()[1] or b"", kind)[numbers.offset :][: len(numbers)]
