"""flows.alone: what a container or a job of a cluster tells it."""

from __future__ import annotations

import os
import socket
import subprocess
import sys

import pytest

from flows import alone
from flows.alone import AloneError
from flows.settings import ROOT, State, prefect_settings


def test_addresses_are_those_of_other_machines():
    at = alone.addresses(
        {"STEEL_PREFECT_ADDRESS": "http://prefect:4300/", "STEEL_MLFLOW_ADDRESS": "http://mlflow"}
    )
    assert (at.api, at.mlflow) == ("http://prefect:4300/api", "http://mlflow:5000")
    assert "mlflow:5000" in at.mlflow_hosts
    assert (
        "http://prefect:4300"
        in prefect_settings(State.default(), at, "a:b")["server"]["api"]["cors_allowed_origins"]
    )
    assert alone.addresses({}).prefect == "http://127.0.0.1:4200"


@pytest.mark.parametrize(
    "text",
    [
        "prefect:4200",
        "https://prefect",
        "http://steel:w0rd@prefect:4200",
        "http://prefect:port",
        "http://h/?token=w0rd",
        "http://h/api",
    ],
)
def test_what_is_no_address_is_refused_in_one_line_without_its_password(text, capsys, monkeypatch, tmp_path):
    monkeypatch.setenv("STEEL_PREFECT_ADDRESS", text)
    monkeypatch.setenv("STEEL_STATE", str(tmp_path))
    assert alone.main(["worker"]) == 2
    said = capsys.readouterr().err
    assert "STEEL_PREFECT_ADDRESS" in said
    assert "w0rd" not in said
    assert said.count("\n") == 1


def test_the_password_is_a_mounted_file(tmp_path):
    secret = tmp_path / "auth"
    secret.write_text("steel:w0rd\n")
    state = State(tmp_path / "state")
    assert alone.password(state, {"STEEL_AUTH_FILE": str(secret)}) == "steel:w0rd"
    for wrong in ("", "w0rd", "steel:", ":w0rd", "steel:w0rd\nmore:w0rds"):
        secret.write_text(wrong)
        with pytest.raises(AloneError) as refused:
            alone.password(state, {"STEEL_AUTH_FILE": str(secret)})
        assert "w0rd" not in str(refused.value)
    with pytest.raises(AloneError, match="cannot be read"):
        alone.password(state, {"STEEL_AUTH_FILE": str(tmp_path)})


def test_check_says_which_server_does_not_answer(monkeypatch, capsys):
    with socket.socket() as nobody:
        nobody.bind(("127.0.0.1", 0))  # and never listens
        port = nobody.getsockname()[1]
        monkeypatch.setenv("STEEL_PREFECT_ADDRESS", f"http://127.0.0.1:{port}")
        assert alone.main(["check", "prefect"]) == 1
    assert capsys.readouterr().out.startswith("prefect: ")


def test_a_worker_begun_in_the_background_of_a_shell_can_be_interrupted(tmp_path):
    """bash gives background jobs SIGINT ignored; Prefect's worker turns SIGTERM into SIGINT and would not end."""
    script = (
        "import os, signal; from flows import alone, deploy, health; health.problem = lambda url: ''\n"
        "deploy.make_pools = lambda: None; os.execv = lambda *command: print(signal.getsignal(signal.SIGINT))\n"
        "alone.main(['worker'])"
    )
    done = subprocess.run(
        ["bash", "-c", f"trap '' INT; exec {sys.executable} -c \"$0\"", script],
        cwd=ROOT, env={**os.environ, "STEEL_STATE": str(tmp_path)}, capture_output=True, text=True, check=True,
    )  # fmt: skip
    assert "default_int_handler" in done.stdout
