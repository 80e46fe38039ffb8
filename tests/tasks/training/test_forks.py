"""tasks.training.forks and model.training.forkserver, with the real engine: the same bytes as without, every way of
ending behind a checkpoint, and no process left."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import time

import psutil
import pytest

from model.training import forkserver
from model.training.config import from_dict
from model.training.machine import Machine
from tasks.settings.config import Runtime
from tasks.settings.errors import NodeError
from tasks.settings.paths import ROOT
from tasks.training import forks, launch, stuck
from tasks.training.launch import Stopped
from tests.support import engine_helpers as tiny
from tests.support.tiny import context

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="trainings are forked under Linux")

STEPS = 300


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    folder = tmp_path_factory.mktemp("shards")
    return {"files": [tiny.shard(folder / "a.arrow", 40)]}


@pytest.fixture(scope="module", autouse=True)
def servers():
    yield
    began = [server.process.pid for server in forks._servers.values()]
    forks.shutdown()
    assert began
    assert not any(map(psutil.pid_exists, began))


@pytest.fixture(scope="module")
def plain(data, tmp_path_factory):
    """Not disturbed, and in this process."""
    work = tmp_path_factory.mktemp("plain")
    assert tiny.engine(tiny.settings(work, data=data, steps=STEPS)) == 0
    return work


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    monkeypatch.setattr(launch, "POLL_SECONDS", 0.01)
    monkeypatch.setattr(launch, "CARE_SECONDS", 0.02)
    monkeypatch.setattr(launch, "LOOK_SECONDS", 0.1)


def train(work, data, ranks=1, should_stop=lambda: False, runtime=None, **more):
    work.mkdir(exist_ok=True)
    ctx = context(work, should_stop=should_stop, runtime=Runtime(**{"max_restarts": 0, **(runtime or {})}))
    config = from_dict(tiny.settings(work, data=data, **{"steps": STEPS, **more}))
    launch.launch(ctx, config, nproc=ranks, machine=Machine("cpu", 0, "fp32"))
    return (work / launch.LOG).read_text()


def reached(work, step):
    """Whether a training has written the metrics of a step."""
    path = work / "metrics.jsonl"
    return path.exists() and any(line["step"] >= step for line in tiny.metrics(work))


def same(work, other):
    assert tiny.metrics(work) == tiny.metrics(other)
    ours, theirs = (w / "export/model.safetensors" for w in (work, other))
    assert ours.read_bytes() == theirs.read_bytes()


def only_server():
    (server,) = forks._servers.values()
    return psutil.Process(server.process.pid)


def until(condition, seconds=60):
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "it did not happen in time"
        time.sleep(0.02)


def test_a_stopped_training_goes_on_to_the_same_bytes(data, plain, tmp_path):
    with pytest.raises(Stopped, match="cancelled"):
        train(tmp_path, data, should_stop=lambda: reached(tmp_path, 4), save_every=1000)
    (checkpoint,) = (tmp_path / "checkpoints").iterdir()
    assert 0 < json.loads((checkpoint / "state.json").read_text())["step"] < STEPS
    assert only_server().children() == []
    assert "resumed from" in train(tmp_path, data, save_every=1000)
    same(tmp_path, plain)


def test_a_rank_that_is_killed_is_started_again(data, plain, tmp_path):
    killed = []

    def kill():
        if not killed and any((tmp_path / "checkpoints").glob("step-*/state.json")):
            (rank,) = only_server().children()[0].children()
            killed.append(rank.pid)
            rank.kill()
        return False

    log = train(tmp_path, data, should_stop=kill, runtime={"max_restarts": 1})
    assert "rank 0 has ended with signal SIGKILL; attempt 2 of 2 starts" in log
    assert log.count("resumed from") == 1
    same(tmp_path, plain)


def test_a_rank_that_is_stopped_is_killed_and_started_again(data, plain, tmp_path, monkeypatch, caplog):
    """Its own watchdog is stopped, too, and it has no peers that would notice."""
    monkeypatch.setattr(stuck, "MARGIN_SECONDS", 0.0)
    stopped = []

    def stop():
        if not stopped and any((tmp_path / "checkpoints").glob("step-*/state.json")):
            (rank,) = only_server().children()[0].children()
            stopped.append(rank.pid)
            rank.suspend()
        return False

    log = train(tmp_path, data, should_stop=stop, runtime={"max_restarts": 1, "watchdog_seconds": 3})
    assert f"process {stopped[0]} of the training has used no CPU time for more than 3 s" in caplog.text
    assert "rank 0 has ended with signal SIGKILL; attempt 2 of 2 starts" in log
    same(tmp_path, plain)


def test_what_cannot_be_run_is_not_tried_again(data, tmp_path):
    with pytest.raises(NodeError, match="error: batch_size 3 cannot be shared evenly by 2 ranks") as error:
        train(tmp_path, data, ranks=2, runtime={"max_restarts": 3}, batch_size=3)
    assert "exit code 2" in str(error.value)
    assert (tmp_path / launch.LOG).read_text().count(" on 2 x cpu") == 1


def test_the_server_sees_nothing_of_this_process_but_what_a_rank_may_see(data, tmp_path, monkeypatch):
    monkeypatch.setenv("PREFECT_API_AUTH_STRING", "secret")
    train(tmp_path, data, steps=1)
    assert "secret" not in only_server().environ().values()
    assert only_server().num_threads() == 1


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_what_is_here_to_train_on(tmp_path, precision):
    assert launch.look(context(tmp_path), precision) == Machine("cpu", 0, precision)
    until(lambda: only_server().children() == [])


def test_a_server_that_cannot_start_says_why_in_the_log(data, tmp_path, monkeypatch):
    monkeypatch.setattr(forks, "_servers", {})
    monkeypatch.setitem(forks.ENVIRONMENT, "PYTHONPATH", "/nowhere")
    monkeypatch.setattr(forks, "ROOT", tmp_path)
    with pytest.raises(NodeError, match="the process that loads the engine has ended"):
        train(tmp_path, data, steps=1)
    assert "No module named 'model'" in (tmp_path / launch.LOG).read_text()


FLOW = f"""
import sys
sys.path.insert(0, {str(ROOT)!r})
from pathlib import Path
from model.training.config import from_json
from model.training.machine import Machine
from tasks.training import launch
from tasks.settings.config import Runtime
from tests.support.tiny import context
out, *grace = sys.argv[1:]
out = Path(out)
runtime = Runtime(grace_seconds=float(*grace or ["120"]))
settings = from_json(out / "settings.json")
launch.launch(context(out, runtime=runtime), settings, nproc=1, machine=Machine("cpu", 0, "fp32"))
"""


@pytest.mark.slow  # loads the engine once more
def test_kill_9_of_the_flow_process_leaves_a_checkpoint_and_no_process(data, tmp_path):
    endless = tiny.settings(tmp_path, data=data, steps=100_000, save_every=100_000)
    (tmp_path / "settings.json").write_text(json.dumps(endless))
    flow = subprocess.Popen(
        [sys.executable, "-c", FLOW, str(tmp_path)], env={**os.environ, "OMP_NUM_THREADS": "1"}
    )
    until(lambda: reached(tmp_path, 4), 300)
    (server,) = psutil.Process(flow.pid).children()
    family = [server, *server.children(recursive=True)]
    assert len(family) == 3  # server, agent, rank
    flow.kill()
    flow.wait()
    psutil.wait_procs(family, 60)
    assert not any(process.is_running() for process in family)
    assert len(list((tmp_path / "checkpoints").glob("step-*"))) == 1


@pytest.mark.slow  # loads the engine once more
def test_a_rank_that_hangs_does_not_outlive_a_flow_whose_group_is_killed(data, tmp_path):
    """What Prefect does 30 s after a cancellation."""
    endless = tiny.settings(tmp_path, data=data, steps=100_000, save_every=100_000)
    (tmp_path / "settings.json").write_text(json.dumps(endless))
    flow = subprocess.Popen(
        [sys.executable, "-c", FLOW, str(tmp_path), "3"],
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        start_new_session=True,
    )
    until(lambda: reached(tmp_path, 4), 300)
    (server,) = psutil.Process(flow.pid).children()
    family = [server, *server.children(recursive=True)]
    family[-1].suspend()
    os.killpg(flow.pid, signal.SIGKILL)
    flow.wait()
    psutil.wait_procs(family, 60)
    assert not any(process.is_running() for process in family)


def test_kill_9_of_the_server_leaves_a_checkpoint_and_no_process(data, plain, tmp_path):
    family = []

    def kill():
        if not family and reached(tmp_path, 4):
            server = only_server()
            family.extend([server, *server.children(recursive=True)])
            server.kill()
        return False

    with pytest.raises(Stopped, match="stopped at a checkpoint"):
        train(tmp_path, data, should_stop=kill, save_every=1000)
    assert len(family) == 3  # server, agent, rank
    psutil.wait_procs(family[1:], 60)  # nobody's children by now: init waits for them
    assert not any(process.is_running() for process in family[1:])
    assert len(list((tmp_path / "checkpoints").glob("step-*"))) == 1
    train(tmp_path, data, save_every=1000)  # by another server
    same(tmp_path, plain)


@pytest.mark.parametrize(
    ("launcher", "device", "how"),
    [("auto", "cpu", True), ("auto", "cuda", False), ("torchrun", "cpu", False), ("fork", "cpu", True)],
)
def test_trainings_are_forked_on_cpus(launcher, device, how):
    assert launch.forked(launcher, device) is how


def test_a_fork_of_what_has_loaded_cuda_is_refused():
    with pytest.raises(NodeError, match="choose auto or torchrun"):
        launch.forked("fork", "cuda")


def test_a_process_with_threads_is_not_forked():
    done = threading.Event()
    thread = threading.Thread(target=done.wait)
    thread.start()
    with pytest.raises(RuntimeError, match="the engine cannot be forked, since it has threads: "):
        forkserver.refuse_threads()
    done.set()
    thread.join()
