"""flows.arrivals: a folder is told of once for each change, and not while it is being written."""

from __future__ import annotations

import os

import pytest

from flows import arrivals, ports
from flows.settings import State


@pytest.fixture
def told(monkeypatch, tmp_path):
    """What was sent, by a Prefect server that takes or refuses."""
    state, sent = State(tmp_path / "state"), []
    state.make()
    ports.save(state.ports, {"prefect": 1, "mlflow": 2})
    monkeypatch.setattr(State, "default", staticmethod(lambda: state))
    environ = dict(os.environ)
    monkeypatch.setattr(arrivals, "_told", lambda *event: sent.append(event) or sent[-1][2] < 3)
    yield sent
    os.environ.clear()
    os.environ.update(environ)


def test_each_change_is_told_once(told, tmp_path):
    folder = tmp_path / "data"
    (folder / "deep").mkdir(parents=True)
    file = folder / "deep" / "a.jsonl"
    file.write_text("x")
    assert arrivals.main([str(folder)]) == 1  # it may be half a file
    os.utime(file, (1_000_000_000, 1_000_000_000))
    assert [arrivals.main([str(folder)]) for _ in range(2)] == [0, 0]
    assert len(told) == 1
    file.write_text("xy")
    os.utime(file, (1_000_000_000, 1_000_000_000))
    assert arrivals.main([str(folder)]) == 0
    assert len(told) == 2


def test_what_prefect_did_not_take_is_told_again(told, tmp_path):
    for number in range(3):
        (tmp_path / "data").mkdir(exist_ok=True)
        (tmp_path / "data" / str(number)).touch()
    assert [arrivals.main([str(tmp_path / "data"), "--settled", "0"]) for _ in range(2)] == [2, 2]
    assert len(told) == 2
    assert arrivals.main([str(tmp_path / "missing")]) == 2
