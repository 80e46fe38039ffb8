"""Checkpoints that lie: what was damaged on the disk, or holds no numbers, is named, and the one before is taken."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch

from model.training import checkpoint
from model.training.checkpoint import DamagedError, read_state
from model.training.config import ConfigError
from model.training.loop import TrainingError
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
    """An uninterrupted run."""
    work = tmp_path_factory.mktemp("plain")
    assert tiny.engine(tiny.settings(work, data=data)) == 0
    return work


@pytest.fixture(scope="module")
def stopped(data, tmp_path_factory):
    """One that was stopped before step 5, with checkpoints of steps 2 and 4."""
    work = tmp_path_factory.mktemp("stopped")
    assert tiny.engine(tiny.settings(work, data=data, save_every=2), tiny.StopAt(4)) == 75
    return work


def largest(folder: Path) -> Path:
    return max(folder.glob("*.distcp"), key=lambda path: path.stat().st_size)


def flip(path: Path, share: float = 0.5) -> None:
    content = bytearray(path.read_bytes())
    content[int(len(content) * share)] ^= 1
    path.write_bytes(content)


def shorten(path: Path) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def step_one_more(folder: Path) -> None:
    path = folder / "state.json"
    path.write_text(path.read_text().replace('"tokens": ', '"tokens": 1'))


DAMAGE = {
    "a flipped bit": lambda at: flip(largest(at)),
    "a flipped bit at the end": lambda at: flip(largest(at), 0.99),
    "cut short": lambda at: shorten(largest(at)),
    "emptied": lambda at: largest(at).write_bytes(b""),
    "zeroed": lambda at: largest(at).write_bytes(bytes(largest(at).stat().st_size)),
    "a missing part": lambda at: largest(at).unlink(),
    "metadata cut short": lambda at: shorten(at / ".metadata"),
    "an empty state": lambda at: (at / "state.json").write_text(""),
    "a state of another kind": lambda at: (at / "state.json").write_text("[]"),
    "another number in the state": step_one_more,
    "a missing state": lambda at: (at / "state.json").unlink(),
    "a state of one number": lambda at: (at / "state.json").write_text('{"step": 4}'),
    "a state of odd parts": lambda at: (at / "state.json").write_text(
        '{"step": 4, "files": [], "finite": 1}'
    ),
}


@pytest.mark.parametrize("how", DAMAGE)
def test_a_damaged_checkpoint_is_named_and_the_older_one_taken(plain, stopped, data, tmp_path, caplog, how):
    work = tmp_path / "work"
    shutil.copytree(stopped, work)
    DAMAGE[how](work / "checkpoints/step-000004")
    with caplog.at_level("INFO", "steel.training"):
        assert tiny.engine(tiny.settings(work, data=data)) == 0
    (line,) = [r.getMessage() for r in caplog.records if r.levelname == "ERROR"]
    assert "step-000004" in line
    assert "\n" not in line
    assert f"resumed from {work / 'checkpoints/step-000002'}" in caplog.text
    assert (work / "checkpoints/damaged-step-000004").is_dir()
    assert tiny.metrics(work) == tiny.metrics(plain)
    ours, theirs = (w / "export/model.safetensors" for w in (work, plain))
    assert ours.read_bytes() == theirs.read_bytes()


@pytest.mark.parametrize("how", ["a flipped bit", "a missing state"])
def test_with_no_sound_checkpoint_nothing_is_begun_anew_however_often_it_is_tried(
    stopped, data, tmp_path, how
):
    work = tmp_path / "work"
    shutil.copytree(stopped, work)
    for at in (work / "checkpoints").glob("step-*"):
        DAMAGE[how](at)
    before = (work / "metrics.jsonl").read_bytes()
    parent = str(stopped / "checkpoints/step-000004")
    for more in ({}, {}, {"continue_from": parent}):
        with pytest.raises(ConfigError, match="none of the 2 checkpoints"):
            tiny.engine(tiny.settings(work, data=data, **more))
        assert (work / "metrics.jsonl").read_bytes() == before


def test_files_of_a_stranger_under_names_of_ours_are_no_obstacle(plain, stopped, data, tmp_path):
    work = tmp_path / "work"
    shutil.copytree(stopped, work)
    flip(largest(work / "checkpoints/step-000004"))
    for name in ("odd.partial", "removed-odd"):
        (work / "checkpoints" / name).write_text("not a folder")
    (work / "checkpoints/damaged-step-000004").write_text("not a folder")
    assert tiny.engine(tiny.settings(work, data=data)) == 0
    assert tiny.metrics(work) == tiny.metrics(plain)


def test_a_run_that_has_had_more_steps_than_it_is_to_have_says_so(stopped, data, tmp_path):
    work = tmp_path / "work"
    shutil.copytree(stopped, work)
    with pytest.raises(ConfigError, match=r"step-000004 is of step 4, and the run is to have 3 steps"):
        tiny.engine(tiny.settings(work, data=data, steps=3))


def test_a_damaged_checkpoint_is_not_continued_from(stopped, data, tmp_path):
    at = tmp_path / "step-000004"
    shutil.copytree(stopped / "checkpoints/step-000004", at)
    flip(largest(at))
    with pytest.raises(ConfigError, match=r"continue_from: .*\.distcp has changed"):
        tiny.engine(tiny.settings(tmp_path / "work", data=data, continue_from=str(at)))


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_numbers_that_are_not_finite_are_saved_under_that_name_and_not_loaded(
    plain, data, tmp_path, monkeypatch, caplog, value
):
    begin = checkpoint.Checkpoints.save

    def spoil(self, step, model, *rest):
        if step == 4:
            with torch.no_grad():
                weight = next(p for name, p in model.named_parameters() if "lm_head" in name)
                (weight.to_local() if hasattr(weight, "to_local") else weight)[0, 0] = value
        begin(self, step, model, *rest)

    values = tiny.settings(tmp_path, data=data, keep_checkpoints=1)
    monkeypatch.setattr(checkpoint.Checkpoints, "save", spoil)
    with pytest.raises(TrainingError, match="not finite"):
        tiny.engine(values)
    assert "step 4 holds numbers that are not finite" in caplog.text
    assert read_state(tmp_path / "checkpoints/step-000004")["finite"] is False
    assert (tmp_path / "checkpoints/step-000002").is_dir()  # the good one stays, though one is to be kept
    monkeypatch.undo()
    assert tiny.engine(values) == 0
    assert "damaged-step-000004" in caplog.text
    assert tiny.metrics(tmp_path) == tiny.metrics(plain)


def test_a_checkpoint_of_an_earlier_engine_is_loaded_and_said(plain, stopped, data, tmp_path, caplog):
    work = tmp_path / "work"
    shutil.copytree(stopped, work)
    path = work / "checkpoints/step-000004/state.json"
    state = json.loads(path.read_text())
    kept = ("loader", "step", "tokens", "window", "sources")  # without `sources` losses by source begin anew
    old = json.dumps({k: v for k, v in state.items() if k in kept})
    path.write_text(old)
    broken = tmp_path / "broken/checkpoints/step-000004"
    shutil.copytree(path.parent, broken)
    shorten(broken / ".metadata")
    assert tiny.engine(tiny.settings(work, data=data)) == 0
    assert "step-000004 was written without hashes and settings" in caplog.text
    assert tiny.metrics(work) == tiny.metrics(plain)
    with pytest.raises(ConfigError, match="step-000004 cannot be loaded"):
        tiny.engine(tiny.settings(tmp_path / "broken", data=data))


def test_state_names_every_file_by_its_content_and_the_runs_configuration(stopped):
    at = stopped / "checkpoints/step-000004"
    state = read_state(at)
    assert set(state["files"]) == {p.name for p in at.iterdir()} - {"state.json"}
    assert state["finite"] is True
    assert state["config"]["optim"]["lr"] == 3e-3
    with pytest.raises(DamagedError):
        read_state(at / "nowhere")


def test_training_goes_on_while_a_save_is_written(plain, data, tmp_path, monkeypatch):
    """A save that takes long is waited for by the next one, not by the steps; what it writes is the step it was of."""
    import threading

    begun, go_on = [], threading.Event()
    write = checkpoint.Checkpoints._write

    def slow(self, step, *rest):
        begun.append(step)
        assert go_on.wait(30)
        write(self, step, *rest)

    steps = []

    class Seen(tiny.StopAt):
        @property
        def requested(self):
            steps.append(len(steps))
            if len(steps) == 4:  # before the fourth step; the save of step 2 has not ended
                assert begun == [2]
                go_on.set()
            return False

    monkeypatch.setattr(checkpoint.Checkpoints, "_write", slow)
    assert tiny.engine(tiny.settings(tmp_path, data=data), Seen(99)) == 0
    for step in (2, 4):
        ours, theirs = (read_state(w / f"checkpoints/step-{step:06d}") for w in (tmp_path, plain))
        assert ours["window"] == theirs["window"]
        assert ours["files"]["__0_0.distcp"] == theirs["files"]["__0_0.distcp"]


def test_every_nth_checkpoint_is_kept(data, tmp_path):
    values = tiny.settings(tmp_path, data=data, steps=14, save_every=2, keep_checkpoints=1, keep_every=3)
    assert tiny.engine(values) == 0
    assert sorted(p.name for p in (tmp_path / "checkpoints").iterdir()) == ["step-000006", "step-000012"]


def test_a_full_disk_costs_a_save_and_not_the_run(plain, data, tmp_path, monkeypatch, caplog):
    write = checkpoint._write_state

    def full(folder, state):
        if state["step"] == 4:
            raise OSError(28, "No space left on device")
        write(folder, state)

    monkeypatch.setattr(checkpoint, "_write_state", full)
    assert tiny.engine(tiny.settings(tmp_path, data=data)) == 0
    assert "the checkpoint at step 4 could not be saved: [Errno 28] No space left on device" in caplog.text
    assert [p.name for p in (tmp_path / "checkpoints").iterdir()] == ["step-000002"]
    assert tiny.metrics(tmp_path) == tiny.metrics(plain)
    assert np.array_equal(*(tiny.weights(w)["lm_head.weight"] for w in (tmp_path, plain)))
    # a run that is told to stop has failed if it cannot save
    with pytest.raises(TrainingError, match="without a checkpoint"):
        tiny.engine(tiny.settings(tmp_path / "stopped", data=data), tiny.StopAt(4))


def test_a_kill_in_the_midst_of_a_removal_leaves_no_half_checkpoint(
    plain, stopped, data, tmp_path, monkeypatch
):
    """The folder has lost its name before its first file."""
    work = tmp_path / "work"
    shutil.copytree(stopped, work)
    monkeypatch.setattr(
        checkpoint.shutil, "rmtree", lambda path, **_: (_ for _ in ()).throw(KeyboardInterrupt)
    )
    with pytest.raises(KeyboardInterrupt):
        checkpoint._remove(work / "checkpoints/step-000004")
    monkeypatch.undo()
    assert sorted(p.name for p in (work / "checkpoints").iterdir()) == ["removed-step-000004", "step-000002"]
    assert tiny.engine(tiny.settings(work, data=data)) == 0
    assert not (work / "checkpoints/removed-step-000004").exists()
    assert tiny.metrics(work) == tiny.metrics(plain)
