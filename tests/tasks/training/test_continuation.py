"""Going on from another training: the parent is found or refused, and old and new shards come in the right order."""

import fcntl
import json
import uuid

import pytest

from flows import preflight
from tasks.settings.config import ContinueFrom, SteelRun
from tasks.settings.errors import NodeError
from tasks.stage.node import Node
from tasks.stage.tracking import FINGERPRINT, KIND, Tracker
from tasks.training import continuation, pretrain

PRINT = "3f2a91c0ffee0000"


def shard(folder, name, source="a", rows=10, **more):
    path = folder / f"{name}.arrow"
    path.write_bytes(b"")
    return {"path": str(path), "source": source, "rows": rows, "repeats": 1, "digest": f"xxh3:{name}", **more}


@pytest.fixture
def parent(tmp_path):
    """A finished pretrain artifact that keeps two checkpoints; it was trained on two shards."""
    folder = tmp_path / "artifacts" / "pretrain" / f"pretrain-{PRINT}"
    for step in (40, 60):
        at = folder / "checkpoints" / f"step-{step:06d}"
        at.mkdir(parents=True)
        state = {"step": step, "position": step * 2, "seed": 1, "history": [{"position": 0, "blocks": 30}]}
        (at / "state.json").write_text(json.dumps({"step": step, "loader": state}))
    (folder / "checkpoints" / "step-000080.partial").mkdir()
    files = [shard(tmp_path, "one"), shard(tmp_path, "two", "b", repeats=2)]
    (folder / "CONFIG.json").write_text(json.dumps({"data": {"files": files}}))
    return folder


def wanted(run=PRINT[:6], **more):
    return ContinueFrom(run=run, **more)


def test_a_parent_is_found_by_prefix_or_path_at_a_step(parent, tmp_path):
    artifacts = tmp_path / "artifacts"
    newest = continuation.find(wanted(), artifacts)
    assert (newest.fingerprint, newest.step, newest.checkpoint.name) == (PRINT, 60, "step-000060")
    assert continuation.find(wanted(str(parent), step=40), tmp_path / "elsewhere").step == 40
    assert newest.identity == {"parent": PRINT, "step": "60"}
    assert [f["source"] for f in newest.files] == ["a", "b"]


@pytest.mark.parametrize(
    ("asked", "said"),
    [
        ({"run": "beef"}, f"there is no run 'beef' in .*; there are {PRINT}"),
        ({"run": "/nowhere/pretrain-1"}, "there is no folder"),
        ({"run": "/tmp"}, "no artifact of pretrain"),
        ({"step": 50}, "no checkpoint of step 50, only of 40, 60"),
        ({"step": 80}, "no checkpoint of step 80"),
    ],
)
def test_a_parent_that_is_not_there_is_one_clear_line(parent, tmp_path, asked, said):
    with pytest.raises(NodeError, match=said):
        continuation.find(wanted(**asked), tmp_path / "artifacts")


def test_a_stopped_run_can_be_continued_and_one_at_work_cannot(parent, tmp_path):
    work = parent.rename(parent.with_name(parent.name + ".partial"))
    lock = work.with_name(f"pretrain-{PRINT}.lock")
    lock.touch()
    assert continuation.find(wanted(), tmp_path / "artifacts").folder == work
    with lock.open("w") as handle:
        fcntl.flock(handle, fcntl.LOCK_EX)
        with pytest.raises(NodeError, match="still being trained"):
            continuation.find(wanted(), tmp_path / "artifacts")


def test_old_shards_first_in_the_parents_order_then_the_new(parent, tmp_path):
    old = continuation.find(wanted(), tmp_path / "artifacts").files
    moved = {**old[0], "path": str(tmp_path / "elsewhere.arrow")}
    (tmp_path / "elsewhere.arrow").touch()
    new = [shard(tmp_path, "three", "new"), shard(tmp_path, "four", "b")]
    files, notes = continuation.join(old, [new[0], old[1], new[1], moved], "refuse")
    assert [f["digest"][5:] for f in files] == ["one", "two", "three", "four"]
    assert files[0]["path"].endswith("elsewhere.arrow")
    assert notes == ["2 shards of the run to continue, 2 new ones behind them"]
    assert "only prolonged" in continuation.join(old, old, "refuse")[1][-1]


