"""From files of JSON to raw values, in bounded memory and whatever the bytes are.

Every function yields `(position, value, raw)`: the position counts from 1 (line, array element or
row; 0 is the file itself), `value` is the parsed value or a `Bad`, `raw` what an excerpt is made
of. `limit` is the number of bytes a single record may have. Nothing here raises for bad content;
a failing disk still raises. Tables (parquet, CSV) are read by tabular.py, in the same manner.
"""

from __future__ import annotations

import itertools
import json
import tarfile
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

import orjson

from tasks.convert.json_array import elements
from tasks.convert.streams import GZIP, ZSTD, Salvaged, Stream, decompressed
from tasks.convert.verdicts import Bad, Malformed

Items = Iterator[tuple[int, Any, Any]]
CHUNK = 1 << 20
BOM = b"\xef\xbb\xbf"
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
LENIENT = ("NaN", "Infinity", "\\u")
"""Only with one of these Python's parser may tell more than orjson."""
JSON_SUFFIXES = (".json", ".jsonl", ".json.gz", ".jsonl.gz", ".json.zst", ".jsonl.zst", ".tar.gz")
ANY_SUFFIXES = (*JSON_SUFFIXES, ".parquet")


class Span(NamedTuple):
    """A part of a file of JSON lines: bytes [start, end), which begin with line number `line`."""

    start: int
    end: int
    line: int


def json_items(path: Path, limit: int, span: Span | None = None) -> Items:
    """The objects of a JSON file of any shape: lines, one array, or one document.

    The shape is seen from the content, because data sets name JSON lines `.json` as often as not; so
    is compression (gzip, zstd). `.tar.gz` is read through; positions then run on over the members.
    With a span only that part of a file of lines is read.
    """
    try:
        with open(path, "rb") as file:
            if span:
                file.seek(span.start)
                yield from _lines(_chunks(file, span.end - span.start), limit, span.line - 1)
            elif path.name.endswith(".tar.gz"):
                packed: Any = decompressed(path, file)
                with tarfile.open(fileobj=packed, mode="r|") as archive:
                    yield from _renumbered(
                        _json_stream(archive.extractfile(member), limit)
                        for member in archive
                        if member.isfile()
                    )
            else:
                yield from _json_stream(decompressed(path, file), limit)
    except (*Salvaged.DAMAGE, tarfile.TarError) as error:
        yield 0, Bad("unreadable file", str(error)[:200]), b""


def any_items(path: Path, limit: int, span: Span | None = None) -> Items:
    """JSON of any shape, or the rows of a parquet file: hubs serve many sets in both."""
    if path.suffix == ".parquet":
        from tasks.convert.tabular import parquet_rows

        return parquet_rows(path, limit)
    return json_items(path, limit, span)


def is_lines(path: Path) -> bool:
    """Whether a file is plain JSON lines, so that it may be read in spans."""
    with open(path, "rb") as file:
        head = file.read(CHUNK)
    start = head.removeprefix(BOM).lstrip()
    foreign = any(head.startswith(magic) for magic in FOREIGN)
    return bool(start) and not foreign and not start.startswith(b"[") and not _is_one_document(start)


def spans(path: Path, size: int) -> list[Span]:
    """Cut a file of lines at line ends into spans of about `size` bytes: one pass that counts lines."""
    with open(path, "rb") as file:
        at = start = len(BOM) if file.read(len(BOM)) == BOM else 0
        file.seek(start)
        found, line, lines = [], 1, 0
        while chunk := file.read(CHUNK):
            done = 0
            # the first line end at or after the wanted size
            while (cut := chunk.find(b"\n", max(done, start + size - at - 1))) >= 0:
                lines += chunk.count(b"\n", done, cut + 1)
                done = cut + 1
                found.append(Span(start, at + done, line))
                start, line, lines = at + done, line + lines, 0
            lines += chunk.count(b"\n", done)
            at += len(chunk)
    if at > start:
        found.append(Span(start, at, line))
    return found


def parse(raw: bytes) -> Any:
    """The JSON value, or a `Bad`.

    NaN and Infinity, which many programs write though JSON has no such thing, become null; so does, when
    it is written, a number beyond the floats.
    """
    try:
        return orjson.loads(raw)
    except orjson.JSONDecodeError as error:
        why = str(error)
    if "depth limit" in why:
        return Bad("nested too deeply")
    try:
        text = raw.decode("utf-8")
    except UnicodeDecodeError as error:
        return Bad("not UTF-8", f"byte {error.start}")
    if "infinity" in why or any(sign in text for sign in LENIENT):
        return _leniently(text)
    return Bad("broken JSON")


def _leniently(text: str) -> Any:
    """What Python's parser makes of a text that orjson refuses."""
    try:
        value = json.loads(text, parse_constant=lambda name: None)
        json.dumps(value, ensure_ascii=False).encode()
    except UnicodeEncodeError:  # half of a surrogate pair: no character, and no file could hold it
        return Bad("lone surrogate")
    except RecursionError:
        return Bad("nested too deeply")
    except ValueError:
        return Bad("broken JSON")
    return value


def _chunks(stream: BinaryIO, size: int) -> Iterator[bytes]:
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
    head = stream.read(CHUNK).removeprefix(BOM)
    chunks = itertools.chain([head], iter(lambda: stream.read(CHUNK), b""))
    start = head.lstrip()
    foreign = next((what for magic, what in FOREIGN.items() if head.startswith(magic)), "")
    if foreign:
        yield 0, Bad("not UTF-8" if foreign == "UTF-16" else "unreadable file", foreign), head[:1000]
    elif not start and len(head) < CHUNK - len(BOM):
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


def _lines(chunks: Iterable[bytes], limit: int, number: int = 0) -> Items:
    rest, skipping = b"", False
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


def check_object(value: Any) -> dict[str, Any]:
    """The value as an object, or Malformed."""
    if type(value) is not dict:
        raise Malformed("null record" if value is None else "not an object")
    return value
