"""A server of the house on loopback, in this process."""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import uvicorn

from serve.app import build
from serve.engine import Limits
from serve.models import Models, Offer


@contextmanager
def served(
    offers: dict[str, Offer], limits: Limits | None = None, **settings: Any
) -> Iterator[tuple[str, Models]]:
    """(address, models) while it runs."""
    models = Models(offers, limits, "cpu")
    listener = socket.socket()
    listener.bind(("127.0.0.1", 0))
    listener.listen(64)
    server = uvicorn.Server(uvicorn.Config(build(models, **settings), log_level="error"))
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]}, daemon=True)
    thread.start()
    try:
        wait_for(lambda: server.started)
        yield f"http://127.0.0.1:{listener.getsockname()[1]}", models
    finally:
        server.should_exit = True
        thread.join()
        models.stop()


def wait_for(true: Any, seconds: float = 60.0) -> None:
    """Until a condition holds."""
    end = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < end, "waited in vain"
        time.sleep(0.02)
