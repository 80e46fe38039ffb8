"""Trainings as forks of a process that has loaded the engine (model.training.forkserver): one for each flow process.

It is started by the first training, knows nothing of this process's environment but what a rank may see, and ends with
this process, behind the checkpoints of what still trains.
"""

from __future__ import annotations

import atexit
import json
import select
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, BinaryIO

import psutil

from model.training.machine import Machine
from tasks.settings.errors import NodeError
from tasks.settings.paths import ROOT

ENVIRONMENT = {"JE_ARROW_MALLOC_CONF": "background_thread:false"}
"""For the server: pyarrow's allocator would start a thread otherwise, and what has threads is not forked."""
START_SECONDS = 600.0
"""For a server to load the engine, on a machine that has much else to do."""

_lock = threading.Lock()
_servers: dict[frozenset[tuple[str, str]], Server] = {}


@dataclass(frozen=True)
class Server:
    """A fork server of this process."""

    process: subprocess.Popen
    control: socket.socket

    @staticmethod
    def start(env: Mapping[str, str], sink: BinaryIO) -> Server:
        """`sink`: where it says why it could not start."""
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        with theirs:
            process = subprocess.Popen(
                [sys.executable, "-m", "model.training.forkserver", str(theirs.fileno())],
                stdin=subprocess.DEVNULL,
                stdout=sink,
                stderr=subprocess.STDOUT,
                env={**env, **ENVIRONMENT},
                cwd=ROOT,
                pass_fds=[theirs.fileno()],
                start_new_session=True,  # as in tasks.training.launch
            )
        return Server(process, ours)


class Forked:
    """A training that the server has forked, with what is used of subprocess.Popen."""

    def __init__(self, answers: socket.socket):
        """`answers`: as in model.training.forkserver. Raises NodeError where no training has started."""
        self._answers = answers
        self.returncode: int | None = None
        first = _first(answers, "pid")
        self.pid = first["pid"]
        try:
            self._agent: psutil.Process | None = psutil.Process(self.pid)
        except psutil.NoSuchProcess:  # ended already
            self._agent = None

    def poll(self) -> int | None:
        """The exit code; None while it runs."""
        return self._wait(0.0)

    def wait(self, timeout: float | None = None) -> int:
        """The exit code; subprocess.TimeoutExpired while it runs."""
        code = self._wait(timeout)
        if code is None:
            raise subprocess.TimeoutExpired("a forked training", timeout or 0.0)
        return code

    def send_signal(self, number: int) -> None:
        if self._agent is not None and self._agent.is_running():  # its number may be another's by now
            self._agent.send_signal(number)

    def kill(self) -> None:
        self.send_signal(signal.SIGKILL)

    def _wait(self, timeout: float | None) -> int | None:
        if self.returncode is None:
            answer = _answer(self._answers, timeout)
            if answer is not None:
                # without an answer the server has been killed, and the training has ended after it
                self.returncode = answer.get("code", -signal.SIGKILL)
        return self.returncode


def fork(
    config: str, ranks: int, restarts: int, grace: float, env: Mapping[str, str], sink: BinaryIO, lock: int
) -> Forked:
    """Start the ranks of a training. `config`: file of the engine's configuration; `lock`: a file that stays open in
    them. The server has the environment `env`, which is that of the ranks."""
    training = {"config": config, "ranks": ranks, "restarts": restarts, "grace": grace}
    return Forked(_ask({"training": training}, env, sink, [sink.fileno(), lock]))


def look(device: str, precision: str, env: Mapping[str, str], sink: BinaryIO) -> Machine:
    """model.training.machine.look, in a fork of the server."""
    answers = _ask({"look": {"device": device, "precision": precision}}, env, sink, [])
    return Machine(**_first(answers, "device"))


def _ask(request: dict[str, Any], env: Mapping[str, str], sink: BinaryIO, files: list[int]) -> socket.socket:
    """Where the server with this environment, which is started if need be, will answer."""
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    with theirs, _lock:
        key = frozenset(env.items())
        server = _servers.get(key)
        if server is None or server.process.poll() is not None:
            server = _servers[key] = Server.start(env, sink)
        socket.send_fds(server.control, [json.dumps(request).encode()], [theirs.fileno(), *files])
    return ours


def _first(answers: socket.socket, field: str) -> dict[str, Any]:
    """The first answer; NodeError where there is none, or none with that field."""
    first = _answer(answers, START_SECONDS)
    if first is None:
        raise NodeError(
            f"the engine has not been loaded within {START_SECONDS:g} s: runtime.launcher torchrun does without"
        )
    if field not in first:
        raise NodeError("the process that loads the engine has ended; the training's log may say why")
    return first


def _answer(answers: socket.socket, timeout: float | None) -> dict[str, Any] | None:
    """The next answer, {} at their end; None where there is none in time."""
    if not select.select([answers], [], [], timeout)[0]:
        return None
    message = answers.recv(1 << 16)
    return json.loads(message) if message else {}


def shutdown() -> None:
    """End the servers, behind the checkpoints of what still trains."""
    with _lock:
        for server in _servers.values():
            server.control.close()
            server.process.wait()
        _servers.clear()


atexit.register(shutdown)
