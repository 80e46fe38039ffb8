"""MLflow goes away: finished work is never lost or made again, waiting ends with the run, and records catch up."""

import logging
import shutil
import threading
import time
import uuid

import pytest
import requests
from mlflow.exceptions import MlflowException

from tasks.settings.config import Runtime, SteelRun
from tasks.settings.errors import NodeError
from tasks.stage import tracking
from tasks.stage.node import Context, Node, Outcome
from tasks.stage.plan import plan
from tasks.stage.runner import Runner
from tasks.stage.store import Store
from tasks.stage.tracking import Tracker
from tests.support.walk import walk

LOG = logging.getLogger("test")
CALLS: list[bool] = []
ERRORS = [
    MlflowException("connection refused"),
    requests.ConnectionError("reset"),
    ConnectionRefusedError("no"),
]


def train(ctx: Context) -> Outcome:
    CALLS.append(ctx.resumed)
    (ctx.out / "weights").write_text("a month of work")
    (ctx.out / "table.csv").write_text("a,b\n")
    ctx.track.metrics({"loss": 2.0}, step=1)
    return Outcome(headline="trained", metrics={"val_loss": 2.0}, files=["table.csv"])


@pytest.fixture
def house(tmp_path, mlflow_uri):
    """`house(fingerprint tag)` gives a new flow run's Runner and its one node."""
    CALLS.clear()

    def begin(tag="x", force=(), flow=""):
        node = Node("pretrain", train, {"steps": 1, "tag": f"{tmp_path}{tag}"}, resumable=True)
        config = SteelRun(profile="outage", runtime=Runtime(artifacts=tmp_path))
        store, tracker = Store(tmp_path), Tracker(mlflow_uri)
        return Runner(
            config, {"pretrain": node}, store, tracker, flow or uuid.uuid4().hex, frozenset(force)
        ), node

    return begin


def away(runner, monkeypatch, error, *calls):
    """From now on these calls of the client fail."""

    def fail(*args, **kwargs):
        raise error

    for call in calls:
        monkeypatch.setattr(runner.tracker.client, call, fail)


@pytest.mark.parametrize("error", ERRORS, ids=lambda error: type(error).__name__)
@pytest.mark.parametrize("call", ["log_artifact", "set_terminated"])
def test_after_the_seal_nothing_fails_the_node(house, monkeypatch, error, call):
    runner, node = house()
    runner.begin()
    resolution = runner.resolve(node)
    away(runner, monkeypatch, error, call)
    artifact, outcome = runner.run(resolution, LOG)
    assert outcome.headline == "trained"
    assert runner.results["pretrain"].state == "Completed"

    later, node = house()
    [step] = plan(later)
    assert (step.action, "recorded again" in step.why) == ("skip", True)
    assert later.tracker.client.get_run(artifact.run_id).info.status == "RUNNING"  # a plan writes nothing

    again, node = house()
    assert walk(again)[0].unrecorded
    assert CALLS == [False]
    run = again.tracker.client.get_run(artifact.run_id)
    assert run.info.status == "FINISHED"
    assert run.data.metrics["val_loss"] == 2.0
    assert {"manifest.json", "table.csv"} <= {
        f.path for f in again.tracker.client.list_artifacts(artifact.run_id)
    }
    third, node = house()
    assert not walk(third)[0].unrecorded
    assert len(CALLS) == 1


def test_a_run_deleted_in_the_page_is_recorded_anew(house):
    runner, node = house()
    walk(runner)
    first = runner.done["pretrain"].run_id
    runner.tracker.client.delete_run(first)
    again, node = house()
    assert walk(again)[0].unrecorded
    assert again.done["pretrain"].run_id != first
    assert len(CALLS) == 1


def test_a_deleted_experiment_is_restored(house):
    runner, node = house()
    walk(runner)
    runner.tracker.client.delete_experiment(runner.tracker.experiment)
    again, node = house()
    walk(again)
    assert len(CALLS) == 1


def test_an_altered_artifact_is_no_witness(house):
    runner, node = house()
    runner.begin()
    walk(runner)
    folder = runner.done["pretrain"].path
    runner.tracker.client.delete_run(runner.done["pretrain"].run_id)
    (folder / "weights").write_text("a month of milk")  # the same size
    again, node = house()
    assert walk(again)[0].artifact is None
    assert len(CALLS) == 2


def test_force_makes_again_what_no_record_vouches_for_once(house):
    runner, node = house()
    walk(runner)
    runner.tracker.client.delete_run(runner.done["pretrain"].run_id)
    forced, node = house(force=["pretrain"])
    walk(forced)
    assert len(CALLS) == 2
    retry, node = house(force=["pretrain"], flow=forced.flow_run_id)
    walk(retry)
    assert len(CALLS) == 2


def test_a_node_waits_for_the_server_and_a_cancelled_run_does_not(house, monkeypatch):
    monkeypatch.setattr(tracking, "_POLL_SECONDS", 0.05)
    runner, node = house()
    runner.begin()
    resolution = runner.resolve(node)
    real, times = runner.tracker.client.create_run, []

    def twice_away(*args, **kwargs):
        times.append(time.monotonic())
        if len(times) < 3:
            raise ERRORS[0]
        return real(*args, **kwargs)

    monkeypatch.setattr(runner.tracker.client, "create_run", twice_away)
    runner.run(resolution, LOG)
    assert len(times) >= 3

    runner, node = house("other")
    runner.begin()
    resolution = runner.resolve(node)
    monkeypatch.setattr(tracking, "_POLL_SECONDS", 30.0)
    away(runner, monkeypatch, ERRORS[0], "create_run")
    threading.Timer(0.3, runner.stop.set).start()
    begun = time.monotonic()
    with pytest.raises(NodeError, match="does not take a new run"):
        runner.run(resolution, LOG)
    assert time.monotonic() - begun < 10
    assert len(CALLS) == 1


def test_a_failure_is_not_hidden_by_a_server_that_is_away(house, monkeypatch):
    runner, node = house()
    runner.begin()
    resolution = runner.resolve(node)
    monkeypatch.setattr(runner.store, "publish", lambda *a: (_ for _ in ()).throw(NodeError("disk full")))
    away(runner, monkeypatch, ERRORS[0], "set_terminated")
    with pytest.raises(NodeError, match="disk full"):
        runner.run(resolution, LOG)


def test_what_is_gone_is_made_again(house):
    runner, node = house()
    walk(runner)
    shutil.rmtree(runner.done["pretrain"].path)
    again, node = house()
    walk(again)
    assert len(CALLS) == 2
