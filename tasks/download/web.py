"""Files given by http(s) URL: their sizes and validators asked of the server, their digests from the source."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any
from urllib.parse import unquote, urlsplit

import httpx

from tasks.download.listing import RETRY_STATUS, Listing, RemoteFile, chosen, pause
from tasks.settings import loopback
from tasks.settings.errors import NodeError, one_line

ATTEMPTS = 5
TIMEOUT = httpx.Timeout(30.0, connect=15.0)


def listing(
    name: str,
    urls: Sequence[Mapping[str, Any]],
    patterns: Sequence[str],
    sleep: Callable[[float], None] = pause,
) -> Listing:
    """The files that `WebFile` mappings describe. NodeError with one clear line if one is not to be had."""
    files = [_file(entry, sleep) for entry in urls]
    paths = [file.path for file in files]
    if twice := {path for path in paths if paths.count(path) > 1}:
        raise NodeError(f"source {name}: several urls make {min(twice)}; give them different paths")
    refused = f"source {name}: the server refuses one of its urls; it may want to be asked by a browser"
    return Listing(chosen(name, files, patterns, len(files)), "", {}, refused)


def path_of(url: str) -> str:
    """The file name that a URL suggests."""
    name = unquote(urlsplit(url).path).rpartition("/")[2]
    if not name:
        raise NodeError(f"{url} names no file: give its path")
    return name


def _file(entry: Mapping[str, Any], sleep: Callable[[float], None]) -> RemoteFile:
    url, size, sha256 = entry["url"], entry["size"], entry["sha256"]
    path, by = entry["path"] or path_of(url), "the source's urls"
    if sha256 and size is not None:
        return RemoteFile(path, size, url, sha256, by=by)
    told, etag = _probe(url, sleep)
    if told is None and size is None:
        raise NodeError(f"{url}: the server does not say how large it is: give its size")
    if told is not None and size is not None and told != size:
        raise NodeError(f"{url} has {told:,} bytes, but {size:,} by {by}")
    return RemoteFile(path, size if told is None else told, url, sha256, etag="" if sha256 else etag, by=by)


def _probe(url: str, sleep: Callable[[float], None]) -> tuple[int | None, str]:
    """(size if told, strong validator or "") of what the URL leads to; by GET, which every server knows."""
    headers = {"Accept-Encoding": "identity", "Range": "bytes=0-0"}
    local = httpx.URL(url).host in loopback.HOSTS
    with httpx.Client(timeout=TIMEOUT, follow_redirects=True, trust_env=not local) as client:
        for attempt in range(ATTEMPTS):
            try:
                with client.stream("GET", url, headers=headers) as answer:
                    code, head = answer.status_code, answer.headers
                problem = f"HTTP {code}"
            except httpx.TransportError as error:
                code, problem = 0, one_line(error)
            if code in (200, 206, 416):
                whole = head.get("Content-Length", "")
                size = whole if code == 200 else head.get("Content-Range", "").rpartition("/")[2]
                etag = head.get("ETag", "")
                strong = "" if etag.startswith("W/") else etag
                return int(size) if size.isdigit() else None, strong or head.get("Last-Modified", "")
            if code and code not in RETRY_STATUS:
                break
            if attempt < ATTEMPTS - 1:
                sleep(2.0**attempt)
    raise NodeError(f"cannot fetch {url}: {problem}")
