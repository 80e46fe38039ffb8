"""The elements of one huge JSON array, one at a time, from a stream of chunks.

No incremental parser is needed: a regular expression steps over whole strings and stops at
brackets and commas, so an element's bytes are cut out and parsed as usual. Memory is bounded by
`limit` plus a chunk. A damaged element must not take the rest of the file with it: when one cannot
be parsed, or no end is found within `limit` bytes, the scan resumes at the next `}, {`.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator
from typing import Any

from tasks.convert.verdicts import Bad

# a whole string, a structural character, or the quote of a string whose end is not in the buffer
TOKEN = re.compile(rb'"[^"\\]*+(?:\\.[^"\\]*+)*+"|["\[\]{},]', re.DOTALL)
SEAM = re.compile(rb"\}\s*,\s*(?=\{)")
SEAM_MAX = 64
"""Bytes of a seam that may lie across two chunks."""


def elements(
    chunks: Iterable[bytes], limit: int, parse: Callable[[bytes], Any]
) -> Iterator[tuple[int, Any, bytes]]:
    """Yield (position from 1, value or Bad, its bytes) for every element."""
    window = _Window(chunks)
    window.open()
    number = 0
    while True:
        end, why = window.boundary(limit)
        raw = window.buffer[window.start : end]
        if raw and not raw.isspace():
            number += 1
            value = Bad("over-long record") if why == "limit" else parse(raw)
            if why == "end of file" and isinstance(value, list):  # a stray bracket has swallowed the rest
                value = Bad("broken JSON")
            if isinstance(value, Bad):
                seam = SEAM.search(raw)
                if seam:
                    # more likely a lost quote or brace than one element with a seam in a text
                    window.start += seam.end()
                    yield number, Bad("broken JSON"), raw[: seam.start() + 1]
                    continue
                if why == "limit":
                    window.skip_to_seam()
                    yield number, value, raw[:1000]
                    continue
                if why == "end of file":
                    value = Bad("truncated record")
            elif len(raw) > limit:
                value, raw = Bad("over-long record"), raw[:1000]
            yield number, value, raw
        window.start = min(end + 1, len(window.buffer))
        if why == "end of file" or why == "]" and not window.more_than_space():
            return
        if why == "]":  # a stray bracket, unless no element follows
            number += 1
            yield number, Bad("data after the array"), window.buffer[window.start :][:1000]
            window.skip_to_seam()


class _Window:
    """The part of the stream in memory; `start` is where the current element begins."""

    def __init__(self, chunks: Iterable[bytes]):
        self.chunks = iter(chunks)
        self.buffer = b""
        self.start = 0

    def open(self) -> None:
        """Step over the opening bracket, which the caller has seen."""
        while b"[" not in self.buffer and self._read():
            pass
        self.start = self.buffer.find(b"[") + 1

    def boundary(self, limit: int) -> tuple[int, str]:
        """Where the current element ends, and by what: `,`, `]`, `limit` or `end of file`."""
        position, depth = self.start, 0
        while True:
            for token in TOKEN.finditer(self.buffer, position):
                what = token[0]
                position = token.end()
                if what in b"{[":
                    depth += 1
                elif what in b"}]" and depth:
                    depth -= 1
                elif what == b"," or what == b"]":
                    if not depth:
                        return token.start(), what.decode()
                elif what == b'"':  # its end has not been read yet
                    position = token.start()
                    break
            if len(self.buffer) - self.start > limit:
                return len(self.buffer), "limit"
            position -= self.start
            if not self._read():
                return len(self.buffer), "end of file"

    def skip_to_seam(self) -> None:
        """Drop everything up to the next seam or the end of the file."""
        while True:
            seam = SEAM.search(self.buffer, self.start)
            if seam:
                self.start = seam.end()
                return
            self.start = max(self.start, len(self.buffer) - SEAM_MAX)
            if not self._read():
                self.start = len(self.buffer)
                return

    def more_than_space(self) -> bool:
        """Whether anything but white space follows in the file."""
        while True:
            if self.buffer[self.start :].strip():
                return True
            self.start = len(self.buffer)
            if not self._read():
                return False

    def _read(self) -> bool:
        chunk = next(self.chunks, b"")
        self.buffer = self.buffer[self.start :] + chunk
        self.start = 0
        return bool(chunk)
