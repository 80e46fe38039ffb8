"""What a month brings: a second run, data that changes, ids that are none, a full disk, a bad batch."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from model.training import loop, metrics
from model.training.config import ConfigError, OptimConfig
from model.training.loader import DataError, Prefetch
from model.training.lock import _owner, locked
from model.training.loop import TrainingError
from model.training.shards import Row, file_digest, write_shard
from model.training.spikes import ENOUGH, Skips
from tests.support import engine_helpers as tiny


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    folder = tmp_path_factory.mktemp("shards")
    return {
        "files": [tiny.shard(folder / "a.arrow", 30)],
        "val_files": [tiny.shard(folder / "v.arrow", 5, seed=2)],
    }


@pytest.fixture(scope="module")
def plain(data, tmp_path_factory):
    work = tmp_path_factory.mktemp("plain")
    assert tiny.engine(tiny.settings(work, data=data)) == 0
    return work


# --------------------------------------------------------------------------- one run in a folder
@pytest.mark.parametrize("name", ["run.lock", "metrics.jsonl"])
def test_a_folder_in_the_place_of_a_file_is_one_line(data, tmp_path, name):
    (tmp_path / name).mkdir()
    with pytest.raises(ConfigError, match=rf"work_dir: .*{name} cannot be .*: Is a directory"):
        tiny.engine(tiny.settings(tmp_path, data=data))


@pytest.mark.parametrize("text", ["[1, 2]", "3", '{"pid": 1}', "{", ""])
def test_an_owner_that_cannot_be_read_is_another_run(tmp_path, text):
    (tmp_path / "run.lock").write_text(text)
    assert _owner(tmp_path / "run.lock") == "another run"


def test_a_second_run_on_a_folder_is_told_whose_it_is(data, tmp_path, monkeypatch):
    monkeypatch.setattr("model.training.lock.WAIT_SECONDS", 0.3)
    values = tiny.settings(tmp_path, data=data)
    with (
        locked(tmp_path),
        pytest.raises(ConfigError, match=rf"in use by process {os.getpid()} on .* since 20"),
    ):
        tiny.engine(values)
    assert not (tmp_path / "metrics.jsonl").exists()
    assert tiny.engine(values) == 0
    assert not (tmp_path / "run.lock").exists()


def test_what_a_killed_run_leaves_does_not_lock_its_folder(data, plain, tmp_path):
    script = """
import os, signal, sys
from pathlib import Path
from model.training.lock import locked
with locked(Path(sys.argv[1])):
    os.kill(os.getpid(), signal.SIGKILL)
