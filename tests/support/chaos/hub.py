"""A hub on loopback whose network can be cut."""

from __future__ import annotations

import contextlib
import socket
import threading
import time
from collections.abc import Mapping

from tasks.world.hub import Handler, Hub

PIECE = 4096


class CutHandler(Handler):
    hub: CutHub

    def answer(self) -> None:
        if self.hub.down.is_set():
            self._hang_up()
        else:
            super().answer()

    def send_body(self, path: str, body: bytes) -> None:
        for at in range(0, len(body), PIECE):
            if self.hub.down.is_set():
                self._hang_up()
                return
            self.wfile.write(body[at : at + PIECE])
            time.sleep(self.hub.pause)

    def _hang_up(self) -> None:
        self.close_connection = True
        with contextlib.suppress(OSError):  # the client was faster
            self.connection.shutdown(socket.SHUT_RDWR)


class CutHub(Hub):
    """While `down` is set every connection is closed, also in the middle of a file."""

    def __init__(self, dataset: str, files: Mapping[str, bytes]):
        super().__init__(dataset, files, handler=CutHandler)
        self.down = threading.Event()
        self.pause = 0.0
        """Seconds between two pieces of 4 KiB."""
