"""Starting a server: what is refused in one line before anything is loaded, and a process that answers."""

import argparse
import os
import re
import signal
import subprocess
import sys
from functools import partial
from pathlib import Path

import httpx
import pytest

from serve import run
from serve.options import add_options
from tests.support import exports

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    work = tmp_path_factory.mktemp("run")
    return exports.export(work / "dpo" / "export", exports.qwen_tokenizer(work / "tokenizer"))


def options(*words):
    parser = argparse.ArgumentParser()
    add_options(parser)
    return parser.parse_args(words)


def test_names_of_models(folder, tmp_path):
    assert list(run.offers([str(folder)])) == ["dpo"]
    assert run.offers([f"base={folder}"], plain=["base"])["base"].chat is False
    with pytest.raises(run.Refused, match="two models are named 'dpo'"):
        run.offers([str(folder), f"dpo={folder}"])
    with pytest.raises(run.Refused, match="holds no model"):
        run.offers([str(tmp_path)])


def test_others_may_only_reach_it_with_a_key(folder, monkeypatch, tmp_path):
    monkeypatch.delenv("STEEL_API_KEY", raising=False)
    with pytest.raises(run.Refused, match="can be reached by others"):
        run.run(run.offers([str(folder)]), options("--host", "0.0.0.0"))
    (tmp_path / "key").write_text("\n")
    with pytest.raises(run.Refused, match="is empty"):
        run.run(run.offers([str(folder)]), options("--key-file", str(tmp_path / "key")))
    with pytest.raises(run.Refused, match="at least 1"):
        run.run(run.offers([str(folder)]), options("--slots", "0", "--port", "0"))


def test_a_taken_port_is_said(folder):
    import socket

    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        with pytest.raises(run.Refused, match="cannot listen"):
            run.run(run.offers([str(folder)]), options("--port", str(other.getsockname()[1])))


def test_the_process_says_its_address_and_ends_on_ctrl_c(folder):
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "STEEL_API_KEY": "secret"}
    command = [sys.executable, "-m", "serve", str(folder), "--port", "0"]
    # a test that runs in the background of a shell inherits SIGINT ignored
    ready = partial(signal.signal, signal.SIGINT, signal.SIG_DFL)
    with subprocess.Popen(
        command, cwd=ROOT, env=environment, stdout=subprocess.PIPE, text=True, preexec_fn=ready
    ) as process:
        lines = [process.stdout.readline() for _ in range(3)]
        address = re.search(r"http://\S+/v1", lines[1])[0]
        assert "secret" not in "".join(lines)
        reply = httpx.get(f"{address}/models", headers={"Authorization": "Bearer secret"})
        assert reply.json()["data"][0]["id"] == "dpo"
        process.send_signal(signal.SIGINT)
        assert process.wait(timeout=60) == 130
