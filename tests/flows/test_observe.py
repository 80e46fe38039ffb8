"""What is shown in Prefect never fails a node, nor the training that reports it."""

from __future__ import annotations

import contextvars
import logging
import threading
import uuid
from types import SimpleNamespace

import httpx
import pytest
from prefect.exceptions import PrefectHTTPStatusError

from flows import observe
from tasks.stage.node import Outcome

ERRORS = [
    httpx.ConnectError("refused"),
    httpx.ReadTimeout("slow"),
    PrefectHTTPStatusError("503", request=httpx.Request("GET", "http://x"), response=httpx.Response(503)),
]


@pytest.fixture
def away(monkeypatch, request):
    """Every artifact call fails; the list of calls."""
    calls = []

    def fail(*args, **kwargs):
        calls.append(args)
        raise request.param

    for name in ("create_markdown_artifact", "create_progress_artifact", "update_progress_artifact"):
        monkeypatch.setattr(observe, name, fail)
    monkeypatch.setattr(observe, "create_table_artifact", fail)
    monkeypatch.setattr(observe, "get_run_logger", lambda: logging.getLogger("test"))
    return calls


@pytest.mark.parametrize("away", ERRORS, indirect=True, ids=lambda error: type(error).__name__)
def test_a_server_that_is_away_stops_nothing(away):
    with observe.Progress("pretrain") as progress:
        for step in range(50):
            progress(step / 50, f"step {step}")
    assert len(away) == 1  # not asked again at once: each call takes long
    artifact = SimpleNamespace(run_id="r", node="convert:网页", path="/a")
    runner = SimpleNamespace(
        tracker=SimpleNamespace(url=lambda run: run),
        nodes={"pretrain": SimpleNamespace(name="pretrain", stage="pretrain")},
        results={"pretrain": observe_result()},
    )
    observe.node_summary(runner, artifact, Outcome(headline="made"))
    observe.stage_table(runner, "pretrain")
    assert len(away) == 3


def observe_result():
    from tasks.stage.runner import Result

    return Result("pretrain", "Completed")


def test_other_errors_are_not_hidden(monkeypatch):
    monkeypatch.setattr(observe, "get_run_logger", lambda: logging.getLogger("test"))

    def wrong(*args, **kwargs):
        raise TypeError("a mistake of ours")

    monkeypatch.setattr(observe, "create_progress_artifact", wrong)
    with pytest.raises(TypeError), observe.Progress("x") as progress:
        progress(0.5, "half")


def test_progress_goes_on_when_the_server_is_back(monkeypatch):
    monkeypatch.setattr(observe, "get_run_logger", lambda: logging.getLogger("test"))
    monkeypatch.setattr(observe, "AWAY_SECONDS", 0.0)
    monkeypatch.setattr(observe, "PROGRESS_SECONDS", 0.0)
    answers = [httpx.ConnectError("refused"), uuid.uuid4()]

    def create(*args, **kwargs):
        answer = answers.pop(0)
        if isinstance(answer, Exception):
            raise answer
        return answer

    shown = []
    monkeypatch.setattr(observe, "create_progress_artifact", create)
    monkeypatch.setattr(observe, "update_progress_artifact", lambda *args, **kwargs: shown.append(args[1]))
    with observe.Progress("x") as progress:
        for share in (0.1, 0.2, 0.3):
            progress(share, "")
    assert shown == [30.0, 100.0]


def test_a_report_from_another_thread_belongs_to_the_task(monkeypatch):
    monkeypatch.setattr(observe, "get_run_logger", lambda: logging.getLogger("test"))
    task = contextvars.ContextVar("task", default="none")
    seen = []
    monkeypatch.setattr(
        observe, "create_progress_artifact", lambda *a, **k: seen.append(task.get()) or uuid.uuid4()
    )
    task.set("download:zhihu")
    progress = observe.Progress("download:zhihu")
    thread = threading.Thread(target=progress, args=(0.5, "half"))
    thread.start()
    thread.join()
    assert seen == ["download:zhihu"]
