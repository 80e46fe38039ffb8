"""From tables (parquet, CSV) to raw rows; the conventions are those of values.py."""

from __future__ import annotations

import csv
import itertools
import os
from collections import deque
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from tasks.convert.streams import UTF16, Salvaged, text_of
from tasks.convert.values import Items
from tasks.convert.verdicts import Bad, printable

ROWS = 128
"""Rows turned into Python objects at a time."""
READ_BYTES = 1 << 20
"""A column chunk is read through a buffer of so many bytes, not as a whole: row groups may have gigabytes."""


def parquet_rows(path: Path, limit: int) -> Items:
    """The rows of a parquet file as dicts; a damaged row group costs only itself."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    if not path.stat().st_size:
        yield 0, Bad("empty file"), b""
        return
    try:
        table = pq.ParquetFile(path, buffer_size=READ_BYTES, pre_buffer=False)
    except (pa.ArrowException, OSError) as error:
        _not_the_disks(error)
        yield 0, Bad("unreadable file", str(error)[:200]), b""
        return
    with table:
        end = 0
        for group in range(table.num_row_groups):
            start, end = end, end + max(0, table.metadata.row_group(group).num_rows)
            position = start
            try:
                for batch in table.iter_batches(batch_size=ROWS, row_groups=[group]):
                    for row in _rows(batch):
                        position += 1
                        yield position, row, row
            except (pa.ArrowException, OSError) as error:
                _not_the_disks(error)
                bad = Bad("damaged row group", str(error)[:200], max(1, end - position))
                yield position + 1, bad, {}


def _not_the_disks(error: Exception) -> None:
    """Raise an error of the machine again; pyarrow tells damage by an OSError without a number."""
    if getattr(error, "errno", None) is not None:
        raise error


def _rows(batch: Any) -> list[Any]:
    try:
        return batch.to_pylist()
    except (ValueError, OverflowError):  # among them UnicodeDecodeError, and dates that Python has not
        return [_row(batch.slice(i, 1)) for i in range(batch.num_rows)]


def _row(batch: Any) -> Any:
    try:
        return batch.to_pylist()[0]
    except UnicodeDecodeError:
        return Bad("not UTF-8")
    except (ValueError, OverflowError) as error:
        return Bad("unreadable value", str(error)[:200])


def csv_rows(
    path: Path, limit: int, columns: tuple[str, ...] = (), *, delimiter: str = ",", encoding: str = "utf-8"
) -> Items:
    """The rows of a CSV file (or a gzip, zstd of one) as dicts of strings; `columns` names them where there is
    no header.

    Python's csv and not a data frame: a cell that says None or NA is text, not a missing value. A quote
    that is never closed swallows the rows after it; they are read again without its line. UTF-16, as
    spreadsheets save it, is known by its mark. Of two columns with one name the second is `name.1`.
    """
    with open(path, "rb") as file:
        number = 0
        encoding = "utf-16" if file.read(2) in UTF16 else encoding
        file.seek(0)
        try:
            for number, value, raw in _csv(text_of(path, file, encoding), limit, columns, delimiter):
                yield number, value, raw
        except Salvaged.DAMAGE as error:
            left = os.fstat(file.fileno()).st_size - file.tell()
            yield 0, Bad("unreadable file", str(error)[:200], size=max(0, left)), b""
            return
        if not number:
            yield 0, Bad("empty file"), b""


def _csv(stream: Iterable[str], limit: int, columns: tuple[str, ...], delimiter: str) -> Items:
    csv.field_size_limit(limit)
    lines = _Lines(stream, delimiter)
    rows = csv.reader(lines, delimiter=delimiter)
    header, number = list(columns), 0
    while True:
        lines.begin()
        try:
            row = next(rows, None)
            value = _cells(header, row) if header and row else None
        except csv.Error as error:
            row, value = [], Bad("broken CSV", str(error))
            rows = csv.reader(lines, delimiter=delimiter)
        if row is None:
            break
        if lines.unclosed and value is not None and not isinstance(value, Bad):
            value = Bad("broken CSV", "a quote is not closed")
        if isinstance(value, Bad) and lines.hide_a_row(len(header)):
            value, row = Bad("broken CSV", "a quote is not closed"), [lines.only_first().rstrip("\r\n")]
            rows = csv.reader(lines, delimiter=delimiter)
        if not row and value is None:
            continue
        if not header:
            header = _distinct([printable(cell) for cell in row])
            continue
        number += 1
        yield number, value, delimiter.join(row)[:1000]


class _Lines:
    """The lines of a file, with those of the row under way kept so that they can be read again."""

    def __init__(self, stream: Iterable[str], delimiter: str):
        self.stream, self.delimiter = iter(stream), delimiter
        self.again: deque[str] = deque()
        self.taken: list[str] = []
        self.unclosed = False
        """The file has ended in the row under way: inside of a quote."""

    def __iter__(self) -> Iterator[str]:
        return self

    def __next__(self) -> str:
        line = self.again.popleft() if self.again else next(self.stream, None)
        if line is None:
            self.unclosed = bool(self.taken)
            raise StopIteration
        self.taken.append(line)
        return line

    def begin(self) -> None:
        """A row begins."""
        self.taken, self.unclosed = [], False

    def hide_a_row(self, cells: int) -> bool:
        """Whether one of the lines that the row under way took in is a good row by itself."""
        return any(self._cells(line) == cells for line in self.taken[1:])

    def _cells(self, line: str) -> int:
        return len(next(csv.reader([line], delimiter=self.delimiter), ()))

    def only_first(self) -> str:
        """Give up the first line of the row; the others will be read again."""
        self.again.extendleft(reversed(self.taken[1:]))
        return self.taken[0]


def _distinct(names: list[str]) -> list[str]:
    """The names of columns; of several with one name the later ones are numbered."""
    found: list[str] = []
    for name in names:
        number = itertools.count(1)
        new = name
        while new in found:
            new = f"{name}.{next(number)}"
        found.append(new)
    return found


def _cells(header: list[str], row: list[str]) -> dict[str, str] | Bad:
    if len(row) != len(header):
        return Bad("wrong number of columns", f"{len(row)} instead of {len(header)}")
    if any("\udc80" <= c <= "\udcff" for cell in row for c in cell if c > "\ud7ff"):
        return Bad("not UTF-8")
    return dict(zip(header, row, strict=True))
