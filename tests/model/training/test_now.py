"""What a training says between two lines of its metrics."""

from __future__ import annotations

import logging

import pytest

from model.training import now
from model.training.now import Now, read
from tests.support import engine_helpers as tiny


@pytest.fixture
def clock(monkeypatch):
    time = [100.0]
    monkeypatch.setattr(now.time, "monotonic", lambda: time[0])
    return time


def test_what_is_counted_is_told_every_two_seconds_and_logged_every_minute(tmp_path, clock, caplog):
    seen = []
    with caplog.at_level(logging.INFO), Now(tmp_path, active=True) as doing:
        for done in range(130):
            doing.count("validation", done, 1200, "batches")
            seen.append(read(tmp_path))
            clock[0] += 1
    assert seen[:2] == ["", ""]  # what is soon over is not worth a word
    assert seen[2:5] == ["validation: 2 of 1,200 batches"] * 2 + ["validation: 4 of 1,200 batches"]
    assert caplog.messages == ["validation: 60 of 1,200 batches", "validation: 120 of 1,200 batches"]


def test_another_thing_that_is_counted_begins_anew(tmp_path, clock):
    with Now(tmp_path, active=True) as doing:
        doing.at("reads the model")
        clock[0] += 3
        doing.count("validation", 0, 9, "batches")
        assert read(tmp_path) == "reads the model"
        clock[0] += 3
        doing.count("validation", 1, 9, "batches")
        assert read(tmp_path) == "validation: 1 of 9 batches"
        doing.rest()
        assert read(tmp_path) == ""


def test_nothing_is_left_of_it_also_not_of_one_that_was_killed(tmp_path):
    (tmp_path / now.FILE).write_text("validation: 3 of 9 batches")
    (tmp_path / f"{now.FILE}.partial").write_text("valid")
    with Now(tmp_path, active=True) as doing:
        assert not list(tmp_path.iterdir())
        doing.at("writes the export")
        assert [path.name for path in tmp_path.iterdir()] == [now.FILE]
    assert not list(tmp_path.iterdir())


def test_other_ranks_say_nothing(tmp_path):
    with Now(tmp_path, active=False) as doing:
        doing.at("reads the model")
        assert not list(tmp_path.iterdir())


def test_a_disk_that_cannot_be_written_is_said_and_ends_nothing(tmp_path, caplog):
    with Now(tmp_path / "missing", active=True) as doing:
        doing.at("reads the model")
    assert "cannot be written" in caplog.text


@pytest.fixture
def said(monkeypatch):
    """Everything that is said in a run, however fast."""
    texts = []
    monkeypatch.setattr(now, "SECONDS", 0.0)
    monkeypatch.setattr(Now, "_write", lambda self, text: texts.append(text))
    return texts


def test_a_training_says_what_it_is_at_before_between_and_behind_its_steps(tmp_path, said):
    data = {
        "files": [tiny.shard(tmp_path / "a.arrow", 12)],
        "val_files": [tiny.shard(tmp_path / "b.arrow", 9)],
    }
    assert tiny.engine(tiny.settings(tmp_path, data=data, steps=2, eval_every=1)) == 0
    validation = [f"validation: {done} of 3 batches" for done in range(3)]
    assert said == [
        "checks the data",
        "reads the checkpoint and the model",
        *validation * 2,
        "writes the last checkpoint and the export",
    ]
    said.clear()
    tiny.pairs(tmp_path / "pairs.arrow", 7)
    values = tiny.settings(
        tmp_path / "reference",
        objective="logprobs",
        data={"files": [{"path": str(tmp_path / "pairs.arrow")}]},
        batch_size=5,
        steps=None,
        init_from=str(tmp_path / "export"),
    )
    assert tiny.engine(values) == 0
    assert said == ["reads the model", "scores the pairs: 0 of 2 batches", "scores the pairs: 1 of 2 batches"]
    assert not list(tmp_path.rglob(f"{now.FILE}*"))
