"""What a killed flow run left open in MLflow is closed by the next one; nobody else's is."""

from __future__ import annotations

import uuid

import pytest
from prefect.states import Completed, Crashed, Running

from flows import leftovers
from tests.support.prefect_server import AWAY, Server


class Tracker:
    """MLflow's open runs, and what was closed."""

    def __init__(self, runs):
        self.runs, self.closed = runs, {}

    def running(self):
        return [(run, flow) for run, flow in self.runs.items() if run not in self.closed]

    def finish(self, run, status):
        self.closed[run] = status


@pytest.fixture
def server(monkeypatch):
    server = Server()
    monkeypatch.setattr(leftovers, "get_client", server.client)
    return server


def test_runs_of_ended_and_of_unknown_flow_runs_are_closed(server):
    ids = {name: str(uuid.uuid4()) for name in ("crashed", "done", "deleted", "goes on", "mine")}
    server.states = {ids["crashed"]: Crashed(), ids["done"]: Completed(), ids["goes on"]: Running()}
    runs = {"pipeline": ids["crashed"], "node": ids["crashed"], "b": ids["done"], "c": ids["deleted"]}
    others = {"d": ids["goes on"], "e": ids["mine"], "somebody else's": ""}
    tracker = Tracker({**runs, **others})
    assert leftovers.close(tracker, ids["mine"]) == 4
    assert tracker.closed == dict.fromkeys(runs, "KILLED")


@pytest.mark.parametrize("trouble", AWAY.values(), ids=AWAY)
def test_a_server_that_is_away_judges_nobody(server, trouble):
    server.error = trouble
    tracker = Tracker({"a": str(uuid.uuid4())})
    assert leftovers.close(tracker) == 0
    assert tracker.closed == {}


def test_nothing_open_asks_nobody(server):
    assert leftovers.close(Tracker({})) == 0
