"""The servers of a clone: Prefect server, MLflow server and a process worker, on 127.0.0.1.

`up()` is idempotent: what runs and answers is left alone, what died is started again, and all three
start beside each other as far as they can (the worker and the deployments need Prefect's API).
`down()` ends them by pid. State, ports and logs: flows.settings.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import socket
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import psutil

from flows import health, ports, processes, stores
from flows.ports import HOST, LISTEN_FD
from flows.settings import POOL, Addresses, State, auth_string, clean_environment, write_client_files

START_SECONDS = 300
"""How long a server may take to answer: a first start on a busy 2-core machine may take over a minute."""

RUN_SECONDS = 40
"""How long a flow run may take to save and end; Prefect kills it 30 s after a cancellation."""

Say = Callable[[str], None]


class ServerError(RuntimeError):
    """A server does not start; the message says which and why."""


@dataclass(frozen=True)
class Service:
    """One of the three, as it is now."""

    name: str
    running: bool
    answers: bool
    address: str
    pid: int | None
    memory: int
    log: Path


def up(say: Say = print) -> Addresses:
    """Start what does not run, deploy what changed; returns the addresses."""
    state = State.default()
    state.make()
    with _locked(state), contextlib.ExitStack() as stack:
        started = time.monotonic()
        _secret(state)
        first = not state.auth.exists()
        at, listeners = _choose_ports(state, stack)
        auth = auth_string(state)
        records = processes.load(state.processes)
        _same_password(records, auth)
        environment = clean_environment(state, at, auth)
        write_client_files(state, at, auth)

        def ensure(name: str) -> bool:
            """True if it had to be started."""
            old = records.get(name)
            if old and old.process() and (_answers(name, at) or _wait(name, old, at, state, 20) == ""):
                return False
            if old:
                if old.process():
                    say(f"{name}: runs but does not answer; starting it again")
                    processes.stop({name: old}, grace=10, say=say)
                else:
                    say(f"{name}: process {old.pid} is gone; starting it again")
            records[name] = _start(name, at, state, environment, listeners.get(name))
            processes.save(state.processes, records)
            return True

        fresh = [name for name in ("prefect", "mlflow") if ensure(name)]
        with ThreadPoolExecutor(2) as pool:
            waiting = {
                name: pool.submit(_wait, name, records[name], at, state, START_SECONDS) for name in fresh
            }
            # before Prefect is imported: it reads its settings once. A command that waits for an answer
            # wants to know soon that there is none; the default of 5 retries takes a minute
            os.environ.update({**environment, "PREFECT_CLIENT_MAX_RETRIES": "2"})
            from flows import deploy  # a second of imports, while the servers start

            _check("prefect", waiting, state)
            deploy.make_pools()
            if state.held.exists():  # by `make down`, and by nobody else
                from flows import runs

                runs.hold(False)
                state.held.unlink()
            deploying = pool.submit(deploy.deploy, state, at, environment, say)
            if ensure("worker"):
                fresh.append("worker")
            deploying.result()
            _check("mlflow", waiting, state)
        died = [name for name, record in records.items() if not record.process()]
        if died:
            raise ServerError(_failure(died[0], "ended", state))
    if fresh:
        say(f"started {', '.join(fresh)} in {time.monotonic() - started:.0f} s")
    if first:
        user, _, password = auth.partition(":")
        say(f"The pages ask for a password. It is said this once, and kept in {state.auth}:")
        say(f"  Prefect  {auth}\n  MLflow   user {user}, password {password}")
    return at


def down(say: Say = print, cancel: bool = False) -> list[str]:
    """Stop the worker, then the servers; returns the names of those that ran.

    Names the flow runs that wait in the queue, and cancels them if told to.
    """
    state = State.default()
    if not state.processes.exists():
        return []
    with _locked(state):
        records = processes.load(state.processes)
        worker = {k: v for k, v in records.items() if k == "worker"}
        rest = {k: v for k, v in records.items() if k != "worker"}
        going = processes.flow_runs(state.folder)
        at = addresses(state)
        if at and _answers("prefect", at):
            os.environ.update(
                {**clean_environment(state, at, auth_string(state)), "PREFECT_CLIENT_MAX_RETRIES": "2"}
            )
            _tell_runs(going, cancel, say)
            if going:
                processes.wait_until(
                    lambda: not processes.flow_runs(state.folder), lambda: True, timeout=RUN_SECONDS, poll=0.5
                )
        processes.end([p for p in going.values() if p.is_running()], grace=RUN_SECONDS, say=say)
        if going and at and _answers("prefect", at):
            _close_runs(going, say)
        stopped = processes.stop(worker, grace=15, say=say) + processes.stop(rest, grace=15, say=say)
        state.processes.unlink(missing_ok=True)  # a second `down` waited for the lock
    return stopped


def _tell_runs(going: Mapping[str, psutil.Process], cancel: bool, say: Say) -> None:
    """Name or cancel the flow runs that wait; cancel those that go on, so that they are not taken for crashed.

    A server that refuses or does not answer stops nothing of this: all processes are ended by pid in any case.
    """
    from flows import runs  # after the environment is set: Prefect reads its settings when it is imported
    from flows.reporter import AWAY

    state = State.default()
    try:
        # what waits would begin as soon as the run before it ends
        runs.hold(True)
        state.held.touch()
        queue = runs.waiting(besides=going)
        if queue and cancel:
            runs.forget(queue)
        if queue:
            what = "are cancelled" if cancel else "wait for the next `make up`"
            say(f"{len(queue)} flow run(s) {what}:")
            say("\n".join(f"  {run}" for run in queue))
        if queue and not cancel:
            say("cancel them instead: make down CANCEL=1, or later prefect flow-run cancel <id>")
        if cancelled := runs.cancel(going):  # the others have ended, and their process is about to
            say(f"cancelling {cancelled} flow run(s); a training saves a checkpoint first")
    except AWAY as error:
        say(f"Prefect does not tell which flow runs there are ({type(error).__name__}: {error})")


def _close_runs(going: Mapping[str, psutil.Process], say: Say) -> None:
    """Prefect hears that what was stopped here was cancelled."""
    from flows import runs
    from flows.reporter import AWAY

    try:
        runs.cancelled(going)
    except AWAY as error:
        say(f"Prefect does not take that runs were cancelled ({type(error).__name__}: {error})")


def status(memory: bool = True) -> list[Service]:
    """How the three are; adding up memory takes a tenth of a second."""
    state = State.default()
    records = processes.load(state.processes)
    at = addresses(state)
    services = []
    for name in ("prefect", "mlflow", "worker"):
        record = records.get(name)
        running = bool(record and record.process())
        address = {"prefect": at.prefect, "mlflow": at.mlflow}.get(name, f"pool {POOL}") if at else ""
        services.append(
            Service(
                name,
                running,
                running and at is not None and _answers(name, at),
                address,
                record.pid if running else None,
                processes.memory(record) if running and memory else 0,
                state.log(name),
            )
        )
    return services


def going() -> dict[str, psutil.Process]:
    """The flow runs of this clone that have a process, whether Prefect knows them or not."""
    return processes.flow_runs(State.default().folder)


def addresses(state: State) -> Addresses | None:
    """Where the servers are, or were when they last ran."""
    known = ports.load(state.ports)
    return Addresses(known["prefect"], known["mlflow"]) if len(known) == 2 else None


# ----------------------------------------------------------------------------------- inside
def _choose_ports(state: State, stack: contextlib.ExitStack) -> tuple[Addresses, dict[str, socket.socket]]:
    """Where the servers are or will be, and the open sockets of those to be started; `stack` closes them."""
    known, records, chosen = ports.load(state.ports), processes.load(state.processes), {}
    listeners = {}
    for name in ports.DEFAULTS:
        record = records.get(name)
        running = known.get(name) if record and record.process() else None
        port = ports.asked(name)
        if running and port in (None, running):
            chosen[name] = running
        elif running:
            raise ports.PortError(
                f"the {name} server already runs on port {running}; `make down` first, to move it to {port}"
            )
        else:
            listener = ports.reserve(name, known.get(name), chosen.values(), os.environ)
            listeners[name] = stack.enter_context(listener)
            chosen[name] = listener.getsockname()[1]
    ports.save(state.ports, chosen)
    return Addresses(chosen["prefect"], chosen["mlflow"]), listeners


def _secret(state: State) -> None:
    """Refuse to start with a password that other accounts can read."""
    if state.auth.exists() and state.auth.stat().st_mode & 0o077:
        raise ServerError(
            f"other accounts can read the password in {state.auth}: `make down`, delete it, `make up`"
        )


_PASSWORDS = {"prefect": "PREFECT_SERVER_API_AUTH_STRING", "mlflow": "MLFLOW_TRACKING_PASSWORD"}


def _same_password(records: Mapping[str, processes.Record], auth: str) -> None:
    """A server that runs keeps the password, or the lack of one, that it was started with."""
    for name, variable in _PASSWORDS.items():
        process = records[name].process() if name in records else None
        if process and process.environ().get(variable, "") not in (auth, auth.partition(":")[2]):
            raise ServerError(f"{name} runs without this clone's password: `make down` first, then `make up`")


def _command(name: str, at: Addresses, state: State) -> list[str]:
    python = [sys.executable, "-m"]
    if name == "prefect":
        return [*python, "flows.prefect_server", "--host", HOST, "--port", str(at.prefect_port)]
    if name == "mlflow":
        return [*python, "flows.mlflow_server", str(at.mlflow_port)]
    return [*python, "prefect", "worker", "start", "--pool", POOL, "--type", "process", "--name", "steel"]


def _start(
    name: str,
    at: Addresses,
    state: State,
    environment: Mapping[str, str],
    listener: socket.socket | None = None,
) -> processes.Record:
    """The process of a server or the worker; `listener` is its own from here on.

    Raises ServerError if a server that is not on record serves the same database, or if its database is not said.
    """
    try:
        more = stores.server_variables(name)
        stores.same_as_before(state.stores, name)
    except stores.StoreError as error:
        raise ServerError(str(error)) from error
    lock = {"prefect": state.prefect_home, "mlflow": state.mlflow_home}.get(name)
    handles = []
    if listener:
        handles.append(listener.fileno())
        more = {**more, LISTEN_FD: str(listener.fileno())}
    try:
        return processes.start(
            _command(name, at, state),
            env={**environment, **more},
            cwd=state.root,
            log=state.log(name),
            lock=lock / "lock" if lock else None,
            handles=handles,
        )
    except processes.Held as error:
        raise ServerError(
            f"a {name} server that is not in {state.processes} runs over this database: {error}. End it, then `make up`"
        ) from error
    finally:
        if listener:
            listener.close()  # who asks a server that has ended is refused at once


def _answers(name: str, at: Addresses) -> bool:
    if name == "worker":
        return True  # it listens nowhere; Prefect shows its heartbeat
    return not health.problem(health.address(name, at))


def _wait(name: str, record: processes.Record, at: Addresses, state: State, timeout: float) -> str:
    return processes.wait_until(
        lambda: _answers(name, at), lambda: record.process() is not None, timeout=timeout, poll=0.2
    )


def _check(name: str, waiting: dict, state: State) -> None:
    problem = waiting[name].result() if name in waiting else ""
    if problem:
        raise ServerError(_failure(name, problem, state))


def _failure(name: str, problem: str, state: State) -> str:
    what = "ended at once" if problem == "ended" else f"did not answer within {START_SECONDS} s"
    return f"the {name} process {what}; the end of {state.log(name)}:\n{processes.tail(state.log(name))}"


@contextlib.contextmanager
def _locked(state: State) -> Iterator[None]:
    """One `up` or `down` at a time."""
    with open(state.folder / "lock", "w") as handle:
        fcntl.flock(handle, fcntl.LOCK_EX)
        yield
