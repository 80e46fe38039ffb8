"""Fetch listed files from a hub: check the disk, download, verify.

This is a Range downloader of our own, because huggingface_hub 2.4 starts a killed file again at byte 0 and accepts a corrupt body of the right
size. Here a file is written to `<name>.part`, continued from there by the next attempt or the next
run, checked by size and digest (sha256 for LFS files, git's blob sha1 for the others), and only
then renamed; so a file under its own name is whole.
"""

from __future__ import annotations

import os
import shutil
import threading
import time
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

import httpx

from tasks.download.listing import LOOPBACK, RemoteFile, gated, one_line
from tasks.node import NodeError

PART = ".part"
CHUNK = 1 << 20
ATTEMPTS = 6
"""Attempts in a row that bring nothing before a file is given up."""
WRONG = 3
"""Whole files with a wrong digest before the hub is blamed."""
SPARE = 200 << 20
"""Bytes that must stay free on the disk."""
EVERY = 0.2
"""Seconds between two reports of progress."""
RETRY_STATUS = {408, 425, 429, 500, 502, 503, 504}


@dataclass
class Fetcher:
    """Downloads from one hub into one folder; safe to call again after any failure."""

    endpoint: str
    token: str | None = None
    """Sent to the endpoint only, never logged."""
    workers: int = 4
    progress: Callable[[float, str], None] = lambda share, text: None
    should_stop: Callable[[], bool] = lambda: False
    sleep: Callable[[float], None] = time.sleep
    _lock: threading.Lock = field(default_factory=threading.Lock)
    _failed: threading.Event = field(default_factory=threading.Event)
    _done: int = 0
    _total: int = 0
    _told: float = 0.0

    def fetch(self, dataset: str, commit: str, files: Sequence[RemoteFile], out: Path) -> None:
        """Have all files whole below `out`, whatever is there already."""
        check_names(dataset, (f.path for f in files))
        missing = [f for f in files if not _is_whole(out / f.path, f)]
        to_come = sum(f.size - min(f.size, _size(_part(out / f.path))) for f in missing)
        check_space(out, to_come)
        self._total = sum(f.size for f in files)
        self._done = self._total - to_come
        # environment proxies are for the world, not for a hub on this machine
        local = httpx.URL(self.endpoint).host in LOOPBACK
        timeout = httpx.Timeout(30.0, connect=15.0)
        headers = {"Authorization": f"Bearer {self.token}"} if self.token else {}
        with (
            httpx.Client(
                timeout=timeout, headers=headers, follow_redirects=True, trust_env=not local
            ) as client,
            ThreadPoolExecutor(max(1, min(self.workers, len(missing)))) as pool,
        ):
            futures = [pool.submit(self._file, client, dataset, commit, f, out) for f in missing]
            try:
                for future in futures:
                    future.result()
            except BaseException:
                self._failed.set()  # the other files of this set stop at their next chunk
                pool.shutdown(wait=False, cancel_futures=True)
                raise

    def _file(self, client: httpx.Client, dataset: str, commit: str, file: RemoteFile, out: Path) -> None:
        target = out / file.path
        part = _part(target)
        part.parent.mkdir(parents=True, exist_ok=True)
        idle = wrong = 0
        while True:
            before = _size(part)
            try:
                self._attempt(client, dataset, commit, file, part)
                problem = _problem(part, file)
                if not problem:
                    part.replace(target)
                    return
                wrong += 1
                self._advance(-_size(part), file)
                part.unlink()
                if wrong == WRONG:
                    raise NodeError(
                        f"{dataset}/{file.path} came with wrong bytes {WRONG} times ({problem}); "
                        f"the copy on {self.endpoint} is damaged"
                    )
            except _Again as again:
                idle = 0 if _size(part) > before else idle + 1
                if idle == ATTEMPTS:
                    raise NodeError(
                        f"{dataset}/{file.path} could not be fetched from {self.endpoint}: {again} "
                        f"(tried {ATTEMPTS} times; what is there already is kept)"
                    ) from again.__cause__
                self.sleep(again.wait or min(30.0, 0.5 * 2**idle))

    def _attempt(self, client: httpx.Client, dataset: str, commit: str, file: RemoteFile, part: Path) -> None:
        """Bring the part to the file's full size, or raise `_Again` or NodeError."""
        from huggingface_hub import hf_hub_url

        have = _size(part)
        if have > file.size:  # of an older listing
            part.unlink()
            have = 0
        if have == file.size:  # killed between the last byte and the renaming, or an empty file
            part.touch()
            return
        url = hf_hub_url(dataset, file.path, repo_type="dataset", revision=commit, endpoint=self.endpoint)
        # identity: a compressed answer has neither the size nor the ranges of the file
        headers = {"Accept-Encoding": "identity"} | ({"Range": f"bytes={have}-"} if have else {})
        try:
            with client.stream("GET", url, headers=headers) as answer:
                self._check_status(answer, dataset, file)
                resumed = answer.headers.get("Content-Range", "").startswith(f"bytes {have}-")
                if not resumed and have:  # the server knows no ranges
                    self._advance(-have, file)
                with open(part, "ab" if resumed else "wb") as sink:
                    for chunk in answer.iter_raw():
                        if self._failed.is_set() or self.should_stop():
                            raise NodeError(f"the download of {dataset} was stopped")
                        sink.write(chunk)
                        self._advance(len(chunk), file)
                        if sink.tell() > file.size:
                            return  # too long: the check says so
        except httpx.TransportError as error:
            raise _Again(one_line(error)) from error
        if _size(part) < file.size:
            raise _Again(f"the connection ended after {_size(part):,} of {file.size:,} bytes")

    def _check_status(self, answer: httpx.Response, dataset: str, file: RemoteFile) -> None:
        code = answer.status_code
        if code in (200, 206):
            return
        if code in (401, 403):
            raise NodeError(gated(dataset, self.endpoint, self.token))
        if code in RETRY_STATUS:
            wait = answer.headers.get("Retry-After", "")
            raise _Again(f"HTTP {code}", min(float(wait), 60.0) if wait.isdigit() else 0.0)
        raise NodeError(f"{dataset}/{file.path}: {self.endpoint} answers HTTP {code}")

    def _advance(self, size: int, file: RemoteFile) -> None:
        now = time.monotonic()
        with self._lock:
            self._done += size
            if self._done < self._total and now < self._told + EVERY:
                return
            self._told = now
            share = self._done / self._total if self._total else 1.0
        self.progress(min(max(share, 0.0), 1.0), file.path)


