"""The demo's hub with the faults of real hubs and networks."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import ClassVar

from tasks.world.hub import Handler, Hub

PIECE = 1 << 16


@dataclass
class Faults:
    """What goes wrong, by path; each entry is used up as it happens."""

    cut: dict[str, list[int]] = field(default_factory=dict)
    """The next answer's body ends after so many bytes, and the connection is closed."""
    wrong: dict[str, int] = field(default_factory=dict)
    """The next n answers carry wrong bytes of the right size."""
    status: dict[str, list[int]] = field(default_factory=dict)
    """The next answers are these HTTP errors."""
    no_ranges: bool = False
    """Range requests are answered with the whole file."""
    pause: float = 0.0
    """Seconds between two pieces of a body: a slow network."""


class FaultyHandler(Handler):
    hub: FaultyHub

    def send_file(self, path: str) -> None:
        if codes := self.hub.faults.status.get(path):
            code = codes.pop(0)
            self.refuse(code, "GatedRepo" if code in (401, 403) else "", "a fault of the test")
        else:
            super().send_file(path)

    def range_start(self, etag: str) -> int:
        return 0 if self.hub.faults.no_ranges else super().range_start(etag)

    def send_body(self, path: str, body: bytes) -> None:
        faults = self.hub.faults
        if faults.wrong.get(path):
            faults.wrong[path] -= 1
            body = bytes(byte ^ 1 for byte in body)
        if faults.cut.get(path):
            self.wfile.write(body[: faults.cut[path].pop(0)])
            self.close_connection = True
            return
        for at in range(0, len(body), PIECE):
            self.wfile.write(body[at : at + PIECE])
            time.sleep(faults.pause)


class FaultyHub(Hub):
    """A hub that misbehaves; a subclass imitates another server with a handler of its own."""

    handler: ClassVar[type[FaultyHandler]] = FaultyHandler

    def __init__(
        self,
        dataset: str,
        files: Mapping[str, bytes],
        *,
        token: str | None = None,
        faults: Faults | None = None,
    ):
        super().__init__(dataset, files, token=token, handler=self.handler)
        self.faults = faults or Faults()
