"""Servers in a state folder of their own, without a worker and on ports that nobody uses."""

from __future__ import annotations

import contextlib
import socket
from collections.abc import Iterator
from dataclasses import replace
from typing import NamedTuple

from flows import processes, servers
from flows.settings import ROOT, Addresses, State, auth_string, clean_environment


class Own(NamedTuple):
    """Servers that run: addresses, the environment of their clients, the processes by name."""

    at: Addresses
    environment: dict[str, str]
    records: dict[str, processes.Record]


@contextlib.contextmanager
def running(state: State, *names: str) -> Iterator[Own]:
    """Start the servers of these names as `make up` does; yields what a client needs."""
    state.make()
    at = Addresses(*_free_ports(2))
    environment = clean_environment(state, at, auth_string(state))
    records = {name: servers._start(name, at, replace(state, root=ROOT), environment) for name in names}
    try:
        for name, record in records.items():
            problem = servers._wait(name, record, at, state, 120)
            assert not problem, f"{name} {problem}: {processes.tail(state.log(name))}"
        yield Own(at, environment, records)
    finally:
        processes.stop(records, grace=15)


def _free_ports(count: int) -> list[int]:
    with contextlib.ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in range(count)]
        for each in sockets:
            each.bind(("127.0.0.1", 0))
        return [each.getsockname()[1] for each in sockets]
