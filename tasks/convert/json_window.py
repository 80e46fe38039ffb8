"""The part of a stream of JSON that is in memory, and where the values in it end.

No incremental parser is needed: a regular expression steps over whole strings and stops at brackets and
commas, so the bytes of a value are cut out and parsed as usual. Memory is bounded by `limit` plus a chunk.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable

# a whole string, a structural character, or the quote of a string whose end is not in the buffer
TOKEN = re.compile(rb'"[^"\\]*+(?:\\.[^"\\]*+)*+"|["\[\]{},]', re.DOTALL)
NO_SPACE = re.compile(rb"[^ \t\r\n\f\v]")
SEAM_MAX = 64
"""Bytes of a seam that may lie across two chunks."""


class Window:
    """`buffer` from `start` on is what has been read and not been used yet."""

    def __init__(self, chunks: Iterable[bytes]):
        self.chunks = iter(chunks)
        self.buffer = b""
        self.start = 0

    def open(self) -> None:
        """Step over the opening bracket, which the caller has seen."""
        while b"[" not in self.buffer and self.read():
            pass
        self.start = self.buffer.find(b"[") + 1

    def element(self, limit: int) -> tuple[int, str]:
        """Where the current element of an array ends, and by what: `,`, `]`, `limit` or `end of file`."""
        return self._scan(limit, lambda what, depth: not depth and what in b",]")

    def value(self, limit: int) -> tuple[int, str]:
        """Where the object or array at `start` ends, and by what: `value`, `limit` or `end of file`."""
        end, why = self._scan(limit, lambda what, depth: depth <= 1 and what in b"}]")
        return (end, why) if why in ("limit", "end of file") else (end + 1, "value")

    def _scan(self, limit: int, ends: Callable[[bytes, int], bool]) -> tuple[int, str]:
        """Where the first sign stands of which `ends(sign, brackets open before it)` is true, and the sign."""
        position, depth = self.start, 0
        while True:
            for token in TOKEN.finditer(self.buffer, position):
                what = token[0]
                position = token.end()
                if len(what) > 1:  # a whole string
                    continue
                if what == b'"':  # its end has not been read yet
                    position = token.start()
                    break
                if ends(what, depth):
                    return token.start(), what.decode()
                if what in b"{[":
                    depth += 1
                elif what in b"}]" and depth:
                    depth -= 1
            if len(self.buffer) - self.start > limit:
                return len(self.buffer), "limit"
            position -= self.start
            if not self.read():
                return len(self.buffer), "end of file"

    def next_token(self, limit: int) -> bytes:
        """The next bracket, comma or whole string, with `start` behind it; b"" at the end of the file, or
        at a string that does not end within `limit` bytes."""
        while True:
            found = TOKEN.search(self.buffer, self.start)
            if found and found[0] != b'"':
                self.start = found.end()
                return found[0]
            self.start = found.start() if found else len(self.buffer)
            if len(self.buffer) - self.start > limit or not self.read():
                return b""

    def ahead(self, size: int) -> bytes:
        """The next `size` bytes, or what the file still has."""
        while len(self.buffer) - self.start < size and self.read():
            pass
        return self.buffer[self.start : self.start + size]

    def skip_to(self, seam: re.Pattern[bytes]) -> int:
        """Drop everything up to the end of the next seam, or of the file; how many bytes that was."""
        lost = 0
        while True:
            if found := seam.search(self.buffer, self.start):
                lost += found.end() - self.start
                self.start = found.end()
                return lost
            before = self.start
            self.start = max(self.start, len(self.buffer) - SEAM_MAX)
            lost += self.start - before
            if not self.read():
                lost += len(self.buffer) - self.start
                self.start = len(self.buffer)
                return lost

    def skip_space(self) -> bool:
        """Step over white space; whether anything else follows in the file."""
        while True:
            if found := NO_SPACE.search(self.buffer, self.start):
                self.start = found.start()
                return True
            self.start = len(self.buffer)
            if not self.read():
                return False

    def read(self) -> bool:
        """Have another chunk, without what lies before `start`; False at the end of the file."""
        chunk = next(self.chunks, b"")
        self.buffer = self.buffer[self.start :] + chunk
        self.start = 0
        return bool(chunk)