class _Again(Exception):
    """An attempt failed in a way that may pass."""

    def __init__(self, message: str, wait: float = 0.0):
        super().__init__(message)
        self.wait = wait


def check_space(folder: Path, needed: int) -> None:
    """NodeError unless `needed` more bytes fit on the folder's disk."""
    free = shutil.disk_usage(folder).free
    if needed > 0 and free < needed + SPARE:
        raise NodeError(
            f"not enough space below {folder}: {needed / 1e9:.1f} GB to fetch, {free / 1e9:.1f} GB free; "
            "runtime.artifacts names another place"
        )


def check_names(dataset: str, paths: Iterable[str]) -> None:
    """NodeError for a file that must not be written into an artifact."""
    for path in paths:
        parts = path.split("/")
        if path.startswith("/") or ".." in parts:
            raise NodeError(f"{dataset} lists a file outside of itself: {path}")
        if parts[-1] == "manifest.json":
            raise NodeError(
                f"{dataset} has a file {path}, a name that artifacts need themselves; exclude it in files:"
            )


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


def _is_whole(path: Path, file: RemoteFile) -> bool:
    return path.is_file() and not _problem(path, file)


def _problem(path: Path, file: RemoteFile) -> str:
    """What is wrong with the file at `path`, or ""."""
    if (size := path.stat().st_size) != file.size:
        return f"{size:,} bytes instead of {file.size:,}"
    digest = file.digest()
    with open(path, "rb") as stream:
        while chunk := stream.read(CHUNK):
            digest.update(chunk)
    if digest.hexdigest() != file.expected:
        return f"{digest.name} {digest.hexdigest()[:12]}… instead of {file.expected[:12]}…"
    return ""


def _part(target: Path) -> Path:
    return target.with_name(target.name + PART)


def _size(path: Path) -> int:
    return path.stat().st_size if path.exists() else 0
