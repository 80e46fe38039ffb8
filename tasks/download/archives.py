"""Zip and tar archives among the fetched files, unpacked: benchmarks are published that way.

Convert reads packed JSON lines as they are; this is for formats that it reads from plain files only.
"""

from __future__ import annotations

import gzip
import shutil
import tarfile
import zipfile
import zlib
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import IO

from tasks.download.disk import Reservation
from tasks.download.fetch import check_names
from tasks.download.patterns import matching
from tasks.settings.errors import NodeError

ZIP = (".zip",)
TAR = (".tar", ".tar.gz", ".tgz")

DAMAGE = (zipfile.BadZipFile, tarfile.TarError, gzip.BadGzipFile, zlib.error, EOFError, RuntimeError)

Member = tuple[str, int, Callable[[], IO[bytes]]]
"""Path, bytes, and how to open it."""


def unpack(out: Path, files: Sequence[str], patterns: Sequence[str]) -> list[str]:
    """Take the matching members out of the archives among `files`, remove the archives; the files that then are.

    Only regular files are taken, so that no link leads outside. NodeError for a damaged archive, a member
    that would lie outside or over another file, and when nothing matches.
    """
    archives = [file for file in files if file.lower().endswith((*ZIP, *TAR))]
    kept = [file for file in files if file not in archives]
    for archive in archives:
        try:
            for member in _members(out / archive, patterns):
                _take(out, archive, member, kept)
        except DAMAGE as error:
            if isinstance(error, NodeError):
                raise
            raise NodeError(f"{archive} cannot be unpacked: {error}") from error
    if not kept:
        raise NodeError(
            f"no file in {', '.join(archives) or 'no archive'} matches unpack: {', '.join(patterns)}"
        )
    for archive in archives:
        (out / archive).unlink()
    return sorted(kept)


def _members(archive: Path, patterns: Sequence[str]) -> Iterator[Member]:
    if archive.name.lower().endswith(ZIP):
        with zipfile.ZipFile(archive) as packed:
            for info in packed.infolist():
                if not info.is_dir() and matching(info.filename, patterns):
                    yield info.filename, info.file_size, partial(packed.open, info)
    else:
        with tarfile.open(archive) as packed:
            for member in packed:
                name = member.name.removeprefix("./")
                if member.isfile() and matching(name, patterns):
                    yield name, member.size, partial(packed.extractfile, member)
            while packed.fileobj.read(1 << 20):  # gzip's checksum comes after the last member
                pass


def _take(out: Path, archive: str, member: Member, kept: list[str]) -> None:
    path, size, opened = member
    check_names(archive, [path])
    if path in kept:
        raise NodeError(f"{archive} holds {path}, and so does another file or archive of the source")
    target = out / path
    target.parent.mkdir(parents=True, exist_ok=True)
    with Reservation(out, size), opened() as source, open(target, "wb") as sink:
        shutil.copyfileobj(source, sink, 1 << 20)
    if target.stat().st_size != size:
        raise NodeError(f"{archive} is damaged: {path} has {target.stat().st_size:,} of {size:,} bytes")
    kept.append(path)
