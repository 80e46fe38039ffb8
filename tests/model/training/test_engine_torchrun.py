"""The engine as it is run: two processes under torchrun on gloo. Slow: each start imports torch twice."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from tests.support import engine_helpers as tiny

pytestmark = pytest.mark.slow


def finish(values: dict, ranks: int = 2) -> Path:
    work = Path(values["work_dir"])
    code = tiny.start(values, ranks).wait(timeout=240)
    assert code == 0, (work / "log").read_text()[-3000:]
    return work


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    folder = tmp_path_factory.mktemp("shards")
    return {
        "files": [tiny.shard(folder / "a.arrow", 40)],
        "val_files": [tiny.shard(folder / "v.arrow", 5, seed=1)],
    }


@pytest.fixture(scope="module")
def plain(data, tmp_path_factory):
    return finish(tiny.settings(tmp_path_factory.mktemp("plain"), data=data, steps=60, save_every=1000))


def test_sigterm_saves_and_the_resumed_run_is_the_same_to_the_bit(plain, data, tmp_path):
    values = tiny.settings(tmp_path, data=data, steps=60, save_every=1000)
    process = tiny.start(values, 2)
    tiny.wait_for(tmp_path, 4)
    process.send_signal(signal.SIGTERM)
    assert process.wait(timeout=120) != 0
    assert "stopped by a signal" in (tmp_path / "log").read_text()
    (checkpoint,) = (tmp_path / "checkpoints").iterdir()
    assert 0 < json.loads((checkpoint / "state.json").read_text())["step"] < 60
    assert finish(values) == tmp_path
    assert tiny.metrics(tmp_path) == tiny.metrics(plain)
    assert (tmp_path / "export/model.safetensors").read_bytes() == (
        plain / "export/model.safetensors"
    ).read_bytes()


def test_a_killed_rank_costs_the_steps_since_the_checkpoint(plain, data, tmp_path):
    values = tiny.settings(tmp_path, data=data, steps=60, save_every=5)
    process = tiny.start(values, 2)
    tiny.wait_for(tmp_path, 8, saved=5)
    children = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
    os.kill(int(children[-1]), signal.SIGKILL)
    assert process.wait(timeout=120) != 0
    finish(values)
    assert "resumed from" in (tmp_path / "log").read_text()
    assert [line for line in tiny.metrics(tmp_path) if "loss" in line] == [
        line for line in tiny.metrics(plain) if "loss" in line
    ]


def test_one_rank_gives_the_same_but_for_rounding(plain, data, tmp_path):
    work = finish(tiny.settings(tmp_path, data=data, steps=60), ranks=1)
    ours, theirs = tiny.metrics(work)[-1], tiny.metrics(plain)[-1]
    assert ours["val_loss"] == pytest.approx(theirs["val_loss"], rel=0.02)
    first = [tiny.metrics(w)[0]["loss"] for w in (work, plain)]
    assert first[0] == pytest.approx(first[1], rel=1e-5)
    assert np.isfinite(first).all()


def test_logprobs_and_dpo_on_two_ranks(plain, tmp_path):
    tiny.pairs(tmp_path / "pairs.arrow", 21)
    files = {"files": [{"path": str(tmp_path / "pairs.arrow")}]}
    start_from = str(plain / "export")
    common = {"data": files, "init_from": start_from, "batch_size": 4}
    finish(tiny.settings(tmp_path / "ref", objective="logprobs", steps=None, **common))
    reference = {"reference": str(tmp_path / "ref" / "logprobs.arrow"), "beta": 0.5}
    work = finish(tiny.settings(tmp_path / "dpo", objective="dpo", dpo=reference, log_every=1, **common))
    losses = [line["loss"] for line in tiny.steps(work)]
    assert losses[0] == pytest.approx(np.log(2), abs=1e-4)
    assert losses[-1] < losses[0]


def test_sigterm_to_a_single_process_exits_75(data, tmp_path):
    values = tiny.settings(tmp_path, data=data, steps=5000)
    (tmp_path / "config.json").write_text(json.dumps(values))
    with (tmp_path / "log").open("w") as log:
        process = subprocess.Popen(
            [sys.executable, "-m", "model.training.run", str(tmp_path / "config.json")],
            cwd=tiny.ROOT, env={**os.environ, "OMP_NUM_THREADS": "1"}, stdout=log, stderr=log,
        )  # fmt: skip
    tiny.wait_for(tmp_path, 4)
    process.terminate()
    assert process.wait(timeout=60) == 75
