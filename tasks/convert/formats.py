"""From files to raw values, in bounded memory and whatever the bytes are.

Every function yields `(position, value, raw)`: the position counts from 1 (line, array element or
row; 0 is the file itself), `value` is the parsed value or a `Bad`, `raw` what an excerpt is made
of. `limit` is the number of bytes a single record may have. Nothing here raises for bad content;
a failing disk still raises.
"""

from __future__ import annotations

import csv
import gzip
import itertools
import tarfile
import zlib
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, BinaryIO

import orjson

from tasks.convert.json_array import elements
from tasks.convert.records import Bad, Malformed

Items = Iterator[tuple[int, Any, Any]]
CHUNK = 1 << 20
BOM = b"\xef\xbb\xbf"
JSON_SUFFIXES = (".json", ".jsonl", ".json.gz", ".jsonl.gz", ".tar.gz")


def json_items(path: Path, limit: int) -> Items:
    """The objects of a JSON file of any shape: lines, one array, or one document.

    The shape is seen from the content, because data sets name JSON lines `.json` as often as not.
    `.gz` and `.tar.gz` are read through; positions then run on over the members.
    """
    try:
        if path.name.endswith(".tar.gz"):
            with tarfile.open(path, "r|gz") as archive:
                yield from _renumbered(
                    _json_stream(archive.extractfile(member), limit) for member in archive if member.isfile()
                )
        elif path.suffix == ".gz":
            with gzip.open(path, "rb") as stream:
                yield from _json_stream(stream, limit)
        else:
            with open(path, "rb") as stream:
                yield from _json_stream(stream, limit)
    except (EOFError, zlib.error, gzip.BadGzipFile, tarfile.TarError) as error:
        yield 0, Bad("unreadable file", str(error)), b""


def parse(raw: bytes) -> Any:
    """The JSON value, or a `Bad`."""
    try:
        return orjson.loads(raw)
    except orjson.JSONDecodeError as error:
        if "depth limit" in str(error):
            return Bad("nested too deeply")
    try:
        raw.decode("utf-8")
    except UnicodeDecodeError as error:
        return Bad("not UTF-8", f"byte {error.start}")
    return Bad("broken JSON")


def _renumbered(streams: Iterable[Items]) -> Items:
    before = 0
    for stream in streams:
        last = 0
        for last, value, raw in stream:
            yield before + last, value, raw
        before += last


def _json_stream(stream: BinaryIO, limit: int) -> Items:
    head = stream.read(CHUNK).removeprefix(BOM)
    chunks = itertools.chain([head], iter(lambda: stream.read(CHUNK), b""))
    start = head.lstrip()
    if not start and len(head) < CHUNK - len(BOM):
        yield 0, Bad("empty file"), b""
    elif start.startswith(b"["):
        yield from elements(chunks, limit, parse)
    elif _is_one_document(start):
        yield from _document(chunks, limit)
    else:
        yield from _lines(chunks, limit)


def _is_one_document(start: bytes) -> bool:
    """A pretty-printed object: its first line is no object, and its second does not begin one."""
    first, newline, rest = start.partition(b"\n")
    if not newline or not first.startswith(b"{") or not isinstance(parse(first), Bad):
        return False
    return rest.lstrip()[:1] in (b'"', b"}")


def _document(chunks: Iterable[bytes], limit: int) -> Items:
    whole = bytearray()
    for chunk in chunks:
        whole += chunk
        if len(whole) > limit:
            yield 1, Bad("over-long record"), bytes(whole[:1000])
            return
    yield 1, parse(bytes(whole)), bytes(whole)


def _lines(chunks: Iterable[bytes], limit: int) -> Items:
    number, rest, skipping = 0, b"", False
    for chunk in chunks:
        lines = (rest + chunk).split(b"\n")
        rest = lines.pop()
        for line in lines:
            number += 1
            if skipping:  # the end of a line that was reported as over-long
                skipping = False
            elif len(line) > limit:
                yield number, Bad("over-long record"), line[:1000]
            elif line and not line.isspace():
                yield number, parse(line), line
        if len(rest) > limit:
            if not skipping:
                yield number + 1, Bad("over-long record"), rest[:1000]
            rest, skipping = b"", True
    if not skipping and rest and not rest.isspace():
        yield number + 1, parse(rest), rest


def parquet_rows(path: Path, limit: int) -> Items:
    """The rows of a parquet file as dicts; a damaged row group costs only itself."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    if not path.stat().st_size:
        yield 0, Bad("empty file"), b""
        return
    try:
        table = pq.ParquetFile(path)
    except (pa.ArrowException, OSError) as error:
        yield 0, Bad("unreadable file", str(error)[:200]), b""
        return
    with table:
        position = 0
        for group in range(table.num_row_groups):
            end = position + table.metadata.row_group(group).num_rows
            try:
                for batch in table.iter_batches(batch_size=256, row_groups=[group]):
                    for row in _rows(batch):
                        position += 1
                        yield position, row, row
            except (pa.ArrowException, OSError) as error:
                yield position + 1, Bad("damaged row group", str(error)[:200], end - position), b""
                position = end


def _rows(batch: Any) -> list[Any]:
    try:
        return batch.to_pylist()
    except UnicodeDecodeError:
        return [_row(batch.slice(i, 1)) for i in range(batch.num_rows)]


def _row(batch: Any) -> Any:
    try:
        return batch.to_pylist()[0]
    except UnicodeDecodeError:
        return Bad("not UTF-8")


def csv_rows(path: Path, limit: int, columns: tuple[str, ...] = ()) -> Items:
    """The rows of a CSV file as dicts of strings; `columns` names them where there is no header.

    Python's csv and not a data frame: a cell that says None or NA is text, not a missing value.
    """
    csv.field_size_limit(limit)
    # bytes that are no UTF-8 arrive as lone surrogates, so that one bad row does not end the file
    with open(path, encoding="utf-8-sig", errors="surrogateescape", newline="") as stream:
        rows = csv.reader(stream)
        header, number = list(columns), 0
        while True:
            try:
                row = next(rows, None)
            except csv.Error as error:
                number += 1
                yield number, Bad("broken CSV", str(error)), b""
                continue
            if row is None:
                break
            if not row:
                continue
            if not header:
                header = [cell.encode("utf-8", "backslashreplace").decode() for cell in row]
                continue
            number += 1
            yield number, _cells(header, row), ",".join(row)[:1000]
        if not number:
            yield 0, Bad("empty file"), b""


def _cells(header: list[str], row: list[str]) -> dict[str, str] | Bad:
    if len(row) != len(header):
        return Bad("wrong number of columns", f"{len(row)} instead of {len(header)}")
    if any("\udc80" <= c <= "\udcff" for cell in row for c in cell if c > "\ud7ff"):
        return Bad("not UTF-8")
    return dict(zip(header, row, strict=True))


def check_object(value: Any) -> dict[str, Any]:
    """The value as an object, or Malformed."""
    if type(value) is not dict:
        raise Malformed("null record" if value is None else "not an object")
    return value
