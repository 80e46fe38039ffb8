"""What jobs in worker processes say of their progress, to the node that waits for them: a small file of each, replaced."""

from __future__ import annotations

import logging
import os
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import FIRST_EXCEPTION, Future, wait
from pathlib import Path
from typing import Any

from tasks.stage.node import Context
from tasks.work import pool

log = logging.getLogger(__name__)

POLL_SECONDS = 2.0
"""Between two looks at the files, and between two words of a job."""

Progress = Callable[[int, int], None]
"""So many are done, of so many."""


class Teller:
    """A job's `tell(done, of)`; picklable."""

    def __init__(self, path: Path):
        self.path, self.said = path, 0.0

    def __call__(self, done: int, of: int) -> None:
        if time.monotonic() - self.said < POLL_SECONDS:
            return
        if not self.path.parent.exists():  # nobody waits any more
            return
        partial = self.path.with_suffix(".partial")
        try:
            partial.write_text(repr(done / max(1, of)), "utf-8")
            os.replace(partial, self.path)
        except OSError as error:  # a full disk: the job is worth more than this
            log.warning("the progress of a job cannot be written: %s", error)
        self.said = time.monotonic()

    def share(self) -> float:
        """What was said last, in [0, 1]; 0 before the first word, and when the job's folder is gone."""
        try:
            return float(self.path.read_text("utf-8"))
        except FileNotFoundError:
            return 0.0


class Jobs:
    """Jobs of the pool that tell how far they are."""

    def __init__(self) -> None:
        self._folder: tempfile.TemporaryDirectory[str] | None = None
        self._jobs: list[tuple[Future, Teller, int]] = []

    def submit(self, size: int, function: Callable[..., Any], *args: Any) -> None:
        """`function(*args, tell=…)` in a worker. `size`: how many items this job has."""
        if self._folder is None:
            # a job may write while the folder goes
            self._folder = tempfile.TemporaryDirectory(prefix="steel-told-", ignore_cleanup_errors=True)
        tell = Teller(Path(self._folder.name) / str(len(self._jobs)))
        self._jobs.append((pool.submit(function, *args, tell=tell), tell, size))

    def results(self, progress: Progress | None = None) -> list[Any]:
        """In the order of `submit`; the first error is raised. To be asked once."""
        try:
            said, waiting = None, {job for job, *_ in self._jobs}
            while waiting:
                finished, waiting = wait(waiting, timeout=POLL_SECONDS, return_when=FIRST_EXCEPTION)
                now = self._done()
                if progress is not None and now != said:
                    progress(*now)
                    said = now
                for job in finished:
                    job.result()  # what has failed is not kept back until others end
            return [job.result() for job, *_ in self._jobs]
        finally:
            if self._folder is not None:
                self._folder.cleanup()

    def _done(self) -> tuple[int, int]:
        done = sum(size if job.done() else round(size * tell.share()) for job, tell, size in self._jobs)
        return done, sum(size for *_, size in self._jobs)


def shown(ctx: Context, words: Callable[[str], str], begin: float = 0.0) -> Progress:
    """Progress as the node's, from a share of it to the end, with the time that is left. `words`: of `120 of 431`."""
    timed = with_eta(lambda share, text: ctx.progress(begin + (1 - begin) * share, text))
    return lambda done, of: timed(done / max(1, of), words(f"{done:,} of {of:,}"))


def asked(ctx: Context, which: str, what: str) -> Progress:
    """Of the questions to a model behind its training. `which`: `old`, `new`."""
    return shown(ctx, lambda done: f"trained; the {which} model: {done} {what}", 0.95)


def with_eta(
    progress: Callable[[float, str], None], clock: Callable[[], float] = time.monotonic
) -> Callable[[float, str], None]:
    """The same progress with the time that is left, from the pace since the first word of it."""
    began: list[tuple[float, float]] = []

    def step(share: float, text: str) -> None:
        now = clock()
        if not began:
            began.append((now, share))
        then, before = began[0]
        if share > before and share < 1:
            left = (now - then) * (1 - share) / (share - before)
            text = f"{text}, about {_duration(left)} left"
        progress(share, text)

    return step


def _duration(seconds: float) -> str:
    if seconds < 90:
        return f"{max(1, round(seconds))} s"
    if seconds < 5400:
        return f"{round(seconds / 60)} min"
    return f"{seconds / 3600:.1f} h"
