"""Rows of many shards, by random access: one copy from the page cache into the batch, and nothing opened twice.

A shard is mapped once; of its record batches only the places of their columns are kept, 48 bytes each, so that all of
a corpus stays open: 500 million blocks are 7,600 shards and half a million record batches. A row costs a copy of its
tokens (4 · (T + 1) bytes) and about a microsecond of Python. Nothing here knows an order.
"""

from __future__ import annotations

import os
from array import array
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import torch

from model.training.batch import Batch
from model.training.shards import ShardError, ShardFile, verify

MAPPED_FILES = 30_000
"""Mappings kept at a time; Linux allows a process 65,530."""


class DataError(ValueError):
    """Data and settings that do not fit each other: one clear line."""


class MappedShard:
    """The columns of a shard as flat views of its mapping; where a record batch has them is looked up once."""

    def __init__(self, path: Path) -> None:
        opened = ShardFile(path)  # checks the format
        self.stamp = stamp(path)
        self.rows, self.block_size = opened.rows, opened.block_size
        self.tokenizer = opened.metadata.get("tokenizer_digest", "")
        with pa.memory_map(str(path)) as file:  # the mapping outlives the file handle
            self._mapping = file.read_buffer()
        self.bytes = memoryview(self._mapping)
        self.ints = self.bytes[: len(self.bytes) // 4 * 4].cast("i")
        self._reader = pa.ipc.open_file(self._mapping)
        self.has_sources = "doc_sources" in self._reader.schema.names
        count = self._reader.num_record_batches
        self.batch_rows = len(self._reader.get_batch(0)) if count else 0
        self._places = array("q", [_UNKNOWN]) * (6 * count)

    def places(self, batch: int) -> array:
        """Of a record batch: tokens, offsets, starts, valid (in 4-byte words), loss mask and documents' sources (in
        bytes; -1: none)."""
        found = self._places[6 * batch : 6 * batch + 6]
        if found[0] == _UNKNOWN:
            columns = self._reader.get_batch(batch)
            starts = columns["doc_starts"].buffers()
            tokens, valid = columns["input_ids"].values.buffers()[1], columns["valid"].buffers()[1]
            words = [self._offset(buffer) // 4 for buffer in (tokens, starts[1], starts[3], valid)]
            more = [
                self._offset(columns[name].values.buffers()[1]) if name in columns.schema.names else -1
                for name in ("loss_mask", "doc_sources")
            ]
            found = self._places[6 * batch : 6 * batch + 6] = array("q", [*words, *more])
        return found

    def _offset(self, buffer: pa.Buffer) -> int:
        return buffer.address - self._mapping.address


def stamp(path: Path) -> tuple[int, int, int]:
    """What tells that a file is the one that was opened: its number, size, and time of change."""
    facts = os.stat(path)
    return facts.st_ino, facts.st_size, facts.st_mtime_ns


class Rows:
    """The rows of a list of shard files; a file is opened when it is first read."""

    def __init__(self, files: Sequence[Mapping[str, Any]], *, pin: bool = False) -> None:
        """`files`: [{"path", "rows"?, "source"?, "sources"?}]; `pin`: make batches in page-locked memory, for CUDA."""
        if not files:
            raise DataError("there are no shard files to read")
        self.paths = [Path(f["path"]) for f in files]
        self._digests = [f.get("digest") for f in files]
        self._pin = pin
        names = [f.get("sources") or [f.get("source", "")] for f in files]
        self.sources = [name for name in dict.fromkeys(name for some in names for name in some) if name]
        """What the documents' sources are called, by number; a document without one has the number behind the last."""
        known = {name: number for number, name in enumerate(self.sources)}
        self._numbers = [np.array([known.get(name, len(known)) for name in some], np.int64) for some in names]
        self._listed = [bool(f.get("sources")) for f in files]
        self._open: dict[int, MappedShard] = {}
        given = [f.get("rows") for f in files]
        self.block_size, self.tokenizer = 0, ""
        self.rows = np.zeros(0, np.int64)
        self.rows = np.array(
            [self.shard(i).rows if r is None else int(r) for i, r in enumerate(given)], np.int64
        )
        self.block_size, self.tokenizer = self.shard(0).block_size, self.shard(0).tokenizer
        for index, shard in self._open.items():  # opened before it was known what they have to fit
            self._check(index, shard)

    def shard(self, index: int) -> MappedShard:
        """A file by index, mapped."""
        if (known := self._open.get(index)) is not None:
            return known
        try:
            shard = MappedShard(self.paths[index])
        except ShardError as error:
            raise DataError(str(error)) from None
        self._check(index, shard)
        if len(self._open) >= MAPPED_FILES:
            self._open.pop(next(iter(self._open)))  # the one opened longest ago
        self._open[index] = shard
        return shard

    def _check(self, index: int, shard: MappedShard) -> None:
        """DataError where a shard does not fit the others, or what is said of it."""
        path = self.paths[index]
        if self.block_size and shard.block_size != self.block_size:
            raise DataError(f"{path} has blocks of {shard.block_size}, not {self.block_size}")
        if self.block_size and shard.tokenizer != self.tokenizer:
            raise DataError(f"{path} was made with another tokenizer than {self.paths[0]}")
        if len(self.rows) and shard.rows != self.rows[index]:
            raise DataError(f"{path} has {shard.rows} rows, not {self.rows[index]}")
        if self._listed[index] and not shard.has_sources:
            raise DataError(f"{path} does not say which sources its documents are of")

    def unchanged(self, index: int) -> None:
        """DataError if a file is no longer what was mapped: its rows would be others, or (cut short) end the process.
        One that was only touched, or copied anew, is known by its digest."""
        shard, path = self._open[index], self.paths[index]
        try:
            now = stamp(path)
            if now == shard.stamp:
                return
            if (digest := self._digests[index]) and now[1] == shard.stamp[1]:
                verify(path, digest)
                shard.stamp = now
                return
        except (OSError, ShardError):
            pass
        raise DataError(
            f"{path} has changed or is gone since the training opened it: leave data alone while it is used"
        )

    def batches(self, files: np.ndarray, rows: np.ndarray, blocks: np.ndarray, size: int) -> list[Batch]:
        """Gather rows, `size` to a batch; a file index of -1 asks for a filler row without targets."""
        tokens, starts, lengths, valid, mask, sources = self._gather(files.tolist(), rows.tolist())
        count, width = tokens.shape
        firsts = np.arange(0, count, size)  # of every batch
        flat = starts + np.repeat(np.arange(count) % size * width, lengths)
        pieces = np.add.reduceat(lengths, firsts)
        # of a row's valid tokens all are targets but the first ones of documents; a filler row has none of either
        targets = np.add.reduceat(np.where(valid > 0, valid - lengths, 0), firsts)
        if mask is not None:
            wanted = (np.arange(width) < valid[:, None]) & (mask != 0)
            wanted.reshape(-1)[starts + np.repeat(np.arange(count) * width, lengths)] = False
            targets = np.add.reduceat(wanted.sum(1), firsts)
        columns = zip(
            tokens.split(size),
            self._tensor(flat).split(pieces.tolist()),
            self._tensor(valid).split(size),
            [None] * len(firsts) if mask is None else self._tensor(mask).split(size),
            targets.tolist(),
            torch.from_numpy(np.where(files >= 0, blocks, -1)).split(size),
            torch.from_numpy(files.astype(np.int32)).split(size),
            self._tensor(sources).split(pieces.tolist()),
            strict=True,
        )
        return [Batch(*column) for column in columns]

    def _gather(
        self, files: list[int], rows: list[int]
    ) -> tuple[torch.Tensor, np.ndarray, np.ndarray, np.ndarray, np.ndarray | None, np.ndarray]:
        """Of n rows: tokens int32 [n, T + 1], document starts int32 [D], documents int64 [n], valid tokens int32 [n],
        loss mask uint8 [n, T + 1] or None, documents' sources int64 [D]."""
        count, width = len(rows), self.block_size + 1
        for file in {file for file in files if file in self._open}:
            self.unchanged(file)
        tokens = torch.empty((count, width), dtype=torch.int32, pin_memory=self._pin)
        into = memoryview(tokens.numpy()).cast("B").cast("i")
        starts, lengths, valid, sources = [], [], [], []
        mask: np.ndarray | None = None
        for i, (file, row) in enumerate(zip(files, rows, strict=True)):
            if file < 0:
                tokens[i] = 0
                starts.append(_FIRST)
                lengths.append(1)
                valid.append(0)
                sources.append(np.array([len(self.sources)]))
                continue
            shard = self._open.get(file) or self.shard(file)
            batch, place = divmod(row, shard.batch_rows)
            ids, offsets, begins, ends, masked, sourced = shard.places(batch)
            ints = shard.ints
            ids += place * width
            into[i * width : (i + 1) * width] = ints[ids : ids + width]
            first, last = ints[offsets + place], ints[offsets + place + 1]
            starts.append(ints[begins + first : begins + last])
            lengths.append(last - first)
            valid.append(ints[ends + place])
            numbers = self._numbers[file]
            if self._listed[file]:
                named = np.frombuffer(shard.bytes[sourced + first : sourced + last], np.uint8)
                try:
                    sources.append(numbers[named])
                except IndexError:
                    raise DataError(
                        f"{self.paths[file]} has a document of source {named.max()}; {len(numbers)} are named"
                    ) from None
            else:
                sources.append(numbers)
            if masked >= 0:
                if mask is None:
                    mask = np.ones((count, width), np.uint8)
                masked += place * width
                mask[i] = np.frombuffer(shard.bytes[masked : masked + width], np.uint8)
        flat = np.frombuffer(b"".join(starts), np.int32)
        counts = np.array(lengths, np.int64)
        if len(sources) and all(len(each) == 1 for each in sources):
            by_document = np.repeat(np.concatenate(sources), counts)
        else:
            by_document = np.concatenate(
                [
                    each if len(each) > 1 else np.repeat(each, n)
                    for each, n in zip(sources, lengths, strict=True)
                ]
            )
        return tokens, flat, counts, np.array(valid, np.int32), mask, by_document

    def _tensor(self, values: np.ndarray) -> torch.Tensor:
        made = torch.from_numpy(values)
        return made.pin_memory() if self._pin else made


_UNKNOWN = -2
_FIRST = np.zeros(1, np.int32).data
