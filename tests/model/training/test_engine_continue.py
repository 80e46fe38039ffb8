"""Data that joins during training: what the engine really reads is the planned stream, through crash and append."""

import json
import os
import signal
from pathlib import Path

import pytest

from model.training.config import ConfigError
from model.training.loader import DataError
from model.training.shards import file_digest
from tests.support import engine_helpers as tiny
from tests.support.recording_engine import consumed, planned, recording

RECORDING = "tests.support.recording_engine"


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    folder = tmp_path_factory.mktemp("shards")
    made = [tiny.shard(folder / f"{n}.arrow", rows, seed=n) for n, rows in enumerate((13, 9, 11))]
    return [{**f, "repeats": 1 + n % 2, "digest": file_digest(Path(f["path"]))} for n, f in enumerate(made)]


def stream(steps: dict[int, list[str]]) -> list[str]:
    assert sorted(steps) == list(range(len(steps)))
    return [row for step in range(len(steps)) for row in steps[step]]


def test_train_stop_append_crash_resume_is_the_planned_stream(files, tmp_path):
    """31 blocks an epoch; two shards join at step 5, the batch grows from 4 to 6; 42 blocks from then on."""
    parent, child = tmp_path / "parent", tmp_path / "child"
    first = tiny.settings(parent, data={"files": files[:2]}, steps=40)
    with recording(parent):
        parent.mkdir()
        assert tiny.engine(first, tiny.StopAt(5)) == 75
    more = tiny.settings(
        child, data={"files": files}, steps=15, batch_size=6, keep_final=True, keep_checkpoints=20,
        continue_from=str(parent / "checkpoints/step-000005"),
    )  # fmt: skip
    child.mkdir()
    with recording(child):
        assert tiny.engine(more, tiny.StopAt(5)) == 75
        # what a crash after the checkpoint leaves: the next start reads the same steps again
        assert tiny.engine({**more, "micro_batch_size": 2}) == 0
    begins = json.loads((child / "checkpoints/step-000010/state.json").read_text())
    assert begins["loader"]["history"][1]["position"] == 20
    read = {s: rows for s, rows in consumed(parent).items() if s < 5} | consumed(child)
    assert [len(rows) for rows in read.values()] == [4] * 5 + [6] * 10
    assert stream(read) == planned([(0, files[:2]), (20, files)], 1234, range(20 + 60))
    assert [line["step"] for line in tiny.metrics(child) if "loss" in line] == [6, 8, 10, 12, 14, 15]
    assert tiny.metrics(child)[-1]["step"] == 15
    # the final checkpoint is there, and continues in turn
    final = json.loads((child / "checkpoints/step-000015/state.json").read_text())
    assert final["step"] == 15
    assert [s["batch_size"] for s in final["loader"]["strides"]] == [4, 6]


def test_without_new_data_a_continuation_is_the_uninterrupted_run(files, tmp_path):
    data = {"files": files[:2]}
    assert tiny.engine(tiny.settings(tmp_path / "whole", data=data, steps=8)) == 0
    parent = tiny.settings(tmp_path / "parent", data=data, steps=8, save_every=4)
    assert tiny.engine(parent) == 0
    child = {"continue_from": str(tmp_path / "parent/checkpoints/step-000004")}
    assert tiny.engine(tiny.settings(tmp_path / "child", data=data, steps=8, **child)) == 0
    ours, theirs = (tmp_path / n / "export/model.safetensors" for n in ("child", "whole"))
    assert ours.read_bytes() == theirs.read_bytes()
    assert tiny.metrics(tmp_path / "child") == [m for m in tiny.metrics(tmp_path / "whole") if m["step"] > 4]


def test_the_checkpoint_before_the_decay_and_the_last_one_are_kept(files, tmp_path):
    optim = {"lr": 1e-3, "schedule": "wsd", "warmup_steps": 0, "decay_share": 0.5}
    values = tiny.settings(
        tmp_path, data={"files": files[:1]}, steps=10, optim=optim, keep_final=True, keep_checkpoints=1
    )
    assert tiny.engine(values) == 0
    assert sorted(p.name for p in (tmp_path / "checkpoints").iterdir()) == ["step-000005", "step-000010"]


def test_what_cannot_be_continued_is_refused(files, tmp_path):
    parent = tiny.settings(tmp_path / "parent", data={"files": files[:2]}, steps=3)
    assert tiny.engine(parent) == 0
    at = str(tmp_path / "parent/checkpoints/step-000002")

    def refused(error, match, **more):
        values = {"data": {"files": files}, "continue_from": at, "steps": 9, **more}
        with pytest.raises(error, match=match):
            tiny.engine(tiny.settings(tmp_path / "child", **values))

    refused(ConfigError, "no complete checkpoint", continue_from=str(tmp_path / "parent"))
    refused(ConfigError, "steps count on", steps=2)
    refused(DataError, "other data", data={"files": files[1:]})
    refused(DataError, "same content", data={"files": [*files, files[0]]})
    refused(ConfigError, "seed was 1234, is 1, and cannot be changed", seed=1)
    refused(ConfigError, "another model", model={**tiny.MODEL, "hidden_size": 64})


def test_a_flipped_byte_is_found_before_the_first_step(files, tmp_path):
    bad = tmp_path / "bad.arrow"
    content = bytearray(Path(files[0]["path"]).read_bytes())
    content[len(content) // 2] ^= 1
    bad.write_bytes(content)
    data = {"files": [files[1], {**files[0], "path": str(bad)}]}
    with pytest.raises(DataError, match="bad.arrow"):
        tiny.engine(tiny.settings(tmp_path / "run", data=data))
    assert not (tmp_path / "run" / "metrics.jsonl").exists()


@pytest.mark.slow
def test_train_kill_append_resume_on_other_ranks(files, tmp_path):
    """The real engine under torchrun: two ranks killed, data appended on one, killed again, three ranks to the end."""
    parent, child = tmp_path / "parent", tmp_path / "child"
    first = tiny.settings(
        parent, data={"files": files[:2]}, steps=2000, batch_size=6, save_every=4, keep_checkpoints=500
    )
    process = tiny.start(first, 2, RECORDING)
    tiny.wait_for(parent, 10, saved=8)
    children = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
    os.kill(int(children[0]), signal.SIGKILL)
    assert process.wait(timeout=120) != 0
    at = parent / "checkpoints/step-000008"
    more = tiny.settings(
        child, data={"files": files}, steps=80, batch_size=6, save_every=5, log_every=1, continue_from=str(at)
    )
    process = tiny.start(more, 1, RECORDING)
    tiny.wait_for(child, 22, saved=15)
    children = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
    os.kill(int(children[-1]), signal.SIGKILL)
    assert process.wait(timeout=120) != 0
    assert tiny.start(more, 3, RECORDING).wait(timeout=240) == 0, (child / "log").read_text()[-3000:]
    assert "resumed from" in (child / "log").read_text().rpartition("on 3 x")[2]
    read = {s: rows for s, rows in consumed(parent).items() if s < 8} | consumed(child)
    assert stream(read) == planned([(0, files[:2]), (48, files)], 1234, range(80 * 6))