def test_shards_made_anew_are_refused_or_the_parents_are_kept(parent, tmp_path):
    old = continuation.find(wanted(), tmp_path / "artifacts").files
    remade, new = shard(tmp_path, "one-anew", "a"), shard(tmp_path, "three", "new")
    with pytest.raises(NodeError, match="shards of a are not those .*on_changed=keep"):
        continuation.join(old, [remade, old[1], new], "refuse")
    files, notes = continuation.join(old, [remade, old[1], new], "keep")
    assert [f["digest"][5:] for f in files] == ["one", "two", "three"]
    assert notes[1] == "a: made anew since; the parent's shards are kept and 1 new ones left out"
    (tmp_path / "one.arrow").unlink()
    with pytest.raises(NodeError, match="1 shards of the run to continue are gone"):
        continuation.join(old, [remade, old[1], new], "keep")


def test_a_changed_weight_is_refused(parent, tmp_path):
    old = continuation.find(wanted(), tmp_path / "artifacts").files
    with pytest.raises(NodeError, match="weight of b has changed .* 2 times an epoch, now 3"):
        continuation.join(old, [old[0], {**old[1], "repeats": 3}], "refuse")


def test_epochs_count_from_the_parents_start(parent, tmp_path):
    at = continuation.find(wanted(step=40), tmp_path / "artifacts")  # block 80 of 30 an epoch: in the third
    files = [*at.files, shard(tmp_path, "three", "new", rows=12)]
    assert continuation.steps(at.loader_state, at.files, 2, 3) == 45
    assert continuation.steps(at.loader_state, files, 2, 3) == 51
    assert continuation.steps(at.loader_state, files, 4, 4) == 40 + (60 + 42 * 2 - 80) // 4
    with pytest.raises(NodeError, match="counts from the parent's start"):
        continuation.steps(at.loader_state, files, 2, 2)


def test_the_child_is_a_run_of_its_own(parent, tmp_path):
    def node(**more) -> Node:
        run = SteelRun.model_validate(
            {
                "profile": "t",
                "pretrain": {"steps": 90, **more},
                "runtime": {"artifacts": tmp_path / "artifacts"},
            }
        )
        return pretrain.nodes(run)[0]

    plain, child = node(), node(continue_from={"run": PRINT[:8], "step": 40})
    assert plain.external is None
    assert child.external() == {"parent": PRINT, "step": "40", "on_changed": "refuse"}
    # however the parent was named, and whether or not it has finished since
    assert node(continue_from={"run": str(parent), "step": 40}).external() == child.external()
    assert plain.config == child.config
    assert child.body.__module__ == "tasks.training.pretrain"  # what the code digest goes by


def test_a_missing_parent_is_known_before_anything_runs(tmp_path):
    asked = {"pretrain": {"continue_from": {"run": "beef"}}, "runtime": {"artifacts": str(tmp_path)}}
    with pytest.raises(preflight.Wrong, match="there is no run 'beef'"):
        preflight.run(preflight.Request(profile="smoke", overrides=asked))
    number = preflight.assignments("pretrain.continue_from.run=12345678")
    assert SteelRun.model_validate({"profile": "t", "pretrain": {"steps": 1, **number["pretrain"]}})


def test_counts_are_printed_before_the_training():
    files = [
        {"source": "zh", "rows": 100, "repeats": 2, "extra_rows": 50},
        {"source": "en", "rows": 150, "repeats": 1},
        {"source": "zh", "rows": 100, "repeats": 1},
    ]
    table = pretrain.planned(files, 1100)
    assert "| zh | 350 | 700 | 70 |" in table
    assert "| **all** | 500 | 1,000 | 100 |" in table
    shares = pretrain.shares(files)
    assert (shares["mixture/zh"], shares["mixture/en"]) == (pytest.approx(0.7), pytest.approx(0.3))


def test_mlflow_links_the_child_and_the_parent(mlflow_uri):
    tracker = Tracker(mlflow_uri)
    fingerprint = uuid.uuid4().hex * 2
    parent = tracker.start("node", "pretrain", None, {KIND: "node", FINGERPRINT: fingerprint})
    children = [tracker.start("node", "pretrain", None, {KIND: "node"}) for _ in range(2)]
    for child in children:
        tracker.continues(child, fingerprint[:16], 40)
    tracker.continues(children[0], fingerprint[:16], 40)  # a resumed child says so again
    tags = tracker.client.get_run(children[1]).data.tags
    assert (tags["steel.continues_run"], tags["steel.continues_from_step"]) == (parent, "40")
    assert tracker.client.get_run(parent).data.tags["steel.continued_by"] == ",".join(children)
    tracker.continues(children[0], "0" * 16, 7)  # of a parent that this server never saw
    assert tracker.client.get_run(children[0]).data.tags["steel.continues"] == "0" * 16
