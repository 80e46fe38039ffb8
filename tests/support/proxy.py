"""A proxy that answers 502, as one does for addresses that it cannot reach, and a server that answers."""

from __future__ import annotations

import http.server
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager

VARIABLES = ("http_proxy", "https_proxy", "all_proxy", "no_proxy")


@contextmanager
def refusing_proxy() -> Iterator[tuple[str, list[str]]]:
    """(its address, the requests that it got)."""
    with _serving(502, {}) as served:
        yield served


@contextmanager
def answering_server() -> Iterator[tuple[str, list[str]]]:
    """(its address, the requests that it got); answers as MLflow does for an experiment."""
    with _serving(200, {"experiment": {"experiment_id": "1", "name": "steel"}}) as served:
        yield served


def set_shell(monkeypatch, variables: dict[str, str]) -> None:
    """Of the proxy variables these alone."""
    for name in (*VARIABLES, *map(str.upper, VARIABLES)):
        monkeypatch.setenv(name, "")  # noted, so that what the test adds is taken back
        monkeypatch.delenv(name)
    for name, value in variables.items():
        monkeypatch.setenv(name, value)


@contextmanager
def _serving(status: int, body: dict) -> Iterator[tuple[str, list[str]]]:
    asked: list[str] = []

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self):
            asked.append(f"{self.command} {self.path}")
            content = json.dumps(body).encode()
            self.send_response(status)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            self.wfile.write(content)

        do_POST = do_CONNECT = do_GET

        def log_message(self, *_):
            pass

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}", asked
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
