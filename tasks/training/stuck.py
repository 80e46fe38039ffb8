"""Ranks that do not run any more: stopped by a signal, or blocked where no Python runs.

A rank's own watchdog (model/training/watch.py) is a thread of it, and stops with it. Other ranks notice, but a rank that
is alone has none, and before the ranks have met nobody looks. From outside such a process is one that uses no CPU time:
a healthy rank does, its watchdog looks twice a second.
"""

from __future__ import annotations

import contextlib
import time

import psutil

MARGIN_SECONDS = 30.0
"""Beyond the watchdog's seconds: a rank that can still do it ends by itself first, with the stacks of its threads."""
MODULE = "model.training."
"""In the command of a rank, however it was started."""


class Stuck:
    """Of one training; `look` at it every few seconds."""

    def __init__(self, agent: int, seconds: float):
        """`agent`: the process that starts the ranks, its children; `seconds`: of the watchdog, 0 for none."""
        self._agent: psutil.Process | None = None
        with contextlib.suppress(psutil.NoSuchProcess):
            self._agent = psutil.Process(agent)
        self._limit = seconds + MARGIN_SECONDS if seconds else None
        self._seen: dict[psutil.Process, tuple[float, float]] = {}
        """Process -> its CPU seconds, and for how long they have been the same while this one looked."""
        self._last = time.monotonic()

    def look(self, most: float) -> list[psutil.Process]:
        """Kill what has not run for too long, and return it. `most`: seconds that count since the last look, since this
        process may have been stopped, too."""
        now = time.monotonic()
        passed, self._last = min(now - self._last, most), now
        if self._agent is None or self._limit is None:
            return []
        found = {}
        with contextlib.suppress(psutil.NoSuchProcess):
            for process in self._watched():
                with contextlib.suppress(psutil.NoSuchProcess):
                    times = process.cpu_times()
                    spent = times.user + times.system
                    before, still = self._seen.get(process, (spent, 0.0))
                    found[process] = (spent, still + passed if spent == before else 0.0)
        self._seen = found
        ended = [process for process, (_, still) in found.items() if still > self._limit]
        for process in ended:
            with contextlib.suppress(psutil.NoSuchProcess):
                process.kill()
        return ended

    def _watched(self) -> list[psutil.Process]:
        """The ranks; the agent, which has next to nothing to do, only while it is stopped."""
        assert self._agent is not None
        watched = [child for child in self._agent.children() if MODULE in " ".join(child.cmdline())]
        return [self._agent, *watched] if self._agent.status() == psutil.STATUS_STOPPED else watched
