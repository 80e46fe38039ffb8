"""A thread of every rank that looks at the others: when one ends for good, all end at once.

Without it a rank whose peer has gone waits inside a collective until the backend's timeout, 10 to 30 minutes. The
thread has a connection of its own to the store, because a store serves one caller at a time.
"""

from __future__ import annotations

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


class Watch:
    """Of one process; does nothing until `attach`ed to the store that the ranks share."""

    def __init__(self) -> None:
        self._store: dist.Store | None = None
        self._rank = int(os.environ.get("RANK", "0"))
        self._done = threading.Event()
        self._thread: threading.Thread | None = None

    def attach(self, store: dist.Store | None) -> None:
        """Begin to look. `store`: None for a process that is alone."""
        if store is None:
            return
        self._store = store
        self._thread = threading.Thread(target=self._look, args=(store.clone(),), name="watch", daemon=True)
        self._thread.start()

    @property
    def attached(self) -> bool:
        return self._store is not None

    def close(self) -> None:
        """The run has ended well; what other ranks do now is no longer of interest."""
        self._done.set()
        if self._thread is not None:
            self._thread.join()

    def end(self, code: int) -> bool:
        """Announce that this rank ends with `code`, so that all do. False: another one has announced it before."""
        self._done.set()
        if self._store is None:
            _hold_agent(code, alone=True)
            return self._rank == 0
        try:
            first = self._store.add("ending", 1) == 1
            _hold_agent(code, self._store)
            if first:
                self._store.set("end", json.dumps({"rank": self._rank, "code": code}))
                time.sleep(
                    2 * POLL_SECONDS
                )  # the others leave before this one's connections break under them
        except (dist.DistError, RuntimeError):  # the process that holds the store has ended before
            return False
        return first

    def _look(self, store: dist.Store) -> None:
        try:
            while not self._done.wait(POLL_SECONDS):
                if store.check(["end"]):
                    break
            else:
                return
            end = json.loads(store.get("end"))
        except (dist.DistError, RuntimeError):  # the store's own process has gone; torchrun ends this one too
            return
        if self._done.is_set():  # this rank is ending by itself
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
