"""JSON lines: a value a line, and how a file of them is cut into spans."""

from __future__ import annotations

import re
from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

from tasks.convert.json_documents import glued
from tasks.convert.values import BOM, CHUNK, Items, parse
from tasks.convert.verdicts import Bad

MORE = re.compile(rb"\}\s*(?:\{|,\s*\Z)")
"""Perhaps two objects on a line (the line end between them was lost, or is that of another system), or one and
the comma of an array."""


class Span(NamedTuple):
    """A part of a file of JSON lines: bytes [start, end), which begin with line number `line`."""

    start: int
    end: int
    line: int


def lines(chunks: Iterable[bytes], limit: int, number: int = 0, end: bytes = b"\n") -> Items:
    """The values of the lines, whose numbers follow `number`; `end` is what ends a line."""
    rest, lost, opening = b"", 0, b""
    for chunk in chunks:
        found = (rest + chunk).split(end)
        rest = found.pop()
        for line in found:
            number += 1
            if lost:
                yield number, Bad("over-long record", size=lost + len(line)), opening
                lost = 0
            elif len(line) > limit:
                yield number, Bad("over-long record", size=len(line)), line[:1000]
            elif line and not line.isspace():
                yield from _values(number, line)
        if lost or len(rest) > limit:
            opening = opening if lost else rest[:1000]
            lost, rest = lost + len(rest), b""
    if lost:
        yield number + 1, Bad("over-long record", size=lost), opening
    elif rest and not rest.isspace():
        yield from _values(number + 1, rest)


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


def _values(number: int, line: bytes) -> Items:
    """The value of a line; the values, where it holds several objects; or one Bad."""
    value = parse(line)
    if isinstance(value, Bad):
        if line.startswith(BOM):  # files with such a mark were joined
            line = line.removeprefix(BOM)
            value = parse(line)
        if isinstance(value, Bad) and MORE.search(line):
            for one, raw in (several := glued(line, parse)):
                yield number, one, raw
            if several:
                return
    yield number, value, line
