"""A process that has loaded the engine and forks trainings: `python -m model.training.forkserver CONTROL_FD`.

    caller ── fork server (one thread) ── agent of a training (model.training.agent) ── its ranks

Loading torch, transformers and the engine costs 5 to 7 CPU seconds, a fork of a process that has done so next to
nothing. A request is one message on the control socket, a JSON object beside open files, the first of which is a socket
for the answers:

    {"training": fields of Training}, the log, the lock that it holds   {"pid"} and, at its end, {"code"}
    {"look": arguments of model.training.machine.look}                  the fields of Machine

When the control socket is closed (the caller has ended, however), each training is told to save, waited for, and the
server ends. When the server itself is killed, the kernel tells them.
"""

from __future__ import annotations

import json
import os
import select
import signal
import socket
import sys
import traceback
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path

from model.training import agent, machine, run

LONGEST = 1 << 16
"""Bytes of a request."""
SIGNALS = (signal.SIGCHLD, signal.SIGTERM, signal.SIGINT)


@dataclass(frozen=True)
class Training:
    """What to start."""

    config: str
    """File with the engine's configuration."""
    ranks: int
    restarts: int
    grace: float
    """Seconds that the ranks have to save when they are told to stop."""


class Server:
    """Of one caller."""

    def __init__(self, control: socket.socket):
        self._control = control
        self._answers: dict[int, socket.socket] = {}
        """Agent -> where its end is told."""
        self._woken, self._wake = os.pipe()
        for end in (self._woken, self._wake):
            os.set_blocking(end, False)

    def serve(self) -> None:
        """Until the caller has gone and every training has ended."""
        signal.signal(signal.SIGINT, signal.SIG_IGN)  # the caller decides
        for number in (signal.SIGCHLD, signal.SIGTERM):
            signal.signal(number, lambda *_: None)
        signal.set_wakeup_fd(self._wake)
        open_ = True
        while open_ or self._answers:
            control = self._control.fileno()
            ready, _, _ = select.select([self._woken, control] if open_ else [self._woken], [], [])
            if control in ready:
                open_ = self._take()
            if self._woken in ready:
                open_ &= signal.SIGTERM not in os.read(self._woken, 256)
                self._reap()
            if not open_:
                for process in self._answers:
                    os.kill(process, signal.SIGTERM)

    def _take(self) -> bool:
        """One request; False where there will be no more."""
        message, files, _, _ = socket.recv_fds(self._control, LONGEST, 3)
        if not message:
            return False
        request, (answer, *others) = json.loads(message), files
        answers = socket.socket(fileno=answer)
        if "look" in request:
            self._fork(lambda: _tell(answers, **asdict(machine.look(**request["look"]))))
            answers.close()
            return True
        log, _ = others
        process = self._fork(lambda: self._train(Training(**request["training"]), log))
        for file in others:
            os.close(file)
        self._answers[process] = answers
        _tell(answers, pid=process)
        return True

    def _fork(self, work: Callable[[], int | None]) -> int:
        """Have a fork do the work and end with its exit code. SIGTERM ends it, also when this process dies."""
        refuse_threads()
        server = os.getpid()
        # no signal reaches the fork while it has the server's way of hearing them
        before = signal.pthread_sigmask(signal.SIG_BLOCK, SIGNALS)
        process = os.fork()
        if process:
            signal.pthread_sigmask(signal.SIG_SETMASK, before)
            return process
        code = 1
        try:
            signal.set_wakeup_fd(-1)
            for number in SIGNALS:
                signal.signal(number, signal.SIG_DFL)
            signal.pthread_sigmask(signal.SIG_SETMASK, before)
            agent.end_with(server)
            self._control.close()
            for other in self._answers.values():
                other.close()
            code = work() or 0
        except BaseException:  # noqa: BLE001 - the end of this process
            traceback.print_exc()
        finally:
            sys.stdout.flush()
            sys.stderr.flush()
            os._exit(code)

    def _train(self, training: Training, log: int) -> int:
        """Be the agent of a training. The lock stays open, in the ranks as well: it is held until all have ended."""
        for stream in (1, 2):
            os.dup2(log, stream)
        return agent.run(
            lambda rank: run.main([training.config]), training.ranks, training.restarts, training.grace
        )

    def _reap(self) -> None:
        while True:
            try:
                process, status = os.waitpid(-1, os.WNOHANG)
            except ChildProcessError:
                return
            if not process:
                return
            if process in self._answers:
                _tell(self._answers[process], code=os.waitstatus_to_exitcode(status))
                self._answers.pop(process).close()


def refuse_threads() -> None:
    """Raise RuntimeError where this process has a second thread: a fork would be without it, but with its locks."""
    tasks = list(Path("/proc/self/task").iterdir())
    if len(tasks) > 1:
        names = ", ".join(sorted((task / "comm").read_text().strip() for task in tasks))
        raise RuntimeError(
            f"the engine cannot be forked, since it has threads: {names}; runtime.launcher torchrun does without"
        )


def _tell(answers: socket.socket, **fields: int | str) -> None:
    try:
        answers.send(json.dumps(fields).encode())
    except OSError:  # nobody waits any more
        return


def main(arguments: list[str]) -> int:
    control = socket.socket(fileno=int(arguments[0]))
    Server(control).serve()
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
