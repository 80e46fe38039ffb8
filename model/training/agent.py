"""The ranks of one training on this host, as forks of a process that has loaded the engine.

What torchrun does for one node of CPUs, without a start of Python and its imports for each rank: ranks are started,
waited for, told to stop, and started again after a fault. The process that calls `run` must have no other threads, and
must have computed nothing with torch: a fork takes along the locks of threads that it has not.

Each attempt has a store of its own, in rank 0, on a socket that is open before any rank starts: nothing of an earlier
attempt is in it, and no other process can take its port.
"""

from __future__ import annotations

import ctypes
import os
import signal
import socket
import sys
import time
import traceback
from collections.abc import Callable, Iterable
from typing import NoReturn

from model.training.rendezvous import LISTEN
from model.training.stop import PR_SET_PDEATHSIG
from model.training.watch import FINAL

PEERS_SECONDS = 10.0
"""After one rank has failed the others find that out by themselves, and write where they were; then they are killed."""
LOOK_SECONDS = 0.5
_SIGNALS = {signal.SIGCHLD, signal.SIGTERM, signal.SIGINT}


def run(entry: Callable[[int], int], ranks: int, restarts: int = 0, grace: float = 120.0) -> int:
    """Have `ranks` processes call `entry(rank)`, which returns an exit code. 0 when all of them ended with 0.

    After a fault all of them are started again, `restarts` times. Codes 2 and 75 end it at once (model.training.run). So
    does a SIGTERM to this process, which the ranks get too; they then have `grace` seconds. The result is the code of
    the first rank that failed, 128 + its number where that was a signal.
    """
    before = signal.pthread_sigmask(signal.SIG_BLOCK, _SIGNALS)
    try:
        for attempt in range(restarts + 1):
            ranked = Attempt(entry, ranks, grace, before)
            code = ranked.wait()
            if code in (0, *FINAL) or ranked.stopping:
                return code
            again = f"; attempt {attempt + 2} of {restarts + 1} starts" if attempt < restarts else ""
            print(f"{ranked.cause}{again}", file=sys.stderr, flush=True)
        return code
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


class Attempt:
    """The ranks of one attempt, from their start to the end of the last one. The caller has blocked `_SIGNALS`."""

    def __init__(self, entry: Callable[[int], int], ranks: int, grace: float, mask: Iterable[int]):
        """`mask`: the blocked signals of a rank."""
        self._grace = grace
        self.alive: dict[int, int] = {}
        """Process -> rank."""
        self.ended: list[tuple[int, int]] = []
        """(rank, exit code as in `run`), in the order of their ends."""
        self.stopping = False
        self._deadline: float | None = None
        sys.stdout.flush()
        sys.stderr.flush()
        with socket.create_server(("127.0.0.1", 0)) as listening:
            for rank in range(ranks):
                parent = os.getpid()
                process = os.fork()
                if not process:
                    _rank(entry, rank, ranks, listening, parent, mask)
                self.alive[process] = rank

    def wait(self) -> int:
        """Return when all ranks have ended; the code of the attempt."""
        while self.alive:
            number = signal.sigtimedwait(_SIGNALS, LOOK_SECONDS)
            if number is not None and number.si_signo != signal.SIGCHLD:
                self.stop()
            self._reap()
            if self._deadline is not None and time.monotonic() > self._deadline:
                self._send(signal.SIGKILL)
        return self.code

    def stop(self) -> None:
        """Have the ranks save and end."""
        if not self.stopping:
            self.stopping, self._deadline = True, time.monotonic() + self._grace
        self._send(signal.SIGTERM)

    @property
    def code(self) -> int:
        codes = [code for _, code in self.ended if code]
        final = [code for code in codes if code in FINAL]
        return (final or codes or [0])[0]

    @property
    def cause(self) -> str:
        """The first failure, in words."""
        rank, code = next((rank, code) for rank, code in self.ended if code)
        how = f"exit code {code}" if code < 128 else f"signal {signal.Signals(code - 128).name}"
        return f"rank {rank} has ended with {how}"

    def _reap(self) -> None:
        for process, rank in list(self.alive.items()):
            done, status = os.waitpid(process, os.WNOHANG)
            if done:
                del self.alive[process]
                code = os.waitstatus_to_exitcode(status)
                self.ended.append((rank, code if code >= 0 else 128 - code))
                if code and self._deadline is None:
                    self._deadline = time.monotonic() + PEERS_SECONDS

    def _send(self, number: signal.Signals) -> None:
        for process in self.alive:  # not waited for yet, so its number is no other's
            os.kill(process, number)


def _rank(
    entry: Callable[[int], int],
    rank: int,
    ranks: int,
    listening: socket.socket,
    parent: int,
    mask: Iterable[int],
) -> NoReturn:
    """Be a rank; never returns."""
    code = 1
    try:
        end_with(parent)
        os.setsid()  # what is sent to the terminal's processes is not meant for it, as under torchrun
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, signal.SIG_DFL)
        signal.pthread_sigmask(signal.SIG_SETMASK, mask)
        os.environ.update(RANK=str(rank), LOCAL_RANK=str(rank), WORLD_SIZE=str(ranks))
        if ranks > 1:
            os.environ.update(MASTER_ADDR="127.0.0.1", MASTER_PORT=str(listening.getsockname()[1]))
            if rank == 0:
                os.environ[LISTEN] = str(os.dup(listening.fileno()))
        listening.close()
        code = entry(rank)
    except BaseException:  # noqa: BLE001 - the end of this process
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


def end_with(parent: int) -> None:
    """Get SIGTERM when the parent's thread that forked this process ends, however it ends (Linux)."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGTERM)
    if os.getppid() != parent:  # it died before
        os._exit(1)
