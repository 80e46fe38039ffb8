"""flows.ports: two clones side by side, and no silent replacement of what was asked for."""

from __future__ import annotations

import socket

import pytest

from flows import ports
from flows.ports import PortError


@pytest.fixture
def taken():
    with socket.socket() as server:
        server.bind((ports.HOST, 0))
        server.listen()
        yield server.getsockname()[1]


def test_a_taken_default_is_replaced_by_the_next_free_one(taken, monkeypatch):
    monkeypatch.setitem(ports.DEFAULTS, "prefect", taken)
    assert taken < ports.choose("prefect", None, (), {}) <= taken + 200


def test_a_free_default_is_taken(monkeypatch, taken):
    free = ports.choose("prefect", None, (taken,), {})
    monkeypatch.setitem(ports.DEFAULTS, "prefect", free)
    assert ports.choose("prefect", None, (), {}) == free
    assert ports.choose("prefect", None, (free,), {}) != free  # the other server has it


def test_the_remembered_port_comes_before_the_default_unless_it_is_taken(taken):
    free = ports.choose("mlflow", None, (), {})
    other = ports.choose("mlflow", None, (free,), {})
    assert ports.choose("mlflow", other, (), {}) == other
    assert ports.choose("mlflow", taken, (), {}) != taken


def test_a_port_that_was_asked_for_and_is_taken_is_one_clear_line(taken):
    with pytest.raises(PortError, match=f"^STEEL_MLFLOW_PORT={taken} is taken.*") as error:
        ports.choose("mlflow", None, (), {"STEEL_MLFLOW_PORT": str(taken)})
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("text", ["http", "0", "70000", "-1"])
def test_nonsense_is_refused(text):
    with pytest.raises(PortError, match="is not a port"):
        ports.asked("prefect", {"STEEL_PREFECT_PORT": text})


def test_ports_are_remembered(tmp_path):
    path = tmp_path / "state" / "ports.json"
    assert ports.load(path) == {}
    ports.save(path, {"prefect": 4201, "mlflow": 5001})
    assert ports.load(path) == {"prefect": 4201, "mlflow": 5001}
    path.write_text("half a fi")
    assert ports.load(path) == {}
