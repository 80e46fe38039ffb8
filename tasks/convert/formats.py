"""From files to raw values, in bounded memory and whatever the bytes are: JSON of any shape, and parquet.

What the functions yield is told in values.py. `limit` is the number of bytes a single record may have. Nothing
here raises for bad content; a failing disk still raises.

    values.py, json_window.py                          one value from its bytes; where it ends
    json_lines.py, json_array.py, json_documents.py    one shape of JSON each
    tabular.py                                         parquet, CSV
    texts.py                                           plain texts
    here                                               which of them a file is
"""

from __future__ import annotations

import itertools
import os
import tarfile
from collections.abc import Iterable
from pathlib import Path
from typing import Any, BinaryIO

from tasks.convert.json_array import elements
from tasks.convert.json_documents import documents
from tasks.convert.json_lines import Span, lines, spans
from tasks.convert.json_window import TOKEN
from tasks.convert.streams import GZIP, ZSTD, Salvaged, Stream, decompressed
from tasks.convert.tabular import csv_rows, parquet_rows
from tasks.convert.values import BOM, CHUNK, Items, parse
from tasks.convert.verdicts import Bad, Malformed
from tasks.download.names import is_litter

__all__ = ["Items", "Span", "any_items", "check_object", "is_lines", "json_items", "parse", "spans"]

FOREIGN = {
    b"PAR1": "a parquet file",
    b"ARROW1": "an Arrow file",
    b"PK\x03\x04": "a zip archive",
    GZIP: "compressed twice",
    ZSTD: "compressed twice",
    b"BZh": "bzip2 is not read",
    b"\xfd7zXZ": "xz is not read",
    b"\xff\xfe": "UTF-16",
    b"\xfe\xff": "UTF-16",
}
"""First bytes of what is no JSON; one line of quarantine says more than a line for every newline byte in it."""
JSON_SUFFIXES = (
    *(f".{kind}{packed}" for kind in ("json", "jsonl", "ndjson") for packed in ("", ".gz", ".zst")),
    ".tar.gz",
)
ANY_SUFFIXES = (*JSON_SUFFIXES, ".parquet")
CSV_SUFFIXES = tuple(f".{kind}{packed}" for kind in ("csv", "tsv") for packed in ("", ".gz", ".zst"))
TABLE_SUFFIXES = (*ANY_SUFFIXES, *CSV_SUFFIXES)
LONGEST = 32 << 20
"""A file whose first line is longer is not cut into spans."""


def json_items(path: Path, limit: int, span: Span | None = None) -> Items:
    """The objects of a JSON file of any shape: lines, one array, or documents one after another.

    The shape is seen from the content, because data sets name JSON lines `.json` as often as not; so
    is compression (gzip, zstd). `.tar.gz` is read through; positions then run on over the members.
    With a span only that part of a file of lines is read.
    """
    with open(path, "rb") as file:
        try:
            if span:
                file.seek(span.start)
                yield from lines(_part(file, span.end - span.start), limit, span.line - 1)
            elif path.name.lower().endswith(".tar.gz"):
                packed: Any = decompressed(path, file)
                with tarfile.open(fileobj=packed, mode="r|") as archive:
                    yield from _renumbered(
                        _json_stream(archive.extractfile(member), limit)
                        for member in archive
                        if member.isfile() and not is_litter(member.name)
                    )
            else:
                yield from _json_stream(decompressed(path, file), limit)
        except (*Salvaged.DAMAGE, tarfile.TarError) as error:
            left = os.fstat(file.fileno()).st_size - file.tell()
            yield 0, Bad("unreadable file", str(error)[:200], size=max(0, left)), b""


def any_items(path: Path, limit: int, span: Span | None = None) -> Items:
    """JSON of any shape, or the rows of a parquet file: hubs serve many sets in both."""
    if path.suffix.lower() == ".parquet":
        return parquet_rows(path, limit)
    return json_items(path, limit, span)


