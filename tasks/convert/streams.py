"""Compressed files as streams of bytes that give what they can before they fail."""

from __future__ import annotations

import gzip
import io
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any, BinaryIO, Protocol

GZIP, ZSTD = b"\x1f\x8b", b"\x28\xb5\x2f\xfd"
"""First bytes; what a file is called says little."""
UTF16 = (b"\xff\xfe", b"\xfe\xff")
"""Marks at the beginning of a text in UTF-16."""


class Stream(Protocol):
    """What gives bytes."""

    def read(self, size: int, /) -> bytes: ...


class Undecodable(Exception):
    """A compressed stream that is damaged."""


def decompressed(path: Path, file: BinaryIO) -> Stream:
    """The file, or what is in it. Raises Undecodable when its name promises compression and it has none."""
    magic = file.read(4)
    file.seek(0)
    if magic.startswith(GZIP):
        return Salvaged(gzip.open(file, "rb").read1)
    if magic == ZSTD:
        return Salvaged(_zstd(file))
    if path.suffix in (".gz", ".zst"):
        raise Undecodable("not compressed, despite its name" if magic else "empty")
    return file


def text_of(path: Path, file: BinaryIO, encoding: str, newline: str | None = "") -> io.TextIOWrapper:
    """The file's text, decompressed, without a byte-order mark; `newline` as for open(): "" keeps line ends.

    Bytes that are not of the encoding arrive as lone surrogates, so that one bad line does not end the file.
    """
    plain = io.BufferedReader(_Raw(decompressed(path, file)), 1 << 18)
    codec = "utf-8-sig" if encoding.lower() in ("utf-8", "utf8") else encoding
    return io.TextIOWrapper(plain, encoding=codec, errors="surrogateescape", newline=newline)


class _Raw(io.RawIOBase):
    """A stream that only reads, for io's own buffers."""

    def __init__(self, stream: Stream):
        self.stream = stream

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        found = self.stream.read(len(buffer))
        buffer[: len(found)] = found
        return len(found)


def _zstd(file: BinaryIO) -> Callable[[int], bytes]:
    import pyarrow as pa

    stream = pa.CompressedInputStream(pa.PythonFile(file, "r"), "zstd")

    def read(size: int) -> bytes:
        try:
            return stream.read(size)
        except OSError as error:
            if error.errno is not None:
                raise  # the disk's
            raise Undecodable(str(error)) from error  # pyarrow tells damage by an OSError without a number

    return read


class Salvaged:
    """Hands out what a decompressor gave before it failed; the failure comes with the next read."""

    BLOCK = 1 << 16
    DAMAGE = (EOFError, zlib.error, gzip.BadGzipFile, Undecodable)

    def __init__(self, read: Callable[[int], bytes]):
        self.block = read
        self.error: Exception | None = None

    def read(self, size: int) -> bytes:
        found = bytearray()
        while len(found) < size and not self.error:
            try:
                block = self.block(min(self.BLOCK, size - len(found)))
            except self.DAMAGE as error:
                self.error = error
                break
            if not block:
                break
            found += block
        if self.error and not found:
            raise self.error
        return bytes(found)
