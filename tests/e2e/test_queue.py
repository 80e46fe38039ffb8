"""`make down` with runs that wait: it names them, oldest first, and cancels them on request."""

from __future__ import annotations

import sqlite3
import subprocess
import sys

import pytest

from bench.common import with_state
from flows import ports, processes
from flows.settings import ROOT, State
from tests.support.own_servers import running
from tests.support.server_logs import errors

pytestmark = pytest.mark.e2e

ASK = """
from datetime import UTC, datetime, timedelta
from prefect.client.orchestration import get_client
from prefect.states import Completed, Running, Scheduled

with get_client(sync_client=True) as client:
    deployments = {}
    for flow, name in (("steel", "full-pipeline"), ("steel-ablation", "ffn"), ("another-flow", "theirs")):
        deployments[name] = client.create_deployment(client.create_flow_from_name(flow), name)

    def ask(deployment, name, state=None):
        return client.create_flow_run_from_deployment(deployments[deployment], name=name, state=state).id

    later = Scheduled(scheduled_time=datetime.now(UTC) + timedelta(hours=3))
    ask("full-pipeline", "eldest")
    ask("ffn", "tomorrow", later)
    ask("full-pipeline", "youngest")
    ask("theirs", "of-another-flow")
    client.set_flow_run_state(ask("ffn", "done"), Completed(), force=True)
    client.set_flow_run_state(ask("ffn", "runs"), Running(), force=True)
"""


def test_down_names_what_waits_and_cancels_it_on_request(tmp_path):
    state = State(tmp_path / "state")
    waiting = ["eldest (full-pipeline, since", "tomorrow (ffn, for", "youngest (full-pipeline, since"]

    first = _down(state, ask=True)
    lines = first.splitlines()
    assert "3 flow run(s) wait for the next `make up`:" in lines, first
    named = lines[lines.index("3 flow run(s) wait for the next `make up`:") + 1 :]
    assert [a.strip().startswith(b) for a, b in zip(named, waiting, strict=False)] == [True] * 3, first
    assert "make down CANCEL=1" in named[3]
    assert "stopped prefect" in first
    assert state.held.exists()
    states = _states(state)
    assert [states[name] for name in ("eldest", "tomorrow", "youngest")] == ["SCHEDULED"] * 3

    second = _down(state, "--cancel")
    assert "3 flow run(s) are cancelled:" in second
    assert _states(state) == {
        **dict.fromkeys(("eldest", "tomorrow", "youngest"), "CANCELLED"),
        "of-another-flow": "SCHEDULED",
        "done": "COMPLETED",
        "runs": "RUNNING",
    }
    assert errors(state.folder, ("prefect",)) == []


@pytest.mark.slow
def test_down_stops_the_servers_although_prefect_refuses_to_talk(tmp_path):
    state = State(tmp_path / "state")
    said = _down(state, forget_password=True)
    assert "Prefect does not tell which flow runs there are" in said
    assert "stopped prefect" in said
    assert "Traceback" not in said


def _down(state: State, *options: str, ask: bool = False, forget_password: bool = False) -> str:
    """What `make down` prints over a Prefect server that runs without a worker; the server is gone then."""
    with running(state, "prefect") as (at, environment, records):
        ports.save(state.ports, {"prefect": at.prefect_port, "mlflow": at.mlflow_port})
        processes.save(state.processes, records)
        if ask:
            subprocess.run([sys.executable, "-c", ASK], env=environment, cwd=ROOT, check=True)
        if forget_password:
            state.auth.write_text("steel:another\n")
        done = subprocess.run(
            [sys.executable, "-m", "flows.cli", "down", *options],
            env=with_state(state.folder),
            cwd=ROOT,
            capture_output=True,
            text=True,
        )
        assert done.returncode == 0, done.stderr
        assert records["prefect"].process() is None
    return done.stdout + done.stderr


def _states(state: State) -> dict[str, str]:
    with sqlite3.connect(state.prefect_home / "prefect.db") as database:
        return dict(database.execute("SELECT name, state_type FROM flow_run"))
