"""What goes from the store is what no newest run was made from; what somebody writes stays."""

from __future__ import annotations

import json
import os
import time

import pytest

from tasks.inspect import prune
from tasks.stage.store import Store

DAY = 86_400


@pytest.fixture
def store(tmp_path):
    return Store(tmp_path)


def make(store, node, fingerprint, inputs=(), age=30.0, **more):
    """A finished artifact of some days."""
    fingerprint = fingerprint * 64
    work = store.work(node, fingerprint)
    work.mkdir(parents=True)
    (work / "file").write_text("x" * 1000)
    used = {f"r{i}": {"node": n, "fingerprint": f * 64, "digest": "d"} for i, (n, f) in enumerate(inputs)}
    with store.lock(node, fingerprint):
        store.publish(
            node,
            fingerprint,
            {"node": node, "run_id": f"run-{node}-{fingerprint[0]}", "inputs": used, **more},
        )
    path = store.final(node, fingerprint)
    aged(path, age)
    return path


def aged(path, days):
    then = time.time() - days * DAY
    for each in [*path.rglob("*"), path]:
        os.utime(each, (then, then))


def latest(store, profile, *runs, folder=""):
    path = store.root / "latest" / profile / folder
    path.mkdir(parents=True, exist_ok=True)
    nodes = [{"name": "n", "run_id": run} for run in runs]
    (path / "run.json").write_text(json.dumps({"stages": [{"name": "s", "nodes": nodes}]}))


def going(store, days=7.0):
    return {item.path: item.kind for item in prune.candidates(store.root, days)}


def test_what_a_newest_run_used_and_was_made_from_stays(store):
    raw = make(store, "download:a", "1")
    records = make(store, "convert:a", "2", [("download:a", "1")])
    study = make(store, "ablation:x", "5", [("convert:a", "2")])
    old = make(store, "convert:a", "3", [("download:a", "1")])
    young = make(store, "convert:a", "4", age=1)
    latest(store, "demo", "run-convert:a-2")
    latest(store, "demo", "run-ablation:x-5", folder="ffn-ablation")
    assert going(store) == {old: "artifact"}
    assert set(going(store, 0.5)) == {old, young}
    assert raw.exists()
    assert records.exists()
    assert study.exists()


def test_the_parent_of_a_continued_training_stays(store):
    parent = make(store, "pretrain", "1")
    make(store, "pretrain", "2", identity={"external": {"continues": "1" * 64}})
    other = make(store, "pretrain", "3")
    latest(store, "demo", "run-pretrain-2")
    assert going(store) == {other: "artifact"}
    assert parent.exists()


def test_without_a_newest_run_all_artifacts_stay(store):
    make(store, "download:a", "1")
    assert going(store) == {}


def test_half_made_work_goes_unless_somebody_writes_it(store):
    work = store.work("pretrain", "1" * 64)
    work.mkdir(parents=True)
    (work / "file").write_text("half")
    store.begin("pretrain", "1" * 64, "run", "flow")
    aged(work, 30)
    with store.lock("pretrain", "1" * 64):
        assert going(store) == {}
    assert going(store) == {work: "half-made"}
    list(prune.remove(prune.candidates(store.root, 7)))
    assert not work.exists()
    assert store.begun("pretrain", "1" * 64) == {}


def test_removal_takes_the_name_away_first_and_is_finished_by_the_next(store, monkeypatch):
    make(store, "download:a", "1")
    path = make(store, "download:a", "2")
    latest(store, "demo", "run-download:a-1")

    def die(path):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(prune.shutil, "rmtree", die)
        with pytest.raises(KeyboardInterrupt):
            list(prune.remove(prune.candidates(store.root, 7)))
    assert not path.exists()
    [item] = prune.candidates(store.root, 7)
    assert item.kind == "left over"
    assert [gone.path for gone in prune.remove([item])] == [item.path]
    assert prune.candidates(store.root, 7) == []


def test_pieces_go_by_age_and_linked_files_count_once(store):
    piece = store.root / "convert" / ".partitions" / "abc"
    piece.mkdir(parents=True)
    (piece / "part").write_text("x" * 500)
    (piece / "done.json").write_text("{}")
    os.link(piece / "part", store.root / "elsewhere")
    aged(piece, 30)
    [item] = prune.candidates(store.root, 7)
    assert (item.kind, item.size) == ("pieces", 2)
