"""Fetch listed files: take what an earlier artifact has, check the disk, download, verify.

This is a Range downloader of our own, because huggingface_hub 2.4 starts a killed file again at byte 0
and accepts a corrupt body of the right size. Here a file is written to `<name>.<version>.part`, continued
from there by the next attempt or the next run, checked by size and digest (sha256, or git's blob sha1
where a hub lists no other), and only then renamed; so a file under its own name is whole.
"""

from __future__ import annotations

import errno
import hashlib
import os
import threading
import time
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

import httpx

from tasks.download.disk import Reservation
from tasks.download.listing import (
    RETRY_STATUS,
    Changed,
    Elsewhere,
    Listing,
    RemoteFile,
    pause,
)
from tasks.download.names import LONGEST, Names
from tasks.settings import loopback
from tasks.settings.errors import NodeError, one_line
from tasks.settings.files import link_or_copy

PART = ".part"
CHUNK = 1 << 20
ATTEMPTS = 6
"""Attempts in a row that bring nothing new before a file is given up."""
WRONG = 3
"""Whole files with wrong bytes before the server is blamed."""
EVERY = 0.2
"""Seconds between two reports of progress."""


@dataclass
class Fetcher:
    """Downloads one listing into one folder; safe to call again after any failure."""

    workers: int = 4
    progress: Callable[[float, str], None] = lambda share, text: None
    should_stop: Callable[[], bool] = lambda: False
    sleep: Callable[[float], None] = pause
    reused: int = 0
    """Files that an earlier artifact had."""
    fetched: int = 0
    """Bytes that came over the network."""
    _lock: threading.Lock = field(default_factory=threading.Lock)
    _telling: threading.Lock = field(default_factory=threading.Lock)
    _failed: threading.Event = field(default_factory=threading.Event)
    _done: int = 0
    _total: int = 0
    _started: float = 0.0
    _told: float = 0.0

    def fetch(self, dataset: str, listing: Listing, out: Path, earlier: Sequence[Path] = ()) -> None:
        """Have all files whole below `out`, whatever is there already.

        `earlier` are folders that may hold some of them under the same paths. Raises NodeError; Elsewhere if
        another endpoint may do better, Changed if the listing is out of date.
        """
        files = listing.files
        check_names(dataset, (f.path for f in files))
        _remove_parts(out, {p for f in files for p in (out / f.path, _part(out / f.path, f))})
        self._failed.clear()
        self._total, self._started = sum(f.size for f in files), time.monotonic()
        # environment proxies are for the world, not for a hub on this machine
        local = all(httpx.URL(f.url).host in loopback.HOSTS for f in files)
        timeout = httpx.Timeout(30.0, connect=15.0)
        with (
            ThreadPoolExecutor(self.workers) as pool,
            httpx.Client(timeout=timeout, follow_redirects=True, trust_env=not local) as client,
        ):
            whole = list(pool.map(lambda f: self._is_there(f, out, earlier), files))
            missing = [f for f, there in zip(files, whole, strict=True) if not there]
            to_come = sum(f.size - min(f.size, _size(_part(out / f.path, f))) for f in missing)
            self._done = self._total - to_come
            with Reservation(out, to_come) as space:
                futures = [pool.submit(self._file, client, listing, dataset, f, out, space) for f in missing]
                try:
                    for future in futures:
                        future.result()
                except BaseException:
                    self._failed.set()  # the other files of this set stop at their next chunk
                    pool.shutdown(wait=True, cancel_futures=True)
                    raise

    def _is_there(self, file: RemoteFile, out: Path, earlier: Sequence[Path]) -> bool:
        """Whether the file is whole below `out`, or could be taken from an earlier folder."""
        target = out / file.path
        if target.is_file() and not _problem(target, file):
            return True
        if not file.expected:  # nothing tells that it is the same file
            return False
        for folder in earlier:
            try:
                if not _taken(folder / file.path, target, file):
                    continue
            except FileNotFoundError:  # that artifact is being replaced
                continue
            with self._lock:
                self.reused += 1
            return True
        return False

    def _file(
        self,
        client: httpx.Client,
        listing: Listing,
        dataset: str,
        file: RemoteFile,
        out: Path,
        space: Reservation,
    ) -> None:
        target = out / file.path
        part = _part(target, file)
        part.parent.mkdir(parents=True, exist_ok=True)
        idle = wrong = 0
        best = _size(part)
        while True:
            try:
                self._attempt(client, listing, dataset, file, part, space)
                problem = _problem(part, file)
                if not problem:
                    part.replace(target)
                    return
                wrong += 1
                self._advance(-_size(part), file, space)
                part.unlink()
                best = 0
                if wrong == WRONG:
                    raise Elsewhere(
                        f"{dataset}/{file.path} came with wrong bytes {WRONG} times ({problem}, by {file.by}); "
                        f"the copy at {_where(file)} is damaged"
                    )
            except _Again as again:
                have = _size(part)
                idle = 0 if have > best else idle + 1
                best = max(best, have)
                if idle == ATTEMPTS:
                    raise Elsewhere(
                        f"{dataset}/{file.path} could not be fetched from {_where(file)}: {again} "
                        f"(tried {ATTEMPTS} times; what is there already is kept)"
                    ) from again.__cause__
                self._wait(again.wait or min(30.0, 0.5 * 2**idle))

    def _attempt(
        self,
        client: httpx.Client,
        listing: Listing,
        dataset: str,
        file: RemoteFile,
        part: Path,
        space: Reservation,
    ) -> None:
        """Bring the part to the file's full size, or raise `_Again` or NodeError."""
        if self._failed.is_set() or self.should_stop():
            raise NodeError(f"the download of {dataset} was stopped")
        have = _size(part)
        if have > file.size or (have and not file.version):  # nothing tells what it is a part of
            self._advance(-min(have, file.size), file, space)
            part.unlink()
            have = 0
        if have == file.size:  # killed between the last byte and the renaming, or an empty file
            part.touch()
            return
        # identity: a compressed answer has neither the size nor the ranges of the file
        headers = {"Accept-Encoding": "identity", **listing.headers}
        if have:
            headers["Range"] = f"bytes={have}-"
            if file.etag:
                headers["If-Range"] = file.etag
        try:
            with client.stream("GET", file.url, headers=headers) as answer:
                if answer.status_code == 416:  # it is shorter by now than the part
                    self._advance(-have, file, space)
                    part.unlink()
                self._check_status(answer, listing, dataset, file)
                resumed = answer.status_code == 206
                if resumed and not answer.headers.get("Content-Range", "").startswith(f"bytes {have}-"):
                    raise _Again("the server sent another range than the one asked for")
                if not resumed and have:  # it knows no ranges, or has another version by now
                    self._advance(-have, file, space)
                with open(part, "ab" if resumed else "wb") as sink:
                    for chunk in answer.iter_raw():
                        if self._failed.is_set() or self.should_stop():
                            raise NodeError(f"the download of {dataset} was stopped")
                        sink.write(chunk)
                        self._advance(len(chunk), file, space, came=True)
                        if sink.tell() > file.size:
                            return  # too long: the check says so
        except httpx.RequestError as error:
            raise _Again(one_line(error)) from error
        except OSError as error:
            if error.errno in (errno.ENOSPC, errno.EDQUOT):
                raise NodeError(
                    f"the disk filled up while {file.path} was written; what is there is kept: make room, run again"
                ) from error
            raise
        if _size(part) < file.size:
            raise _Again(f"the connection ended after {_size(part):,} of {file.size:,} bytes")

    def _check_status(self, answer: httpx.Response, listing: Listing, dataset: str, file: RemoteFile) -> None:
        code = answer.status_code
        if code in (200, 206):
            tags = {answer.headers.get("ETag"), answer.headers.get("Last-Modified")} - {None}
            if file.etag and tags and file.etag not in tags:
                raise Changed(f"{file.url} changed while it was being fetched; run again")
            return
        if code == 416:
            raise Changed(f"{dataset}/{file.path} at {_where(file)} is no longer as it was listed; run again")
        if code in (401, 403):
            if answer.url.host != httpx.URL(file.url).host:  # a storage host, whose signed link ran out
                raise _Again(f"HTTP {code} from {answer.url.host}")
            raise NodeError(f"{listing.refused} (HTTP {code}, {file.path})")
        if code in RETRY_STATUS:
            wait = answer.headers.get("Retry-After", "")
            raise _Again(f"HTTP {code}", min(float(wait), 60.0) if wait.isdigit() else 0.0)
        raise Elsewhere(f"{dataset}/{file.path}: {_where(file)} answers HTTP {code}")

    def _wait(self, seconds: float) -> None:
        while seconds > 0 and not (self._failed.is_set() or self.should_stop()):
            self.sleep(min(0.5, seconds))
            seconds -= 0.5

    def _advance(self, size: int, file: RemoteFile, space: Reservation, came: bool = False) -> None:
        space.used(size)
        now = time.monotonic()
        with self._lock:
            self._done += size
            self.fetched += size if came else 0
            if self._done < self._total and now < self._told + EVERY:
                return
            self._told = now
            share = self._done / self._total if self._total else 1.0
            rate = self.fetched / max(now - self._started, 1e-3)
            text = f"{human(self._done)} of {human(self._total)}, {human(rate)}/s, {file.path}"
        if self._telling.acquire(blocking=share >= 1):  # one at a time; only the last one waits
            try:
                self.progress(min(max(share, 0.0), 1.0), text)
            finally:
                self._telling.release()


