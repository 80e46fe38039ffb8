"""Restarts inside torchrun: a rank that dies costs the steps since the checkpoint, what cannot be mended is not tried
again, and no rank waits for one that has ended."""

import json
import time
from pathlib import Path

import pytest

from tests.support import engine_helpers as tiny
from tests.support.ranks import trained

DYING = "tests.support.dying_engine"


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    folder = tmp_path_factory.mktemp("shards")
    return {
        "files": [tiny.shard(folder / "a.arrow", 40)],
        "val_files": [tiny.shard(folder / "v.arrow", 5, seed=1)],
    }


def settings(work: Path, data: dict, **more) -> dict:
    return tiny.settings(work, data=data, **{"steps": 20, "save_every": 2, **more})


def train(
    work: Path, data: dict, deaths: list[dict], restarts: int, ranks: int = 2, **more
) -> tuple[int, str, float]:
    """(exit code of torchrun, log, seconds)"""
    work.mkdir(parents=True, exist_ok=True)
    (work / "deaths.json").write_text(json.dumps(deaths))
    values = settings(work, data, **more)
    begin = time.monotonic()
    code = tiny.start(values, ranks, DYING, restarts).wait(timeout=400)
    return code, (work / "log").read_text(), time.monotonic() - begin


def same(work: Path, other: Path) -> None:
    assert tiny.metrics(work) == tiny.metrics(other)
    ours, theirs = (w / "export/model.safetensors" for w in (work, other))
    assert ours.read_bytes() == theirs.read_bytes()


def test_a_rank_that_is_killed_is_started_again_and_the_result_is_the_same(data, tmp_path):
    code, log, _ = train(tmp_path / "killed", data, [{"rank": 1, "step": 5, "how": "kill"}], restarts=2)
    assert code == 0, log[-3000:]
    assert log.count("resumed from") == 1
    trained(tmp_path, 2, [{"values": settings(tmp_path / "plain", data)}])
    same(tmp_path / "killed", tmp_path / "plain")


@pytest.mark.slow
def test_six_restarts_give_the_same_bytes(data, tmp_path):
    """Killed and failed, each rank, right after a save and between two, and before the first one."""
    deaths = [
        {"rank": rank, "step": step, "how": how}
        for rank, step, how in [(0, 1, "kill"), (1, 4, "kill"), (0, 7, "fail"), (1, 8, "kill"), (1, 11, "fail"), (0, 15, "kill")]
    ]  # fmt: skip
    code, log, _ = train(tmp_path / "killed", data, deaths, restarts=6)
    assert code == 0, log[-3000:]
    assert log.count("resumed from") == 5  # the first death came before the first checkpoint
    assert train(tmp_path / "plain", data, [], restarts=0)[0] == 0
    same(tmp_path / "killed", tmp_path / "plain")


@pytest.mark.slow
@pytest.mark.parametrize("rank", [0, 1])
def test_data_that_one_rank_refuses_ends_all_at_once_and_is_not_tried_again(data, tmp_path, rank):
    code, log, seconds = train(tmp_path, data, [{"rank": rank, "step": 5, "how": "refuse"}], restarts=3)
    assert code != 0
    assert log.count("error: a file that cannot be read") == 1, log
    assert log.count(" on 2 x cpu") == 1  # started once
    assert seconds < 60
    assert "Connection closed" not in log


@pytest.mark.slow
def test_a_configuration_that_cannot_be_run_is_not_tried_again(data, tmp_path):
    code, log, seconds = train(tmp_path, data, [], restarts=3, batch_size=3)
    assert code != 0
    assert log.count("error: batch_size 3 cannot be shared evenly by 2 ranks") == 1, log
    assert log.count(" on 2 x cpu") == 1
    assert seconds < 60


@pytest.mark.slow
def test_a_checkpoint_that_was_asked_for_is_not_followed_by_a_restart(data, tmp_path):
    """SIGTERM to one rank, as a cluster may send it, not to torchrun."""
    code, log, _ = train(tmp_path, data, [{"rank": 1, "step": 5, "how": "terminate"}], restarts=3)
    assert code != 0
    assert "stopped by a signal" in log
    assert "exitcode: 75" in log  # what tasks.training.launch looks for
    assert log.count(" on 2 x cpu") == 1
    newest = max((tmp_path / "checkpoints").iterdir())
    assert json.loads((newest / "state.json").read_text())["step"] in (5, 6)


@pytest.mark.slow
@pytest.mark.parametrize("how", ["hang", "freeze"])
def test_a_rank_that_makes_no_step_is_found_shown_and_started_again(data, tmp_path, monkeypatch, how):
    monkeypatch.setenv(
        "TORCH_ELASTIC_SHUTDOWN_TIMEOUT", "5"
    )  # until torchrun kills a process that is stopped
    death = {"rank": 1, "step": 5, "how": how}
    code, log, _ = train(tmp_path / how, data, [death], restarts=1, watchdog_seconds=6)
    assert code == 0, log[-3000:]
    assert "has made no step in 6 s" in log
    assert "rank 0 ends; its threads are at" in log
    if how == "hang":  # a process that is stopped shows nothing
        assert "rank 1 ends; its threads are at" in log
        assert "dying_engine.py" in log  # where it hung
    assert log.count("resumed from") == 1
    assert train(tmp_path / "plain", data, [], restarts=0)[0] == 0
    same(tmp_path / how, tmp_path / "plain")
