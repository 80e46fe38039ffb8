"""How the ranks of one attempt meet, and how torchrun is kept from starting them again.

torchrun keeps one key-value store over all its restarts, so what a dead rank wrote there (its address, above all) would
be read by those that come after it. Each attempt therefore works under a name of its own. The name cannot be torchrun's
count of restarts: on several nodes every agent counts for itself, and only failures of its own ranks. Rank 0 makes a
name up, invites the ranks it sees, and goes on when each of them has answered; ranks of an earlier attempt are dead by
then and cannot answer.
"""

from __future__ import annotations

import os
import signal
import time
import uuid
from datetime import timedelta

import torch.distributed as dist
from torch.distributed.rendezvous import rendezvous

LISTEN = "STEEL_STORE_FD"
"""Variable with the open socket that rank 0's store is to listen at; set by model.training.agent."""
POLL_SECONDS = 0.02
TIMEOUT = timedelta(minutes=10)
"""For the ranks of an attempt to meet: some may come from a slow disk or node."""


def meet(timeout: timedelta = TIMEOUT) -> dist.Store:
    """The store of this attempt, with nothing in it from earlier ones (torchrun's environment is set)."""
    store, rank, size = (
        _held(timeout) if LISTEN in os.environ else next(iter(rendezvous("env://", timeout=timeout)))
    )
    name = _invite(store, size, timeout) if rank == 0 else _follow(store, rank)
    return dist.PrefixStore(f"steel/{name}", store)


def _held(timeout: timedelta) -> tuple[dist.Store, int, int]:
    """The store of this rank, at a socket that was opened for it."""
    size, port = int(os.environ["WORLD_SIZE"]), int(os.environ["MASTER_PORT"])
    listen = int(os.environ.pop(LISTEN))
    store = dist.TCPStore(
        os.environ["MASTER_ADDR"],
        port,
        size,
        is_master=True,
        timeout=timeout,
        wait_for_workers=False,
        master_listen_fd=listen,
    )
    return store, 0, size


def _invite(store: dist.Store, size: int, timeout: timedelta) -> str:
    name, end = uuid.uuid4().hex, time.monotonic() + timeout.total_seconds()
    invited: dict[int, bytes] = {}
    missing = set(range(1, size))
    while missing:
        for rank in sorted(missing):
            if store.check([f"here/{rank}"]) and (token := store.get(f"here/{rank}")) != invited.get(rank):
                store.set(f"come/{token.decode()}", name)
                invited[rank] = token
            if store.check([f"came/{name}/{rank}"]):
                missing.discard(rank)
        if time.monotonic() > end:
            raise TimeoutError(f"ranks {sorted(missing)} have not come within {timeout}")
        time.sleep(POLL_SECONDS)
    store.set(f"go/{name}", "")
    return name


def _follow(store: dist.Store, rank: int) -> str:
    token = uuid.uuid4().hex
    store.set(f"here/{rank}", token)
    name = store.get(f"come/{token}").decode()
    store.set(f"came/{name}/{rank}", "")
    store.wait([f"go/{name}"])
    return name


def restarts_left() -> int:
    """How often torchrun would start the ranks again; 0 without torchrun."""
    count = {
        name: int(os.environ.get(f"TORCHELASTIC_{name}", "0")) for name in ("MAX_RESTARTS", "RESTART_COUNT")
    }
    return count["MAX_RESTARTS"] - count["RESTART_COUNT"]


def stop_agent() -> None:
    """Ask this node's torchrun to end. A rank that exits with an error would be started again, whatever its exit code;
    an agent that was sent SIGTERM ends its ranks and starts none."""
    if "TORCHELASTIC_RUN_ID" in os.environ and restarts_left() > 0:
        os.kill(os.getppid(), signal.SIGTERM)
