"""A small Hugging Face hub for data sets, on loopback.

It serves files from memory through the routes that `huggingface_hub` and our downloader use: data
set info, the file tree with sizes and digests, and `resolve` with ranges and ETags. The demo's
download nodes start one each, so that listing, fetching and verifying are real. Tests imitate other
servers and their faults with another `Handler`.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import re
import socket
import sys
import threading
import urllib.parse
from collections.abc import Mapping
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

LFS_SIZE = 100_000
"""From this size on, and for binary formats, a file is listed as LFS, with a sha256."""
LFS_SUFFIXES = (".parquet", ".arrow", ".gz", ".zst")


class Hub:
    """Serves one data set while it is open: `with Hub("demo/zhihu", files) as hub: hub.endpoint`."""

    def __init__(
        self,
        dataset: str,
        files: Mapping[str, bytes],
        *,
        token: str | None = None,
        handler: type[Handler] | None = None,
    ):
        self.dataset, self.files = dataset, dict(files)
        self.token = token
        """If set, the data set is gated: only requests with this token are answered."""
        self.commit = hashlib.sha1(
            b"".join(
                path.encode() + hashlib.sha256(body).digest() for path, body in sorted(self.files.items())
            )
        ).hexdigest()
        self.requests: list[tuple[str, str, str | None]] = []
        """(method, path, Range header) of every request so far."""
        bound = type("Handler", (handler or Handler,), {"hub": self})
        self._server = _Server(("127.0.0.1", 0), bound)
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.05,), daemon=True)

    @property
    def endpoint(self) -> str:
        return f"http://127.0.0.1:{self._server.server_port}"

    def __enter__(self) -> Hub:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()

    def tree(self) -> list[dict]:
        """The file list, as the hub's tree route gives it."""
        return [_entry(path, body) for path, body in sorted(self.files.items())]


class _Server(ThreadingHTTPServer):
    """Closes its kept-alive connections with it, and says nothing when a client goes away."""

    daemon_threads = True

    def __init__(self, *args: Any):
        self.connections: set[socket.socket] = set()
        super().__init__(*args)

    def process_request(self, request: Any, client_address: Any) -> None:
        self.connections.add(request)
        super().process_request(request, client_address)

    def shutdown_request(self, request: Any) -> None:
        self.connections.discard(request)
        super().shutdown_request(request)

    def server_close(self) -> None:
        super().server_close()
        for connection in list(self.connections):
            with contextlib.suppress(OSError):  # the client was faster
                connection.shutdown(socket.SHUT_RDWR)

    def handle_error(self, request: Any, client_address: Any) -> None:
        if not isinstance(sys.exception(), ConnectionError):
            super().handle_error(request, client_address)


def _entry(path: str, body: bytes) -> dict:
    entry = {"type": "file", "path": path, "size": len(body), "oid": git_blob_sha1(body)}
    if len(body) >= LFS_SIZE or path.endswith(LFS_SUFFIXES):
        pointer = {"oid": hashlib.sha256(body).hexdigest(), "size": len(body), "pointerSize": 134}
        entry |= {"oid": git_blob_sha1(repr(pointer).encode()), "lfs": pointer}
    return entry


def git_blob_sha1(body: bytes) -> str:
    """The id that git gives to a file's content."""
    return hashlib.sha1(b"blob %d\0" % len(body) + body).hexdigest()


class Handler(BaseHTTPRequestHandler):
    """Answers the hub's routes; what a subclass may change has a public name."""

    protocol_version = "HTTP/1.1"
    hub: Hub

    def log_message(self, *args: object) -> None:
        """Quiet."""

    def do_HEAD(self) -> None:
        self.answer()

    def do_GET(self) -> None:
        self.answer()

    def answer(self) -> None:
        path = urllib.parse.unquote(urllib.parse.urlsplit(self.path).path)
        self.hub.requests.append((self.command, path, self.headers.get("Range")))
        name = re.escape(self.hub.dataset)
        if self.hub.token and self.headers.get("Authorization") != f"Bearer {self.hub.token}":
            self.refuse(401, "GatedRepo", "Access to this data set is restricted.")
        elif re.fullmatch(rf"/api/datasets/{name}(/revision/[^/]+)?", path):
            self.send_json(
                200, {"id": self.hub.dataset, "sha": self.hub.commit, "private": False, "tags": []}
            )
        elif re.fullmatch(rf"/api/datasets/{name}/tree/[^/]+", path):
            self.send_json(200, self.hub.tree())
        elif file := re.fullmatch(rf"/datasets/{name}/resolve/[^/]+/(.+)", path):
            self.send_file(file[1])
        else:
            self.refuse(404, "RepoNotFound", "There is no such data set.")

    def send_file(self, path: str) -> None:
        body = self.hub.files.get(path)
        if body is None:
            self.refuse(404, "EntryNotFound", "There is no such file.")
            return
        etag = hashlib.sha256(body).hexdigest()
        start = self.range_start(etag)
        if start >= len(body) > 0:
            self.send_head(416, {"Content-Range": f"bytes */{len(body)}", "Content-Length": "0"})
            return
        part = body[start:]
        head = {"ETag": f'"{etag}"', "X-Repo-Commit": self.hub.commit, "Accept-Ranges": "bytes"}
        head["Content-Length"] = str(len(part))
        if start:
            head["Content-Range"] = f"bytes {start}-{len(body) - 1}/{len(body)}"
        self.send_head(206 if start else 200, head)
        if self.command != "HEAD":
            self.send_body(path, part)

    def range_start(self, etag: str) -> int:
        """The first byte that the client asks for; 0 without a range, or if the file is another now."""
        same = self.headers.get("If-Range") in (None, f'"{etag}"')
        asked = re.fullmatch(r"bytes=(\d+)-", self.headers.get("Range") or "")
        return int(asked[1]) if asked and same else 0

    def send_body(self, path: str, body: bytes) -> None:
        self.wfile.write(body)

    def refuse(self, code: int, kind: str, message: str) -> None:
        head = {"X-Error-Code": kind, "X-Error-Message": message} if kind else {}
        self.send_json(code, {"error": message}, head)

    def send_json(self, code: int, value: object, head: Mapping[str, str] | None = None) -> None:
        body = json.dumps(value).encode()
        sizes = {"Content-Type": "application/json", "Content-Length": str(len(body))}
        self.send_head(code, sizes | dict(head or {}))
        if self.command != "HEAD":
            self.wfile.write(body)

    def send_head(self, code: int, head: Mapping[str, str]) -> None:
        self.send_response(code)
        for key, value in head.items():
            self.send_header(key, value)
        self.end_headers()
