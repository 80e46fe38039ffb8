"""Zip and tar archives among the fetched files, unpacked: benchmarks are published that way.

Convert reads packed JSON lines as they are; this is for formats that it reads from plain files only.
"""

from __future__ import annotations

import errno
import gzip
import shutil
import stat
import tarfile
import zipfile
import zlib
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import IO

from tasks.download.disk import Reservation, free
from tasks.download.fetch import human
from tasks.download.names import Names, few, is_litter, readable
from tasks.download.patterns import matching
from tasks.download.zip_names import names_of
from tasks.settings.errors import NodeError

ZIP = (".zip",)
TAR = (".tar", ".tar.gz", ".tgz")
RATIO = 200
"""An archive may unpack to so many times its size; texts reach 5 to 20. More is a bomb, or a mistake."""
ALWAYS = 64 << 20
"""Bytes that any archive may unpack to."""

TAR_KINDS = (
    (tarfile.TarInfo.isdir, "folder"),
    (tarfile.TarInfo.isfile, "file"),
    (tarfile.TarInfo.issym, "links"),
    (tarfile.TarInfo.islnk, "links"),
)

DAMAGE = (zipfile.BadZipFile, tarfile.TarError, gzip.BadGzipFile, zlib.error, EOFError, RuntimeError)


@dataclass
class Member:
    """One entry of an archive."""

    path: str
    size: int
    """Bytes, unpacked."""
    kind: str
    """`file`, `folder`, or what else it is: such are left out."""
    open: Callable[[], IO[bytes]]


@dataclass
class _Seen:
    """What an archive holds beside the files taken."""

    others: list[str] = field(default_factory=list)
    """The first of the files that match no pattern."""
    n: int = 0


def unpack(
    out: Path,
    files: Sequence[str],
    patterns: Sequence[str],
    say: Callable[[str], None] = lambda line: None,
) -> list[str]:
    """Take the matching members out of the archives among `files`, remove the archives; the files that then are.

    Only regular files are taken, so that no link leads outside, and none of those that a desktop made for
    itself; `say` is told what was left out. NodeError for a damaged archive, one that unpacks to far more than
    it should, a member that would lie outside or over another file, and when nothing matches.
    """
    archives = [file for file in files if file.lower().endswith((*ZIP, *TAR))]
    names = Names(files)
    seen = _Seen()
    for archive in archives:
        with _told(archive):
            left_out = _unpack(out, archive, patterns, names, seen)
        if left_out:
            say(f"{archive}: left out {', '.join(f'{n:,} {what}' for what, n in sorted(left_out.items()))}")
    taken = names.files.difference(archives)
    if not taken:
        there = (
            f"there are {seen.n:,} files: {few(seen.others, 8, seen.n)}" if seen.n else "there are no files"
        )
        raise NodeError(
            f"no file in {', '.join(archives) or 'no archive'} matches unpack: {', '.join(patterns)}; {there}"
        )
    for archive in archives:
        (out / archive).unlink()
    return sorted(taken)


def _unpack(out: Path, archive: str, patterns: Sequence[str], names: Names, seen: _Seen) -> Counter[str]:
    """Take what matches; how many members of which kind were left out."""
    path, left_out, total = out / archive, Counter(), 0
    sink = _Sink(out, archive, names)
    packed_size = path.stat().st_size
    limit = max(ALWAYS, RATIO * packed_size)
    of_zip = archive.lower().endswith(ZIP)
    for member in (_zip_members if of_zip else _tar_members)(path, limit):
        wanted = member.kind == "file" and not is_litter(member.path) and matching(member.path, patterns)
        total += member.size if wanted or not of_zip else 0  # a tar is read through, whatever is wanted
        if total > limit:
            raise NodeError(
                f"{archive} has {human(packed_size)} and would unpack to more than {human(limit)}: it is damaged, or "
                f"made to fill the disk (more than {RATIO} times its size; {human(free(out))} are free). "
                "If it is sound, unpack it by hand and give the folder"
            )
        if wanted:
            sink.take(member)
        elif member.kind == "folder":
            continue
        elif is_litter(member.path):
            left_out["files of a desktop (__MACOSX, ._*, .DS_Store)"] += 1
        elif member.kind != "file":
            left_out[member.kind] += 1
        else:
            seen.n += 1
            if len(seen.others) < 8:
                seen.others.append(member.path)
    return left_out


def _zip_members(path: Path, limit: int) -> Iterator[Member]:
    with zipfile.ZipFile(path) as packed:
        infos = packed.infolist()
        for info, name in zip(infos, names_of(infos), strict=True):
            kind, name = "folder" if name.endswith("/") else "file", name.removeprefix("./")
            mode = info.external_attr >> 16
            if kind == "file" and stat.S_IFMT(mode) not in (0, stat.S_IFREG):
                kind = "links" if stat.S_ISLNK(mode) else "devices and pipes"
            yield Member(name, info.file_size, kind, partial(packed.open, info))


def _tar_members(path: Path, limit: int) -> Iterator[Member]:
    with tarfile.open(path) as packed:
        for info in packed:
            kind = next((kind for is_of, kind in TAR_KINDS if is_of(info)), "devices and pipes")
            name = readable(info.name).removeprefix("./")
            yield Member(name, info.size, kind, partial(packed.extractfile, info))
            packed.members.clear()  # type: ignore[attr-defined]  # tarfile remembers all of them
        read = 0
        while chunk := packed.fileobj.read(1 << 20):  # gzip's checksum comes after the last member
            read += len(chunk)
            if chunk.strip(b"\0"):
                raise NodeError(f"{path.name} is damaged: there are data after its last readable member")
            if read > limit:
                raise NodeError(f"{path.name} is damaged: {human(limit)} and more follow its last member")


class _Sink:
    """Where members are written to: room on the disk and folders are seen to once, not for each of 100,000."""

    STEP = 64 << 20
    """Bytes of small members for which room is looked for at a time."""

    def __init__(self, out: Path, archive: str, names: Names):
        self.out, self.archive, self.names = out, archive, names
        self.room = 0
        self.folders: set[Path] = set()

    def take(self, member: Member) -> None:
        self.names.add(self.archive, member.path)
        target = self.out / member.path
        if target.parent not in self.folders:
            target.parent.mkdir(parents=True, exist_ok=True)
            self.folders.add(target.parent)
        self.room -= member.size
        if self.room < 0:
            self.room = max(self.STEP - member.size, 0)
            with Reservation(self.out, max(member.size, self.STEP)):
                size = _write(member, target)
        else:
            size = _write(member, target)
        if size != member.size:
            raise NodeError(f"{self.archive} is damaged: {member.path} has {size:,} of {member.size:,} bytes")


def _write(member: Member, target: Path) -> int:
    with member.open() as source, open(target, "wb") as sink:
        shutil.copyfileobj(source, sink, 1 << 20)
        return sink.tell()


@contextmanager
def _told(archive: str) -> Iterator[None]:
    """Damage, and what the file system does not take, as one line."""
    try:
        yield
    except DAMAGE as error:
        if isinstance(error, NodeError):
            raise
        raise NodeError(f"{archive} cannot be unpacked: {error}") from error
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise NodeError(
                f"the disk filled up while {archive} was unpacked: make room, run again"
            ) from error
        if error.errno == errno.ENAMETOOLONG:
            raise NodeError(
                f"{archive} holds a path that is too long for this disk: {error.filename}"
            ) from error
        if error.errno in (errno.EISDIR, errno.ENOTDIR, errno.EEXIST):
            raise NodeError(f"{archive} holds {error.filename} both as a file and as a folder") from error
        raise