"""
    subprocess.run([sys.executable, "-c", script, str(tmp_path)], cwd=tiny.ROOT, check=False)
    assert (tmp_path / "run.lock").exists()
    assert tiny.engine(tiny.settings(tmp_path, data=data)) == 0
    assert tiny.metrics(tmp_path) == tiny.metrics(plain)
    assert not (tmp_path / "run.lock").exists()


# --------------------------------------------------------------------------------- changing data
def at_step(monkeypatch, step: int, action) -> None:
    """Have `action` happen before the batch of a step is read."""
    read = Prefetch.batch

    def batch(self, number):
        if number == step:
            action()
        return read(self, number)

    monkeypatch.setattr(Prefetch, "batch", batch)


def overwrite(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)
    os.utime(path, ns=(1, 1))  # another time than the file had, also on a coarse clock


CHANGES = {
    "overwritten": overwrite,
    "cut short": lambda path: os.truncate(path, path.stat().st_size // 2),
    "emptied": lambda path: os.truncate(path, 0),
    "grown": lambda path: os.truncate(path, path.stat().st_size + 4096),
    "removed": Path.unlink,
}


@pytest.mark.parametrize("known", [False, True])
@pytest.mark.parametrize("how", CHANGES)
def test_a_shard_that_changes_under_the_run_ends_it_in_one_line(data, tmp_path, monkeypatch, how, known):
    path = tmp_path / "a.arrow"
    shutil.copyfile(data["files"][0]["path"], path)
    file = {"path": str(path), **({"digest": file_digest(path)} if known else {})}
    at_step(monkeypatch, 3, lambda: CHANGES[how](path))
    with pytest.raises(DataError, match=r"a\.arrow has changed or is gone") as refused:
        tiny.engine(tiny.settings(tmp_path / "run", data={"files": [file]}))
    assert "\n" not in str(refused.value)


def test_a_shard_that_was_only_touched_or_copied_anew_is_the_same(data, plain, tmp_path, monkeypatch):
    path = tmp_path / "a.arrow"
    shutil.copyfile(data["files"][0]["path"], path)
    file = {"path": str(path), "digest": file_digest(path), "source": "a"}

    def anew():
        shutil.copyfile(path, tmp_path / "copy")
        os.replace(tmp_path / "copy", path)
        os.utime(path, ns=(1, 1))

    at_step(monkeypatch, 3, anew)
    assert tiny.engine(tiny.settings(tmp_path / "run", data={**data, "files": [file]})) == 0
    assert tiny.metrics(tmp_path / "run") == tiny.metrics(plain)


# ------------------------------------------------------------------------------------- token ids
def with_id(path: Path, number: int) -> dict[str, str]:
    tokens = np.arange(tiny.BLOCK + 1, dtype=np.uint32)
    rows = [Row(tokens, np.zeros(1, np.int32), [bytes(16)], tiny.BLOCK + 1) for _ in range(1500)]
    tokens = tokens.copy()
    tokens[7] = number
    rows.append(Row(tokens, np.zeros(1, np.int32), [bytes(16)], tiny.BLOCK + 1))  # in the second record batch
    write_shard(path, rows, tiny.BLOCK)
    return {"path": str(path)}


@pytest.mark.parametrize("number", [tiny.VOCAB, 300_000, 2**31 + 5])
@pytest.mark.parametrize("place", ["files", "val_files"])
def test_an_id_beyond_the_vocabulary_is_refused_before_the_first_step(data, tmp_path, number, place):
    bad = with_id(tmp_path / "bad.arrow", number)
    more = {**data, place: [*data[place], bad]}
    with pytest.raises(
        DataError, match=rf"bad\.arrow holds the token id {number}; the model has {tiny.VOCAB} tokens"
    ):
        tiny.engine(tiny.settings(tmp_path / "run", data=more))
    assert not (tmp_path / "run/metrics.jsonl").exists()


def test_the_last_id_of_the_vocabulary_is_one(data, tmp_path):
    good = with_id(tmp_path / "good.arrow", tiny.VOCAB - 1)
    assert tiny.engine(tiny.settings(tmp_path / "run", data={"files": [*data["files"], good]}, steps=2)) == 0


def test_pairs_with_an_id_beyond_the_vocabulary_are_refused(plain, tmp_path):
    pairs = tiny.pairs(tmp_path / "pairs.arrow", 9)
    start = tmp_path / "small"
    small = {"model": {**tiny.MODEL, "vocab_size": 150}, "steps": 2}
    data = {"files": [with_id(tmp_path / "low.arrow", 3)]}
    assert tiny.engine(tiny.settings(start, data=data, **small)) == 0
    values = tiny.settings(
        tmp_path / "ref",
        objective="logprobs",
        steps=None,
        data={"files": [pairs]},
        init_from=str(start / "export"),
    )
    with pytest.raises(DataError, match=r"holds the token id 1\d\d; the model has 150 tokens"):
        tiny.engine(values)


# ----------------------------------------------------------------------------------- a full disk
def test_a_full_disk_costs_lines_of_the_curve(plain, data, tmp_path, monkeypatch, caplog):
    """The disk is full for the second line, of which it takes the first bytes."""
    write, calls = os.pwrite, []

    def full(handle, text, at):
        calls.append(at)
        if len(calls) == 2:
            return write(handle, text[:9], at)
        if len(calls) == 3:
            raise OSError(28, "No space left on device")
        return write(handle, text, at)

    monkeypatch.setattr(metrics.os, "pwrite", full)
    monkeypatch.setattr("model.training.lock._take", lambda path: os.open(path, os.O_CREAT | os.O_RDWR))
    assert tiny.engine(tiny.settings(tmp_path, data=data)) == 0
    assert "a line of metrics.jsonl is lost (1 so far): [Errno 28] No space left on device" in caplog.text
    whole = tiny.metrics(plain)
    assert tiny.metrics(tmp_path) == [whole[0], *whole[2:]]
    assert (tmp_path / "export/model.safetensors").read_bytes() == (
        plain / "export/model.safetensors"
    ).read_bytes()


# ----------------------------------------------------------------------------------- bad batches
def spoil(monkeypatch, steps: dict[int, float]) -> None:
    """Multiply a value of the gradients of some steps (by their number, from 0)."""
    clip, made = loop.clip, iter(range(10_000))

    def spoiled(gradients, *rest):
        if (factor := steps.get(next(made))) is not None:
            gradients[0].mul_(factor)
        return clip(gradients, *rest)

    monkeypatch.setattr(loop, "clip", spoiled)


NAN = float("nan")


@pytest.mark.parametrize("value", [NAN, float("inf")])
def test_a_gradient_that_is_not_finite_ends_the_run_by_default(data, tmp_path, monkeypatch, value):
    spoil(monkeypatch, {2: value})
    with pytest.raises(TrainingError, match="the gradient of step 3 is not finite"):
        tiny.engine(tiny.settings(tmp_path, data=data))


def test_it_can_be_left_out_and_a_resumed_run_leaves_out_the_same(data, tmp_path, monkeypatch, caplog):
    optim = {"lr": 3e-3, "warmup_steps": 2, "max_skipped": 2}
    whole = tiny.settings(tmp_path / "whole", data=data, optim=optim, steps=8, log_every=1)
    with monkeypatch.context() as patch:
        spoil(patch, {2: NAN, 3: float("inf"), 5: NAN})
        assert tiny.engine(whole) == 0
    assert "step 4 is left out (2 so far): its gradient is not finite" in caplog.text
    lines = [line for line in tiny.metrics(tmp_path / "whole") if "lr" in line]
    assert [line["skipped"] for line in lines] == [0, 0, 1, 2, 2, 3, 3, 3]
    assert [line["step"] for line in lines if "loss" not in line] == [3, 4, 6]
    assert all(torch.isfinite(torch.from_numpy(w)).all() for w in tiny.weights(tmp_path / "whole").values())
    # stopped after the first two: the count of updates, which AdamW's correction needs, is that of those made
    parts = {**whole, "work_dir": str(tmp_path / "parts")}
    with monkeypatch.context() as patch:
        spoil(patch, {2: NAN, 3: float("inf")})
        assert tiny.engine(parts, tiny.StopAt(5)) == 75
    with monkeypatch.context() as patch:
        spoil(patch, {0: NAN})
        assert tiny.engine(parts) == 0
    assert tiny.metrics(tmp_path / "parts") == tiny.metrics(tmp_path / "whole")
    ours, theirs = (tmp_path / n / "export/model.safetensors" for n in ("parts", "whole"))
    assert ours.read_bytes() == theirs.read_bytes()


def test_too_many_in_a_row_end_the_run(data, tmp_path, monkeypatch):
    spoil(monkeypatch, {1: NAN, 3: NAN, 4: NAN, 5: NAN})
    values = tiny.settings(tmp_path, data=data, optim={"lr": 3e-3, "max_skipped": 2})
    with pytest.raises(
        TrainingError, match="step 6 is one too many to leave out: its gradient is not finite"
    ):
        tiny.engine(values)


def test_a_spike_of_the_gradient_is_left_out(data, tmp_path, monkeypatch, caplog):
    spoil(monkeypatch, {ENOUGH + 4: 1e4})
    optim = {"lr": 1e-3, "max_skipped": 1, "spike_factor": 10.0}
    assert tiny.engine(tiny.settings(tmp_path, data=data, optim=optim, steps=ENOUGH + 6, save_every=99)) == 0
    said = [r.getMessage() for r in caplog.records if "left out" in r.getMessage()]
    assert len(said) == 1
    assert f"step {ENOUGH + 5} is left out (1 so far): its gradient norm" in said[0]


def test_a_spike_is_what_lies_far_above_the_mean_of_enough_steps():
    early = Skips(OptimConfig(max_skipped=1, spike_factor=10.0))
    assert all(early.reason(loss, 0.5) is None for loss in [2.0] * (ENOUGH - 1) + [200.0])
    skips = Skips(OptimConfig(max_skipped=1, spike_factor=10.0))
    for _ in range(ENOUGH):
        assert skips.reason(2.0, 0.5) is None
    assert skips.reason(19.9, 4.9) is None
    assert "its loss" in skips.reason(200.0, 0.5)
    assert skips.skip()
    assert "its gradient norm" in skips.reason(2.0, 500.0)
    assert not skips.skip()  # two in a row, one is allowed
    again = Skips(OptimConfig(max_skipped=1, spike_factor=10.0), json.loads(json.dumps(skips.state())))
    assert again.reason(200.0, 0.5) == skips.reason(200.0, 0.5)


def test_without_spikes_the_same_weights(plain, data, tmp_path):
    optim = {"lr": 3e-3, "warmup_steps": 2, "max_skipped": 3, "spike_factor": 50.0}
    assert tiny.engine(tiny.settings(tmp_path, data=data, optim=optim)) == 0
    assert (tmp_path / "export/model.safetensors").read_bytes() == (
        plain / "export/model.safetensors"
    ).read_bytes()
