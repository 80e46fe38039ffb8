"""A thread of every rank that looks at the others and at its own training.

When one rank ends for good, all end at once: a rank whose peer has gone would wait inside a collective until the
backend's timeout, 10 to 30 minutes. And when a rank has made no step for long, all write down where each of their
threads is, and end, so that torchrun starts them again. The thread has a connection of its own to the store, because a
store serves one caller at a time.
"""

from __future__ import annotations

import faulthandler
import json
import logging
import os
import sys
import threading
import time

import torch.distributed as dist

from model.training.rendezvous import stop_agent

log = logging.getLogger("steel.training")

POLL_SECONDS = 0.5
FINAL = (2, 75)
"""Exit codes with which a run is not to be started again: a configuration that cannot be run, a checkpoint that was
asked for."""


STACK_SECONDS = 0.1
"""Between the stacks of two ranks of a node."""
MARGIN_SECONDS = 30.0
"""After so much more, a process in which no Python can run (a C function that keeps the interpreter) is ended by a
thread of faulthandler's own."""


class Watch:
    """Of one process; does nothing until `attach`ed."""

    def __init__(self) -> None:
        self._store: dist.Store | None = None
        self._rank = int(os.environ.get("RANK", "0"))
        self._done = threading.Event()
        self._thread: threading.Thread | None = None
        self._seconds = 0.0
        self._last: float | None = None

    def attach(self, store: dist.Store | None, seconds: float) -> None:
        """Begin to look. `store`: what the ranks share, None for a process that is alone; `seconds`: the longest time
        without a step (0: any)."""
        if store is None and not seconds:
            return
        self._store, self._seconds = store, seconds
        clone = None if store is None else store.clone()
        self._thread = threading.Thread(target=self._look, args=(clone,), name="watch", daemon=True)
        self._thread.start()

    def beat(self) -> None:
        """The training goes on: from now on the next beat is waited for."""
        self._last = time.monotonic()

    def rest(self) -> None:
        """What follows may take any time."""
        self._last = None

    @property
    def attached(self) -> bool:
        return self._store is not None

    def close(self) -> None:
        """The run has ended well; what other ranks do now is no longer of interest."""
        self._done.set()
        if self._thread is not None:
            self._thread.join()
            faulthandler.cancel_dump_traceback_later()

    def end(self, code: int) -> bool:
        """Announce that this rank ends with `code`, so that all do. False: another one has announced the same before."""
        self._done.set()
        if self._store is None:
            _hold_agent(code, alone=True)
            return self._rank == 0
        try:
            first = self._store.add(f"ending/{code}", 1) == 1
            _hold_agent(code, self._store)
            if first:
                self._store.set("end", json.dumps({"rank": self._rank, "code": code}))
                time.sleep(2 * POLL_SECONDS)  # the others leave before its connections break under them
        except (dist.DistError, RuntimeError):  # the process that holds the store has ended before
            return True
        return first

    def _look(self, store: dist.Store | None) -> None:
        try:
            while not self._done.wait(POLL_SECONDS):
                if store is not None and store.check(["stalled"]):
                    self._stall(f"rank {store.get('stalled').decode()}")
                if store is not None and store.check(["end"]):
                    self._follow(store, json.loads(store.get("end")))
                if self._late():
                    if store is not None:
                        store.set("stalled", str(self._rank))
                    self._stall(f"rank {self._rank}")
        except (dist.DistError, RuntimeError):  # the store's own process has gone; torchrun ends this one too
            return

    def _late(self) -> bool:
        """No beat for too long."""
        last = self._last
        if not self._seconds or last is None:
            faulthandler.cancel_dump_traceback_later()
            return False
        faulthandler.dump_traceback_later(self._seconds + MARGIN_SECONDS, exit=True, file=sys.__stderr__)
        return time.monotonic() - last > self._seconds

    def _stall(self, who: str) -> None:
        time.sleep(STACK_SECONDS * int(os.environ.get("LOCAL_RANK", "0")))  # one rank's lines after another's
        log.error(
            "%s has made no step in %g s (watchdog_seconds): rank %d ends; its threads are at",
            who, self._seconds, self._rank,
        )  # fmt: skip
        faulthandler.dump_traceback(sys.__stderr__, all_threads=True)
        if who == f"rank {self._rank}":
            time.sleep(
                2 * POLL_SECONDS
            )  # torchrun ends the others when one has ended: they write theirs first
        leave(1)

    def _follow(self, store: dist.Store, end: dict[str, int]) -> None:
        """Another rank has ended."""
        if self._done.is_set():  # this one is ending by itself
            return
        _hold_agent(end["code"], store)
        log.warning(
            "rank %d ends, since rank %d has ended (exit code %d)", self._rank, end["rank"], end["code"]
        )
        leave(end["code"])


def leave(code: int) -> None:
    """End the process at once: threads that wait in a collective would hold up a regular exit."""
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


def _hold_agent(code: int, store: dist.Store | None = None, *, alone: bool = False) -> None:
    """Tell this node's torchrun, once, that it is not to start the ranks again."""
    if code not in FINAL:
        return
    if alone:
        if os.environ.get("LOCAL_RANK", "0") == "0":
            stop_agent()
    elif store.add(f"agent/{os.environ.get('GROUP_RANK', '0')}", 1) == 1:
        stop_agent()
