"""The servers' commands, without servers: what two of them at once do."""

from __future__ import annotations

import os
import sys
from concurrent.futures import ThreadPoolExecutor

import pytest

from flows import processes, servers
from flows.servers import ServerError
from flows.settings import Addresses, State, auth_string


@pytest.fixture
def state(tmp_path, monkeypatch):
    state = State(tmp_path)
    monkeypatch.setattr(State, "default", staticmethod(lambda: state))
    state.make()
    return state


def test_down_twice_at_once_is_no_traceback(state):
    record = processes.start(
        [sys.executable, "-c", "import time; time.sleep(60)"], env={}, cwd=state.root, log=state.log("mlflow")
    )
    processes.save(state.processes, {"mlflow": record})
    with ThreadPoolExecutor(3) as pool:
        stopped = list(pool.map(lambda _: servers.down(lambda text: None), range(3)))
    assert sorted(map(len, stopped)) == [0, 0, 1]
    assert record.process() is None
    assert servers.down() == []


@pytest.mark.parametrize("variable", ["PREFECT_SERVER_API_AUTH_STRING", "MLFLOW_TRACKING_PASSWORD"])
@pytest.mark.parametrize(("has", "good"), [("right", True), ("other", False), ("", False)])
def test_a_server_that_runs_without_the_password_is_not_taken_for_ours(state, variable, has, good):
    auth = auth_string(state)
    name = "prefect" if "PREFECT" in variable else "mlflow"
    right = auth if name == "prefect" else auth.partition(":")[2]
    environment = {**os.environ, variable: right if has == "right" else has}
    sleep = [sys.executable, "-c", "import time; time.sleep(60)"]
    record = processes.start(sleep, env=environment, cwd=state.root, log=state.log(name))
    try:
        if good:
            servers._same_password({name: record}, auth)
        else:
            with pytest.raises(ServerError, match=f"{name} runs without"):
                servers._same_password({name: record}, auth)
    finally:
        processes.stop({name: record}, grace=5)


def test_a_password_that_others_can_read_starts_nothing(state):
    auth_string(state)
    state.auth.chmod(0o640)
    with pytest.raises(ServerError, match="other accounts can read"):
        servers.up()
    assert not state.processes.exists()


def test_a_database_has_one_server_although_the_record_is_lost(state, monkeypatch):
    script = [sys.executable, "-c", "import time; time.sleep(60)"]
    monkeypatch.setattr(servers, "_command", lambda name, at, state: script)
    at = Addresses(1, 2)
    running = {name: servers._start(name, at, state, dict(os.environ)) for name in ("prefect", "mlflow")}
    try:
        for name, record in running.items():
            with pytest.raises(ServerError, match=f"{name} server that is not in .* process {record.pid}"):
                servers._start(name, at, state, dict(os.environ))
            assert record.process() is not None
    finally:
        processes.stop(running, grace=5)
