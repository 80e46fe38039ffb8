"""Documents -> rows of block_size + 1 tokens.

Two ways. `Packer` for pre-training: the documents, each followed by a separator, as one stream cut
into rows; rows do not overlap, a document may go on in the next row (where its positions begin
anew), nothing is lost and only the last row is padded. It works on arrays of many documents at a
time, at memory speed. `pack_whole` for fine-tuning: a document is never split, rows are filled
best-fit and padded. Both stream: memory is a few rows.
"""

from __future__ import annotations

from bisect import bisect_left, insort
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field

import numpy as np

from model.training.shards import ID_BYTES, Columns, Row

OPEN_ROWS = 128
"""Rows that `pack_whole` keeps open to find the best fit for the next document."""


@dataclass
class Document:
    """The tokens of one record."""

    id: bytes
    """16 bytes: the record's id."""
    tokens: np.ndarray
    """uint32"""
    mask: np.ndarray | None = None
    """uint8, 1 = a target; None: every token is one."""
    source: int | None = None
    """Number of its source, where rows are to say it."""


@dataclass
class _Open:
    """A row being filled."""

    tokens: np.ndarray
    mask: np.ndarray
    starts: list[int] = field(default_factory=list)
    ids: list[bytes] = field(default_factory=list)
    sources: list[int] = field(default_factory=list)
    used: int = 0

    @classmethod
    def empty(cls, width: int, padding: int) -> _Open:
        return cls(np.full(width, padding, np.uint32), np.zeros(width, np.uint8))

    @property
    def room(self) -> int:
        return len(self.tokens) - self.used

    def put(self, document: Document, size: int) -> None:
        end = self.used + size
        self.starts.append(self.used)
        self.ids.append(document.id)
        if document.source is not None:
            self.sources.append(document.source)
        self.tokens[self.used : end] = document.tokens[:size]
        self.mask[self.used : end] = 1 if document.mask is None else document.mask[:size]
        self.used = end

    def row(self, with_mask: bool) -> Row:
        starts = np.array(self.starts, np.int32)
        sources = np.array(self.sources, np.uint8) if self.sources else None
        return Row(self.tokens, starts, self.ids, self.used, self.mask if with_mask else None, sources)


@dataclass(frozen=True)
class Documents:
    """The tokens of many records, side by side."""

    ids: np.ndarray
    """uint8 [n, 16]: the record ids."""
    tokens: np.ndarray
    """uint32; document i is tokens[bounds[i]:bounds[i + 1]], never empty."""
    bounds: np.ndarray
    """int64 [n + 1], from 0"""

    def select(self, chosen: np.ndarray) -> Documents:
        """Those where `chosen` (bool [n]) is true."""
        if chosen.all():
            return self
        bounds = np.concatenate([[0], np.cumsum(np.diff(self.bounds)[chosen])])
        turns = np.flatnonzero(np.diff(chosen, prepend=False, append=False))  # runs of chosen ones: few
        ends = self.bounds[turns].reshape(-1, 2).tolist()
        tokens = [self.tokens[begin:end] for begin, end in ends]
        return Documents(self.ids[chosen], np.concatenate([*tokens, self.tokens[:0]]), bounds)


class Packer:
    """One stream of documents and separators, cut into rows; pushed in, handed out `rows` at a time."""

    def __init__(self, block_size: int, separator: int, rows: int) -> None:
        self._width, self._separator, self._rows = block_size + 1, separator, rows
        self._begin()

    def add(self, documents: Documents) -> Iterator[Columns]:
        """Append documents; yields the batches of `rows` full rows that are complete."""
        count = len(documents.ids)
        bounds = documents.bounds + np.arange(count + 1)  # in the stream, with a separator after each
        stream = np.full(bounds[-1], self._separator, np.uint32)
        text = np.ones(len(stream), bool)
        text[bounds[1:] - 1] = False
        stream[text] = documents.tokens
        done = first = 0
        while done < len(stream):
            piece = stream[done : done + len(self._tokens) - self._used]
            last = int(np.searchsorted(bounds[:-1], done + len(piece)))
            self._starts.append(bounds[first:last] - done + self._used)
            self._ids.append(documents.ids[first:last])
            self._tokens[self._used : self._used + len(piece)] = piece
            self._used += len(piece)
            done, first = done + len(piece), last
            if self._used == len(self._tokens):
                yield self._batch()

    def close(self) -> Iterator[Columns]:
        """The rows under way, the last one padded, if there are any."""
        if self._used:
            yield self._batch()

    def _begin(self, going_on: np.ndarray | None = None) -> None:
        """An empty batch; the document `going_on` may go on in it, as if it had started just before."""
        self._tokens = np.full(self._rows * self._width, self._separator, np.uint32)
        self._used = 0
        self._starts = [np.array([-1])]
        self._ids = [np.zeros((1, ID_BYTES), np.uint8) if going_on is None else going_on[None]]

    def _batch(self) -> Columns:
        width = self._width
        begins = np.arange(0, self._used, width)  # of rows
        starts, ids = np.concatenate(self._starts), np.concatenate(self._ids)
        owner = np.searchsorted(starts, begins, side="right") - 1  # the last document to start by then
        cut = starts[owner] < begins  # rows that begin inside a document
        owner = owner[cut]
        starts = np.insert(starts, owner + 1, begins[cut])[1:]
        ids = np.insert(ids, owner + 1, ids[owner], axis=0)[1:]
        columns = Columns(
            input_ids=self._tokens.reshape(-1, width)[: len(begins)],
            starts=(starts % width).astype(np.int32),
            offsets=np.append(np.searchsorted(starts, begins), len(starts)).astype(np.int32),
            doc_ids=ids,
            valid=np.minimum(self._used - begins, width).astype(np.int32),
        )
        self._begin(ids[-1])
        return columns


@dataclass
class PackCounts:
    """What `pack_whole` did."""

    documents: int = 0
    truncated: int = 0
    tokens_cut: int = 0
    rows: int = 0
    tokens: int = 0


def pack_whole(
    documents: Iterable[Document],
    block_size: int,
    padding: int,
    *,
    max_tokens: int | None = None,
    loss_mask: bool = True,
    counts: PackCounts | None = None,
) -> Iterator[Row]:
    """Rows of whole documents, best-fit in the order given.

    No separator is added: a document brings its own end. One longer than `max_tokens` (at most a
    row) keeps its head; what was cut is counted in `counts`.
    """
    width = block_size + 1
    limit = min(max_tokens or width, width)
    counts = counts if counts is not None else PackCounts()
    rows: dict[int, _Open] = {}
    by_room: list[tuple[int, int]] = []  # (room, row number), ascending
    opened = 0

    def finish(number: int) -> Row:
        counts.rows += 1
        return rows.pop(number).row(loss_mask)

    for document in documents:
        size = min(len(document.tokens), limit)
        if not size:
            continue
        counts.documents += 1
        counts.tokens += size
        counts.truncated += len(document.tokens) > limit
        counts.tokens_cut += len(document.tokens) - size
        place = bisect_left(by_room, (size, -1))
        if place < len(by_room):
            _, number = by_room.pop(place)
        else:
            if len(rows) == OPEN_ROWS:
                yield finish(by_room.pop(0)[1])  # the fullest
            number, opened = opened, opened + 1
            rows[number] = _Open.empty(width, padding)
        row = rows[number]
        row.put(document, size)
        if row.room:
            insort(by_room, (row.room, number))
        else:
            yield finish(number)
    for number in sorted(rows):
        yield finish(number)
