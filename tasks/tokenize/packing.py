"""Documents -> rows of block_size + 1 tokens.

Two ways. `pack` for pre-training: the documents, each followed by a separator, as one stream cut
into rows; rows do not overlap, a document may go on in the next row (where its positions begin
anew), nothing is lost and only the last row is padded. `pack_whole` for fine-tuning: a document
is never split, rows are filled best-fit and padded. Both stream: memory is a few rows.
"""

from __future__ import annotations

from bisect import bisect_left, insort
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field

import numpy as np

from model.training.shards import Row

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


@dataclass
class _Open:
    """A row being filled."""

    tokens: np.ndarray
    mask: np.ndarray
    starts: list[int] = field(default_factory=list)
    ids: list[bytes] = field(default_factory=list)
    used: int = 0

    @classmethod
    def empty(cls, width: int, padding: int) -> _Open:
        return cls(np.full(width, padding, np.uint32), np.zeros(width, np.uint8))

    @property
    def room(self) -> int:
        return len(self.tokens) - self.used

    def put(self, id: bytes, tokens: np.ndarray, mask: np.ndarray | None) -> None:
        end = self.used + len(tokens)
        self.starts.append(self.used)
        self.ids.append(id)
        self.tokens[self.used : end] = tokens
        self.mask[self.used : end] = 1 if mask is None else mask
        self.used = end

    def row(self, with_mask: bool) -> Row:
        starts = np.array(self.starts, np.int32)
        return Row(self.tokens, starts, self.ids, self.used, self.mask if with_mask else None)


class Packer:
    """`pack`, for a caller that pushes: `add` returns the rows that became full, `close` the last."""

    def __init__(self, block_size: int, separator: int, *, loss_mask: bool = False) -> None:
        self._width, self._separator, self._loss_mask = block_size + 1, separator, loss_mask
        self._row = _Open.empty(self._width, separator)

    def add(self, document: Document) -> list[Row]:
        """Append a document and its separator."""
        tokens = np.append(document.tokens, np.uint32(self._separator))
        mask = None if document.mask is None else np.append(document.mask, np.uint8(1))
        full = []
        done = 0
        while done < len(tokens):
            end = done + self._row.room
            self._row.put(document.id, tokens[done:end], None if mask is None else mask[done:end])
            done = end
            if not self._row.room:
                full += self.close()
        return full

    def close(self) -> list[Row]:
        """The row under way, padded, if it holds anything."""
        row, self._row = self._row, _Open.empty(self._width, self._separator)
        return [row.row(self._loss_mask)] if row.used else []


def pack(
    documents: Iterable[Document], block_size: int, separator: int, *, loss_mask: bool = False
) -> Iterator[Row]:
    """One stream of documents and separators, cut into rows."""
    packer = Packer(block_size, separator, loss_mask=loss_mask)
    for document in documents:
        yield from packer.add(document)
    yield from packer.close()


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
        row.put(document.id, document.tokens[:size], None if document.mask is None else document.mask[:size])
        if row.room:
            insort(by_room, (row.room, number))
        else:
            yield finish(number)
    for number in sorted(rows):
        yield finish(number)
