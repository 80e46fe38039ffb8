"""What a job in a worker process says of its progress, to the node that waits for it: a small file, replaced each time."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Iterator
from concurrent.futures import Future, wait
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tasks.settings.files import write_text
from tasks.stage.node import Context

POLL_SECONDS = 2.0


@dataclass(frozen=True)
class Teller:
    """`tell(share, text)` from the job; picklable."""

    path: Path

    def __call__(self, share: float, text: str) -> None:
        write_text(self.path, json.dumps([share, text]))


@contextmanager
def teller() -> Iterator[Teller]:
    """One for a job, until it has ended."""
    with tempfile.TemporaryDirectory(prefix="steel-told-") as folder:
        yield Teller(Path(folder) / "told.json")


def result(ctx: Context, job: Future, tell: Teller) -> Any:
    """The job's result; what it says meanwhile is the node's progress."""
    said = None
    while not wait([job], timeout=POLL_SECONDS).done:
        if tell.path.exists() and (now := json.loads(tell.path.read_text("utf-8"))) != said:
            said = now
            ctx.progress(*now)
    return job.result()
