"""Rows of many shards, by random access: one copy from the page cache into the batch, and nothing opened twice.

A shard is mapped once; of its record batches only the places of their columns are kept, 40 bytes each, so that all of
a corpus stays open: 500 million blocks are 7,600 shards and half a million record batches. A row costs a copy of its
tokens (4 · (T + 1) bytes) and about a microsecond of Python. Nothing here knows an order.
"""

from __future__ import annotations

from array import array
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import torch

from model.training.batch import Batch
from model.training.shards import ShardError, ShardFile

MAPPED_FILES = 30_000
"""Mappings kept at a time; Linux allows a process 65,530."""


class DataError(ValueError):
    """Data and settings that do not fit each other: one clear line."""


class MappedShard:
    """The columns of a shard as flat views of its mapping, and where each record batch has them."""

    def __init__(self, path: Path) -> None:
        opened = ShardFile(path)  # checks the format
        self.rows, self.block_size = opened.rows, opened.block_size
        self.tokenizer = opened.metadata.get("tokenizer_digest", "")
        with pa.memory_map(str(path)) as file:  # the mapping outlives the file handle
            self._mapping = file.read_buffer()
        self.bytes = memoryview(self._mapping)
        self.ints = self.bytes[: len(self.bytes) // 4 * 4].cast("i")
        reader = pa.ipc.open_file(self._mapping)
        self.places = array("q")
        """Per record batch: tokens, offsets, starts, valid (in 4-byte words), loss mask (in bytes; -1: none)."""
        self.batch_rows = 0
        for number in range(reader.num_record_batches):
            columns = reader.get_batch(number)
            if not number:
                self.batch_rows = len(columns)
            starts = columns["doc_starts"].buffers()
            words = (
                columns["input_ids"].values.buffers()[1],
                starts[1],
                starts[3],
                columns["valid"].buffers()[1],
            )
            self.places.extend(self._offset(buffer) // 4 for buffer in words)
            mask = "loss_mask" in columns.schema.names
            self.places.append(self._offset(columns["loss_mask"].values.buffers()[1]) if mask else -1)

    def _offset(self, buffer: pa.Buffer) -> int:
        return buffer.address - self._mapping.address


class Rows:
    """The rows of a list of shard files; a file is opened when it is first read."""

    def __init__(self, files: Sequence[Mapping[str, Any]], *, pin: bool = False) -> None:
        """`files`: [{"path", "rows"?}]; `pin`: make batches in page-locked memory, for CUDA."""
        if not files:
            raise DataError("there are no shard files to read")
        self.paths = [Path(f["path"]) for f in files]
        self._pin = pin
        self._open: dict[int, MappedShard] = {}
        given = [f.get("rows") for f in files]
        self.block_size, self.tokenizer = 0, ""
        self.rows = np.zeros(0, np.int64)
        self.rows = np.array(
            [self.shard(i).rows if r is None else int(r) for i, r in enumerate(given)], np.int64
        )
        self.block_size, self.tokenizer = self.shard(0).block_size, self.shard(0).tokenizer

    def shard(self, index: int) -> MappedShard:
        """A file by index, mapped."""
        if (known := self._open.get(index)) is not None:
            return known
        try:
            shard = MappedShard(self.paths[index])
        except ShardError as error:
            raise DataError(str(error)) from None
        path = self.paths[index]
        if self.block_size and shard.block_size != self.block_size:
            raise DataError(f"{path} has blocks of {shard.block_size}, not {self.block_size}")
        if self.tokenizer and shard.tokenizer != self.tokenizer:
            raise DataError(f"{path} was made with another tokenizer than {self.paths[0]}")
        if len(self.rows) and shard.rows != self.rows[index]:
            raise DataError(f"{path} has {shard.rows} rows, not {self.rows[index]}")
        if len(self._open) >= MAPPED_FILES:
            self._open.pop(next(iter(self._open)))  # the one opened longest ago
        self._open[index] = shard
        return shard

    def batches(self, files: np.ndarray, rows: np.ndarray, blocks: np.ndarray, size: int) -> list[Batch]:
        """Gather rows, `size` to a batch; a file index of -1 asks for a filler row without targets."""
        return [
            self._batch(files[i : i + size], rows[i : i + size], blocks[i : i + size])
            for i in range(0, len(rows), size)
        ]

    def _batch(self, files: np.ndarray, rows: np.ndarray, blocks: np.ndarray) -> Batch:
        count, width = len(rows), self.block_size + 1
        tokens = torch.empty((count, width), dtype=torch.int32, pin_memory=self._pin)
        into = memoryview(tokens.numpy()).cast("B").cast("i")
        starts, lengths, valid = [], [], []
        mask: np.ndarray | None = None
        for i, (file, row) in enumerate(zip(files.tolist(), rows.tolist(), strict=True)):
            if file < 0:
                tokens[i] = 0
                starts.append(_FIRST)
                lengths.append(1)
                valid.append(0)
                continue
            shard = self._open.get(file) or self.shard(file)
            batch, place = divmod(row, shard.batch_rows)
            ids, offsets, begins, ends, masked = shard.places[5 * batch : 5 * batch + 5]
            ints = shard.ints
            ids += place * width
            into[i * width : (i + 1) * width] = ints[ids : ids + width]
            first, last = ints[offsets + place], ints[offsets + place + 1]
            starts.append(ints[begins + first : begins + last])
            lengths.append(last - first)
            valid.append(ints[ends + place])
            if masked >= 0:
                if mask is None:
                    mask = np.ones((count, width), np.uint8)
                masked += place * width
                mask[i] = np.frombuffer(shard.bytes[masked : masked + width], np.uint8)
        ends_of = np.array(valid, np.int32)
        # a row's first document start, at 0, is no target either; and of the others all lie before `valid`
        flat = np.frombuffer(b"".join(starts), np.int32) + np.repeat(np.arange(count) * width, lengths)
        targets = int(ends_of.sum()) - len(flat) + int((ends_of == 0).sum())
        if mask is not None:
            wanted = (np.arange(width) < ends_of[:, None]) & (mask != 0)
            wanted.reshape(-1)[flat] = False
            targets = int(wanted.sum())
        return Batch(
            tokens=tokens,
            starts=self._tensor(flat),
            valid=self._tensor(ends_of),
            loss_mask=None if mask is None else self._tensor(mask),
            targets=targets,
            blocks=torch.from_numpy(np.where(files >= 0, blocks, -1)),
            files=torch.from_numpy(files.astype(np.int32)),
        )

    def _tensor(self, values: np.ndarray) -> torch.Tensor:
        made = torch.from_numpy(values)
        return made.pin_memory() if self._pin else made


_FIRST = memoryview(np.zeros(1, np.int32))
