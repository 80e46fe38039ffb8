"""flows.ports: two clones side by side, and no silent replacement of what was asked for."""

from __future__ import annotations

import contextlib
import os
import socket
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor

import httpx
import pytest

from flows import ports
from flows.ports import PortError
from flows.settings import ROOT
from tests.support.house import until


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


def test_clones_that_start_at_once_get_ports_of_their_own():
    with contextlib.ExitStack() as stack, ThreadPoolExecutor(16) as pool:
        found = list(pool.map(lambda _: ports.reserve("prefect", None, (), {}), range(16)))
        for listener in found:
            stack.enter_context(listener)
        numbers = {listener.getsockname()[1] for listener in found}
        assert len(numbers) == 16
        assert not any(map(ports.is_free, numbers))


def test_a_port_that_is_taken_in_the_last_moment_is_not_used(taken, monkeypatch):
    monkeypatch.setitem(ports.DEFAULTS, "mlflow", taken)
    monkeypatch.setattr(ports, "is_free", lambda port: True)  # it was, a moment ago
    with ports.reserve("mlflow", taken, (), {}) as listener:
        assert listener.getsockname()[1] > taken
    with pytest.raises(PortError, match=f"^STEEL_MLFLOW_PORT={taken} is taken"):
        ports.reserve("mlflow", None, (), {"STEEL_MLFLOW_PORT": str(taken)})


SERVE = """
import uvicorn
from flows import listening

async def app(scope, receive, send):
    if scope["type"] == "http":
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": b"here"})

listening.serve_on("127.0.0.1", PORT)
uvicorn.run(app, host="127.0.0.1", port=PORT)
"""


@pytest.mark.parametrize("handed_down", [True, False])
def test_a_server_serves_on_the_socket_that_it_inherits_or_opens(handed_down):
    with ports.reserve("mlflow", None, (), {}) as listener:
        port, number = listener.getsockname()[1], listener.fileno()
        if not handed_down:
            listener.close()
        script = SERVE.replace("PORT", "1" if handed_down else str(port))
        server = subprocess.Popen(
            [sys.executable, "-c", script],
            cwd=ROOT,
            env={**os.environ, **({ports.LISTEN_FD: str(number)} if handed_down else {})},
            pass_fds=[number] if handed_down else (),
        )
    try:
        # asked before it runs: an inherited socket lets the question wait
        with httpx.Client(trust_env=False, timeout=60) as client:
            until(lambda: handed_down or not ports.is_free(port), 60)
            assert client.get(f"http://127.0.0.1:{port}/").text == "here"
    finally:
        server.terminate()
        server.wait(30)
    assert ports.is_free(port)


@pytest.mark.parametrize("server", ["prefect", "mlflow"])
def test_a_server_of_its_own_whose_port_is_taken_says_so_in_one_line(server, taken, tmp_path):
    (tmp_path / "auth").write_text("steel:abcdefghijklmnopqrstuvwx")
    (tmp_path / "auth").chmod(0o600)
    done = subprocess.run(
        [sys.executable, "-m", "flows.alone", server],
        cwd=ROOT,
        env={
            **os.environ,
            "STEEL_STATE": str(tmp_path / "state"),
            "STEEL_AUTH_FILE": str(tmp_path / "auth"),
            f"STEEL_{server.upper()}_ADDRESS": f"http://127.0.0.1:{taken}",
        },
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 2
    assert done.stderr.strip().splitlines()[-1].startswith(f"port {taken} of 127.0.0.1 cannot be opened: ")
    assert "Traceback" not in done.stderr
