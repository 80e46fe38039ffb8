"""Where a node's records lie: one `records.jsonl`, or `records-00000.jsonl, records-00001.jsonl, …`.

The concatenation of the parts is the source in order; a part always ends with a whole line. Every
reader of records (and of what was dropped of them, stem `dropped`) comes through here, so that none
has to know into how many pieces a source was cut.
"""

from __future__ import annotations

import bisect
import io
import os
import re
from collections.abc import Iterator
from itertools import accumulate
from pathlib import Path
from typing import Any

from tasks.stage.node import Artifact
from tasks.stage.store import file_digest

MAX_PART_BYTES = 64 << 20
"""Who writes parts begins a new one before this; a single longer line is a part of its own."""


def name(number: int, stem: str = "records") -> str:
    """File name of a part."""
    return f"{stem}-{number:05d}.jsonl"


def parts(folder: str | os.PathLike[str], stem: str = "records") -> list[Path]:
    """The part files of a node's output, in order; a path of a file is its own only part.

    Raises FileNotFoundError when there is none (an empty source has one empty part) and ValueError
    when a whole file lies beside parts, because one of the two is then left over from something else.
    """
    folder = Path(folder)
    if folder.is_file():
        return [folder]
    pattern = re.compile(rf"{re.escape(stem)}-(\d{{5,}})\.jsonl")
    numbered = {
        int(match[1]): path for path in folder.glob("*.jsonl") if (match := pattern.fullmatch(path.name))
    }
    whole = folder / f"{stem}.jsonl"
    if whole.exists() and numbered:
        raise ValueError(f"{folder} holds {whole.name} and parts of it")
    if not whole.exists() and not numbered:
        raise FileNotFoundError(f"{folder} holds no {whole.name} and no part of it")
    return [numbered[number] for number in sorted(numbered)] or [whole]


def lines(folder: str | os.PathLike[str], stem: str = "records") -> Iterator[bytes]:
    """The lines of all parts, in order, each with its newline."""
    for path in parts(folder, stem):
        with path.open("rb") as file:
            yield from file


def digested(artifact: Artifact, stem: str = "records") -> list[tuple[Path, str]]:
    """The parts of an artifact with their sha256, which its manifest has already."""
    known = {entry["path"]: entry["sha256"] for entry in artifact.manifest.get("files", ())}
    paths = parts(artifact.path, stem)
    return [(path, known.get(_below(artifact, path)) or file_digest(path)) for path in paths]


def size(folder: str | os.PathLike[str], stem: str = "records") -> int:
    """Bytes of all parts."""
    return sum(path.stat().st_size for path in parts(folder, stem))


def open_all(folder: str | os.PathLike[str], stem: str = "records") -> io.BufferedReader:
    """All parts as one seekable binary file."""
    return io.BufferedReader(_Joined(parts(folder, stem)))


class _Joined(io.RawIOBase):
    """Files read one after the other, with one position over all of them."""

    def __init__(self, paths: list[Path]):
        self.paths = paths
        self.ends = list(accumulate(path.stat().st_size for path in paths))
        self.at = 0
        self.file: Any = None
        self.number = -1

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        base = {os.SEEK_SET: 0, os.SEEK_CUR: self.at, os.SEEK_END: self.ends[-1]}[whence]
        self.at = base + offset
        return self.at

    def readinto(self, buffer: Any) -> int:
        number = bisect.bisect_right(self.ends, self.at)
        if number == len(self.paths):
            return 0
        if number != self.number:
            self._close_file()
            self.file, self.number = self.paths[number].open("rb", buffering=0), number
        start = self.ends[number - 1] if number else 0
        self.file.seek(self.at - start)
        read = self.file.readinto(buffer)
        self.at += read
        return read

    def close(self) -> None:
        self._close_file()
        super().close()

    def _close_file(self) -> None:
        if self.file is not None:
            self.file.close()
            self.file = None


def _below(artifact: Artifact, path: Path) -> str:
    """The path as the manifest of the whole artifact writes it (an input may be a folder of it)."""
    prefix = artifact.ref.folder
    relative = path.relative_to(artifact.path).as_posix()
    return f"{prefix}/{relative}" if prefix else relative