class _Again(Exception):
    """An attempt failed in a way that may pass."""

    def __init__(self, message: str, wait: float = 0.0):
        super().__init__(message)
        self.wait = wait


def human(size: float) -> str:
    """Bytes for people, in decimal units: 1.5 GB."""
    for unit in ("B", "kB", "MB", "GB"):
        if abs(size) < 999.5:
            return f"{size:.0f} {unit}" if unit == "B" or abs(size) >= 99.5 else f"{size:.1f} {unit}"
        size /= 1000
    return f"{size:.1f} TB"


def check_names(dataset: str, paths: Iterable[str]) -> None:
    """NodeError for files that must not, or cannot, be written into an artifact."""
    names = Names()
    for path in paths:
        names.add(dataset, path)


def remove_strangers(out: Path, wanted: Iterable[str]) -> None:
    """Remove what an earlier, interrupted run with other files left in the folder."""
    keep = set(wanted)
    for folder, _, names in os.walk(out, topdown=False):
        for name in names:
            path = Path(folder, name)
            if path.relative_to(out).as_posix() not in keep:
                path.unlink()
        if Path(folder) != out and not os.listdir(folder):
            os.rmdir(folder)


def _remove_parts(out: Path, wanted: set[Path]) -> None:
    """Parts of other versions or of files that are no longer listed: they only fill the disk."""
    for part in out.rglob(f"*{PART}"):
        if part.is_file() and part not in wanted:
            part.unlink()


