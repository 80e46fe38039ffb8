"""What is shown in Prefect never fails or holds up a node, and nothing of it is lost in an outage."""

from __future__ import annotations

import contextvars
import logging
import threading
import time
import uuid
from types import SimpleNamespace

import pytest
from prefect.exceptions import ObjectNotFound

from flows import observe, reporter
from tasks.stage.node import Outcome
from tasks.stage.runner import Result
from tests.support.prefect_server import AWAY, Server, refused


@pytest.fixture
def server(monkeypatch):
    server = Server()
    monkeypatch.setattr(reporter, "get_client", server.client)
    monkeypatch.setattr(reporter, "ROUND_SECONDS", 0.01)
    monkeypatch.setattr(reporter, "AWAY_SECONDS", 0.05)
    monkeypatch.setattr(observe, "PROGRESS_SECONDS", 0.0)
    monkeypatch.setattr(observe, "get_run_logger", lambda: logging.getLogger("test"))
    return server


@pytest.fixture
def reports(server):
    made = reporter.Reporter(str(uuid.uuid4()))
    yield made
    made.close(5)


def shown(server) -> list[str]:
    return [artifact.description for artifact in server.artifacts.values()]


def until(condition, seconds: float = 5.0) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.01)


def test_progress_tables_and_texts_are_shown(server, reports):
    with observe.Progress("pretrain", reports) as progress:
        progress(0.25, "step 10")
        until(lambda: shown(server) == ["pretrain: step 10"])
        progress(0.5, "step 20")
    runner = SimpleNamespace(
        tracker=SimpleNamespace(url=lambda run: run),
        nodes={"pretrain": SimpleNamespace(name="pretrain", stage="pretrain")},
        results={"pretrain": Result("pretrain", "Completed")},
    )
    artifact = SimpleNamespace(run_id="r", node="convert:网页", path="/a")
    observe.node_summary(runner, reports, artifact, Outcome(headline="made"))
    observe.stage_table(runner, reports, "pretrain")
    reports.close(5)
    assert shown(server) == ["pretrain: step 20", "made", "what became of each node of pretrain"]
    assert next(iter(server.artifacts.values())).data == 100.0


def test_what_is_said_last_is_shown_however_soon_and_behind_100_percent(server, reports, monkeypatch):
    monkeypatch.setattr(observe, "PROGRESS_SECONDS", 60.0)
    with observe.Progress("dpo:train", reports) as progress:
        progress(0.5, "step 1 of 2")
        progress(1.0, "step 2 of 2")
        until(lambda: shown(server) == ["dpo:train: step 2 of 2"])
        time.sleep(0.1)  # what was sent at 100 % is not forgotten
        progress(0.95, "trained; asking the new model")
        until(lambda: shown(server) == ["dpo:train: trained; asking the new model"])
        assert next(iter(server.artifacts.values())).data == 95.0
    reports.close(5)
    assert shown(server) == ["dpo:train: trained; asking the new model"]
    assert next(iter(server.artifacts.values())).data == 100.0
    assert not reports._bars


@pytest.mark.parametrize("trouble", AWAY.values(), ids=AWAY)
def test_an_outage_holds_nothing_up_and_loses_nothing_but_old_progress(server, reports, trouble):
    server.error = trouble
    begun = time.monotonic()
    with observe.Progress("pretrain", reports) as progress:
        for step in range(50):
            progress(step / 50, f"step {step}")
            reports.markdown("text", key=f"node-{step}", description=f"text {step}")
    assert time.monotonic() - begun < 1
    time.sleep(0.1)
    server.error = None
    until(lambda: len(server.artifacts) == 51)
    assert sorted(shown(server)) == sorted([f"text {step}" for step in range(50)] + ["pretrain: step 49"])


def test_a_server_that_stays_away_is_not_waited_for_for_ever(server, reports, caplog):
    server.error = AWAY["refused"]
    reports.markdown("text", key="node", description="text")
    begun = time.monotonic()
    reports.close(0.5)
    assert time.monotonic() - begun < 3
    assert "1 table(s), texts and progress bars were not shown" in caplog.text


@pytest.mark.parametrize(
    "error", [refused(422), refused(413), ObjectNotFound(refused(404))], ids=["422", "413", "404"]
)
def test_what_the_server_refuses_does_not_keep_the_rest_waiting(server, reports, caplog, error):
    server.refuse = lambda artifact: error if artifact.key == "bad" else None
    reports.markdown("text", key="bad", description="bad")
    reports.markdown("text", key="good", description="good")
    until(lambda: shown(server) == ["good"])
    assert "Prefect does not take markdown bad" in caplog.text


def test_a_table_may_hold_numbers_that_json_does_not_know(server, reports):
    reports.table([{"loss": float("nan"), "n": 1}], key="t", description="t")
    until(lambda: shown(server) == ["t"])
    assert next(iter(server.artifacts.values())).data == '[{"loss": null, "n": 1}]'


def test_a_report_from_another_thread_belongs_to_the_task(server, reports, monkeypatch):
    task = contextvars.ContextVar("task", default=None)
    monkeypatch.setattr(reporter, "_task", task.get)
    mine = str(uuid.uuid4())
    task.set(mine)
    progress = observe.Progress("download:zhihu", reports)
    thread = threading.Thread(target=progress, args=(0.5, "half"))
    thread.start()
    thread.join()
    until(lambda: server.artifacts)
    assert [str(artifact.task_run_id) for artifact in server.artifacts.values()] == [mine]
