"""The command line as a shell has it."""

from __future__ import annotations

import os
import subprocess
import sys
from types import SimpleNamespace
from uuid import uuid4

import pytest

from flows import cli, follow, servers
from flows.settings import ROOT, Addresses
from flows.spec import PIPELINE
from tests.support.prefect_server import AWAY


@pytest.mark.parametrize("command", [["sources", "--profile", "smoke"], ["sources", "--registry"]])
def test_a_reader_that_has_read_enough_is_no_error(command):
    reader, writer = os.pipe()
    os.close(reader)  # as `… | head -0`
    done = subprocess.run(
        [sys.executable, "-m", "flows.cli", *command],
        cwd=ROOT, stdout=writer, stderr=subprocess.PIPE, text=True, timeout=300, check=False,
    )  # fmt: skip
    os.close(writer)
    assert done.returncode == 0
    assert "Traceback" not in done.stderr
    assert "BrokenPipe" not in done.stderr


@pytest.mark.parametrize("trouble", AWAY.values(), ids=AWAY)
def test_a_server_that_does_not_answer_is_a_line_not_a_traceback(trouble, monkeypatch, capsys, tmp_path):
    def raises(*arguments, **more):
        raise trouble

    monkeypatch.setattr(servers, "up", raises)
    assert cli.main(["up"]) == 2
    monkeypatch.setattr(follow, "follow", raises)
    config = SimpleNamespace(runtime=SimpleNamespace(artifacts=tmp_path), profile="smoke")
    assert cli._follow(uuid4(), Addresses(1, 2), config, PIPELINE) == 1
    said = capsys.readouterr().err
    assert said.count("does not answer") == 2
    assert "make watch" in said


def test_another_error_keeps_its_traceback(monkeypatch):
    monkeypatch.setattr(servers, "up", lambda: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        cli.main(["up"])
