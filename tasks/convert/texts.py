"""Plain texts (.txt, .md, and gzip or zstd of them): a file is a document, or each of its parts is."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal, TextIO

from tasks.convert.streams import UTF16, Salvaged, text_of
from tasks.convert.values import CHUNK, Items
from tasks.convert.verdicts import Bad

Split = Literal["file", "blank-lines"]
TEXT_SUFFIXES = tuple(
    f".{kind}{packed}" for kind in ("txt", "md", "markdown") for packed in ("", ".gz", ".zst")
)
FOREIGN = {
    b"%PDF": "a PDF file",
    b"PK\x03\x04": "a zip archive, or a file of an office program",
    b"\xd0\xcf\x11\xe0": "a file of an office program",
    b"{\\rtf": "an RTF file",
}


def text_items(path: Path, limit: int, split: Split = "file", encoding: str = "utf-8") -> Items:
    """(number of the part, its text, its bytes) of one file, with LF as line end.

    A part of more than `limit` bytes is a Bad, and so is one that is not of the encoding. UTF-16 is known by
    its mark, whatever `encoding` says.
    """
    with open(path, "rb") as file:
        head = file.read(4)
        file.seek(0)
        if what := next((what for magic, what in FOREIGN.items() if head.startswith(magic)), ""):
            yield 0, Bad("unreadable file", what), head
            return
        number = 0
        try:
            stream = text_of(path, file, "utf-16" if head.startswith(UTF16) else encoding, newline=None)
            for number, (part, size) in enumerate(_parts(stream, limit, split), start=1):
                raw = part.encode("utf-8", "replace")
                yield number, _checked(part, size, limit, encoding), raw if size <= limit else raw[:1000]
        except UnicodeError as error:  # a codec that does not know surrogates
            yield 0, Bad(f"not {encoding.upper()}", str(error)[:200]), b""
            return
        except Salvaged.DAMAGE as error:
            left = os.fstat(file.fileno()).st_size - file.tell()
            yield 0, Bad("unreadable file", str(error)[:200], size=max(0, left)), b""
            return
        if not number:
            yield 0, Bad("empty file"), b""


def _parts(stream: TextIO, limit: int, split: Split) -> Iterator[tuple[str, int]]:
    """Each part that is not blank with its bytes; of an over-long one, the beginning only."""
    kept: list[str] = []
    size = 0
    while line := stream.readline(CHUNK):
        blank = line.isspace()
        if blank and (split == "blank-lines" or not size):
            if size:
                yield "".join(kept), size
            kept, size = [], 0
            continue
        size += len(line.encode("utf-8", "surrogatepass"))
        if size <= limit or not kept:
            kept.append(line)
    if size:
        yield "".join(kept), size


def _checked(part: str, size: int, limit: int, encoding: str) -> Any:
    if size > limit:
        return Bad("over-long record", "options.split: blank-lines makes a record of each part", size=size)
    if any("\ud800" <= sign <= "\udfff" for sign in set(part)):
        other = "; options.encoding: gb18030 reads Chinese texts of Windows" if encoding == "utf-8" else ""
        return Bad(f"not {encoding.upper()}", other.removeprefix("; "))
    return part.strip("\n")