def table_items(path: Path, limit: int, span: Span | None = None, *, encoding: str = "utf-8") -> Items:
    """JSON of any shape, parquet, or the rows of CSV and TSV files (`encoding` is theirs): by the file's name."""
    name = path.name.lower().removesuffix(".gz").removesuffix(".zst")
    if name.endswith((".csv", ".tsv")):
        return csv_rows(path, limit, delimiter="\t" if name.endswith(".tsv") else ",", encoding=encoding)
    return any_items(path, limit, span)


def is_lines(path: Path) -> bool:
    """Whether a file is plain JSON lines, so that it may be read in spans."""
    with open(path, "rb") as file:
        head = _head(file, LONGEST)
    foreign = any(head.startswith(magic) for magic in FOREIGN)
    start = head.removeprefix(BOM).lstrip()
    return bool(start) and not foreign and _shape(start, LONGEST) == ("lines", b"\n")


def check_object(value: Any) -> dict[str, Any]:
    """The value as an object, or Malformed."""
    if type(value) is not dict:
        raise Malformed("null record" if value is None else "not an object")
    return value


def _part(stream: BinaryIO, size: int) -> Iterable[bytes]:
    while size > 0 and (chunk := stream.read(min(CHUNK, size))):
        size -= len(chunk)
        yield chunk


def _renumbered(streams: Iterable[Items]) -> Items:
    before = 0
    for stream in streams:
        last = 0
        for last, value, raw in stream:
            yield before + last, value, raw
        before += last


def _json_stream(stream: Stream, limit: int) -> Items:
    head = _head(stream, limit)
    whole = len(head) < CHUNK
    head = head.removeprefix(BOM)
    chunks = itertools.chain([head], iter(lambda: stream.read(CHUNK), b""))
    start = head.lstrip()
    foreign = next((what for magic, what in FOREIGN.items() if head.startswith(magic)), "")
    if foreign:
        yield 0, Bad("not UTF-8" if foreign == "UTF-16" else "unreadable file", foreign), head[:1000]
        return
    if not start and whole:
        yield 0, Bad("empty file"), b""
        return
    shape, end = _shape(start, limit)
    if shape == "array":
        yield from elements(chunks, limit, parse)
    elif shape == "documents":
        yield from documents(chunks, limit, parse)
    else:
        yield from lines(chunks, limit, end=end)


def _head(stream: Stream, limit: int) -> bytes:
    """The first bytes; for a file that begins with an object, if possible, up to the end of its first line."""
    head = stream.read(CHUNK)
    if head.removeprefix(BOM).lstrip().startswith(b"{"):
        # a CR at the very end may be half of a CRLF
        while len(head) <= limit and b"\n" not in head and b"\r" not in head[:-1]:
            try:
                more = stream.read(CHUNK)
            except (*Salvaged.DAMAGE, tarfile.TarError):  # it comes again with the next read
                break
            if not more:
                break
            head += more
    return head


def _shape(start: bytes, limit: int) -> tuple[str, bytes]:
    """`array`, `documents` or `lines`, and what ends a line, of a file that begins with `start`."""
    end = b"\r" if b"\n" not in start and b"\r" in start[:-1] else b"\n"
    if start.startswith(b"["):
        return "array", end
    first, newline, rest = start.partition(end)
    if first.startswith(b"{") and len(first) > limit:  # no record, but perhaps an object around them
        return "documents", end
    if not newline or not first.startswith(b"{") or not isinstance(parse(first), Bad):
        return "lines", end
    return "documents" if _goes_on(first, rest.lstrip()) else "lines", end


def _goes_on(first: bytes, second: bytes) -> bool:
    """Whether an object that begins on the first line has not ended there, but goes on in the second."""
    depth = 0
    for token in TOKEN.finditer(first):
        if token[0] == b'"':  # no string of JSON goes on in the next line
            return False
        depth += (token[0] in b"{[") - (token[0] in b"}]")
    cut = first.rstrip().endswith((b"{", b"[", b",", b":")) or second.startswith((b'"', b"}", b"]", b","))
    return depth > 0 and cut