def _taken(origin: Path, target: Path, file: RemoteFile) -> bool:
    """Whether `origin` is the file; it then lies at `target`, too."""
    if not origin.is_file() or origin.stat().st_size != file.size or _problem(origin, file):
        return False
    link_or_copy(origin, target)
    return not _problem(target, file)


def _problem(path: Path, file: RemoteFile) -> str:
    """What is wrong with the file at `path`, or ""."""
    if (size := path.stat().st_size) != file.size:
        return f"{size:,} bytes instead of {file.size:,}"
    if not file.expected:
        return ""
    digest = file.digest()
    with open(path, "rb") as stream:
        while chunk := stream.read(CHUNK):
            digest.update(chunk)
    if digest.hexdigest() != file.expected:
        return f"{digest.name} {digest.hexdigest()[:12]}… instead of {file.expected[:12]}…"
    return ""


def _part(target: Path, file: RemoteFile) -> Path:
    end = f".{file.version or 'unknown'}{PART}"
    if len(os.fsencode(target.name + end)) <= LONGEST:
        return target.with_name(target.name + end)
    return target.with_name(hashlib.sha256(os.fsencode(target.name)).hexdigest() + end)


def _where(file: RemoteFile) -> str:
    url = httpx.URL(file.url)
    return f"{url.scheme}://{url.netloc.decode()}"


def _size(path: Path) -> int:
    return path.stat().st_size if path.exists() else 0
