"""A schedule of a deployment fires: a real Prefect server makes its runs, and complains about nothing."""

from __future__ import annotations

import subprocess
import sys
import time

import pytest

from flows.settings import ROOT, State
from tests.support.own_servers import running
from tests.support.server_logs import errors

pytestmark = pytest.mark.e2e

SCHEDULE = """
import sys, time
from datetime import timedelta
from prefect.client.orchestration import get_client
from prefect.client.schemas.actions import DeploymentScheduleCreate
from prefect.client.schemas.schedules import CronSchedule, IntervalSchedule

kinds = {
    "interval": IntervalSchedule(interval=timedelta(seconds=60)),
    "cron": CronSchedule(cron="*/5 * * * *", timezone="Asia/Shanghai"),
}
with get_client(sync_client=True) as client:
    flow = client.create_flow_from_name("scheduled")
    waiting = {
        client.create_deployment(flow, name, schedules=[DeploymentScheduleCreate(schedule=kind)]): name
        for name, kind in kinds.items()
    }
    end = time.monotonic() + float(sys.argv[1])
    while waiting and time.monotonic() < end:
        for run in client.read_flow_runs(limit=200):
            if run.auto_scheduled and run.state.is_scheduled():
                waiting.pop(run.deployment_id, None)
        time.sleep(0.5)
print(sorted(waiting.values()))
"""


def test_a_schedule_makes_runs_and_the_server_logs_no_error(tmp_path):
    state = State(tmp_path / "state")
    with running(state, "prefect") as (_, environment, _):
        begun = time.monotonic()
        done = subprocess.run(
            [sys.executable, "-c", SCHEDULE, "90"], env=environment, cwd=ROOT, capture_output=True, text=True
        )
        print(f"{time.monotonic() - begun:.0f} s", done.stdout, done.stderr)
    assert errors(state.folder, ("prefect",)) == []
    assert done.stdout.splitlines()[-1:] == ["[]"], done.stderr
