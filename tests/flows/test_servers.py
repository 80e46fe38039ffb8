"""The servers' commands, without servers: what two of them at once do."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import pytest

from flows import processes, servers
from flows.settings import State


@pytest.fixture
def state(tmp_path, monkeypatch):
    state = State(tmp_path)
    monkeypatch.setattr(State, "default", staticmethod(lambda: state))
    state.make()
    return state


def test_down_twice_at_once_is_no_traceback(state):
    import sys

    record = processes.start(
        [sys.executable, "-c", "import time; time.sleep(60)"], env={}, cwd=state.root, log=state.log("mlflow")
    )
    processes.save(state.processes, {"mlflow": record})
    with ThreadPoolExecutor(3) as pool:
        stopped = list(pool.map(lambda _: servers.down(lambda text: None), range(3)))
    assert sorted(map(len, stopped)) == [0, 0, 1]
    assert record.process() is None
    assert servers.down() == []
