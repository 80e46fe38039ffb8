"""What a hub lists: which files, how large, with which digests, and where each is to be fetched.

One module a hub (huggingface.py, modelscope.py, web.py) makes the list, fetch.py brings the files. The two
kinds of failure are told apart here: what another endpoint may do better, and what only a person can mend.
"""

from __future__ import annotations

import hashlib
import os
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from tasks.download.names import few
from tasks.download.patterns import matching
from tasks.settings import secrets
from tasks.settings.errors import NodeError

RETRY_STATUS = {408, 425, 429, 500, 502, 503, 504}
"""HTTP errors that may pass."""


class Elsewhere(NodeError):
    """This endpoint cannot serve the data set; a mirror may."""


class Changed(NodeError):
    """The server's file is no longer the one that was listed."""


@dataclass(frozen=True)
class RemoteFile:
    """A file as it is listed. Without any digest its first download is trusted."""

    path: str
    size: int
    """Bytes."""
    url: str
    sha256: str = ""
    blob: str = ""
    """Git's sha1 of the blob, for files that are not in LFS."""
    etag: str = ""
    """The server's validator (an ETag or a date), where there is no digest."""
    mark: str = ""
    """Anything else that changes with the content, where there is no digest."""
    by: str = "the hub's list"
    """Who says what the digest should be."""

    def digest(self) -> Any:
        """A fresh hash, to be fed with the content and compared with `expected`."""
        return hashlib.sha256() if self.sha256 or not self.blob else hashlib.sha1(b"blob %d\0" % self.size)

    @property
    def expected(self) -> str:
        return self.sha256 or self.blob

    @property
    def version(self) -> str:
        """Names the content: parts of two versions of a file never mix. Empty: nothing tells them apart."""
        known = self.expected or self.etag or self.mark
        return hashlib.sha256(f"{known} {self.size}".encode()).hexdigest()[:10] if known else ""


@dataclass(frozen=True)
class Listing:
    """The matching files of a data set, sorted by path."""

    files: Sequence[RemoteFile]
    revision: str
    """The commit where the hub tells it, else the branch that was asked for."""
    headers: Mapping[str, str] = field(default_factory=dict, repr=False)
    """Authentication for the files' own hosts; redirects to other hosts do not carry it."""
    refused: str = ""
    """What to do when a file is refused (HTTP 401 or 403)."""


def chosen(
    dataset: str, files: Sequence[RemoteFile], patterns: Sequence[str], entries: int
) -> list[RemoteFile]:
    """The files that match, sorted. NodeError when none does."""
    found = sorted((f for f in files if matching(f.path, patterns)), key=lambda f: f.path)
    if not found:
        raise NodeError(
            f"data set {dataset} has {entries} entries, but none matches files: {', '.join(patterns)}; there are: "
            f"{few(sorted(f.path for f in files)) or 'no files'}"
        )
    return found


def endpoints(
    configured: Sequence[str], default: Sequence[str], variable: str, say: Callable[[str], None]
) -> list[str]:
    """The endpoints to ask: those of runtime.endpoints, but where these are the default ones, that of the hub's
    own environment variable. NodeError when that is no address."""
    given = os.environ.get(variable, "").strip().rstrip("/")
    if not given or given in [each.rstrip("/") for each in configured]:
        return list(configured)
    if "://" not in given:
        given = f"https://{given}"
    if what := secrets.inside(given):
        raise NodeError(
            f"{variable} has {what}: it would be kept with the data; the hub's token goes to its own variable"
        )
    if list(configured) != list(default):
        say(f"{variable}={given} is not used: runtime.endpoints names others")
        return list(configured)
    if not given.startswith(("http://", "https://")):
        raise NodeError(f"{variable}={given} is no address of a server; it must begin with https://")
    say(f"asked is {given}, by {variable}")
    return [given]


def gated(dataset: str, page: str, variable: str, token: str | None) -> str:
    """What to do about a data set that must be asked for; `variable` is where the token comes from."""
    if token:
        return (
            f"data set {dataset} is gated and {variable} has no access to it: accept its terms at {page} with "
            "that account"
        )
    return (
        f"data set {dataset} is gated: accept its terms at {page}, then set {variable} to an access token of "
        "that account (a worker that is running learns of it by make down, make up)"
    )


def pause(seconds: float) -> None:
    """time.sleep, looked up when it is called, so that tests need not wait."""
    time.sleep(seconds)
