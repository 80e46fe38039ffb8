"""What people and outages do to a flow run while it trains: each once, on real servers (make test-full).

One story: a long training of the smoke profile is suspended, resumed, cancelled without a living worker, begun
again, left alone by the Prefect server for longer than its client would wait, and deleted.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from typing import Any

import pytest

from flows import processes
from flows.settings import ROOT, State
from tests.support.house import House, until

pytestmark = [pytest.mark.e2e, pytest.mark.slow]

LONG = ["--set", "pretrain.steps=100000 pretrain.save_every=40 runtime.nproc=1", "--until", "pretrain"]
ACT = """
import json, sys
from prefect.client.orchestration import get_client
from prefect.client.schemas.sorting import FlowRunSort
from prefect.exceptions import ObjectNotFound
from prefect.states import Cancelling, Suspended

act, run = sys.argv[1], sys.argv[2]
with get_client(sync_client=True) as client:
    if act == "newest":
        print(client.read_flow_runs(limit=1, sort=FlowRunSort.START_TIME_DESC)[0].id)
    elif act == "suspend":  # as the page does, with its time-out
        client.set_flow_run_state(run, Suspended(timeout_seconds=30), force=True)
    elif act == "resume":
        client.resume_flow_run(run)
    elif act == "cancel":
        client.set_flow_run_state(run, Cancelling(), force=True)
    elif act == "delete":
        client.delete_flow_run(run)
    elif act == "state":
        state = client.read_flow_run(run).state
        timeout = state.state_details.pause_timeout
        print(json.dumps([state.name, state.message or "", str(timeout) if timeout else ""]))
"""


class Story(House):
    """A house with a long training in it."""

    run_id = "-"

    def act(self, what: str) -> str:
        done = self.shell(f"{sys.executable} -c '{ACT}' {what} {self.run_id}")
        assert done.returncode == 0, done.stderr
        return done.stdout.strip()

    def begin(self) -> None:
        command = [sys.executable, "-m", "flows.cli", "run", *self.request(*LONG)]
        follower = subprocess.Popen(
            command, cwd=ROOT, env=self.environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        )
        try:
            until(lambda: self.trainings() and self.grows(), 600)
        finally:
            follower.kill()  # it would look after the servers
        self.run_id = self.act("newest")

    def state(self) -> list[str]:
        return json.loads(self.act("state"))

    def step(self) -> int:
        """The last step in the training's metrics."""
        files = list(self.artifacts.glob("pretrain/*.partial/metrics.jsonl"))
        lines = files[0].read_text("utf-8").splitlines() if files else []
        steps = [json.loads(line)["step"] for line in lines if line.endswith("}")]
        return steps[-1] if steps else 0

    def grows(self, by: int = 50) -> bool:
        before = self.step()
        time.sleep(3)
        return self.step() > max(before, by)

    def flows(self) -> dict[str, Any]:
        return processes.flow_runs(State(self.folder / "state").folder)

    def kill(self, name: str) -> None:
        record = json.loads((self.folder / "state" / "processes.json").read_text("utf-8"))[name]
        os.kill(record["pid"], signal.SIGKILL)


@pytest.fixture(scope="module")
def story(tmp_path_factory: pytest.TempPathFactory):
    story = Story(tmp_path_factory.mktemp("story"))
    story.begin()
    yield story
    done = story.steel("down")
    assert done.returncode == 0, done.stderr
    assert not story.trainings()


def test_suspend_stops_the_training_and_keeps_the_place(story):
    story.act("suspend")
    until(lambda: not story.flows(), 120)
    assert not story.trainings()
    time.sleep(35)  # longer than the page's time-out, which fails a run that keeps it
    name, message, timeout = story.state()
    assert (name, timeout) == ("Suspended", "")
    assert "pretrain" in message


def test_resume_goes_on_in_one_process_from_the_checkpoint(story):
    before = story.step()
    story.act("resume")
    until(lambda: story.trainings() and story.step() > before, 240)
    assert len(story.flows()) == 1
    steps = [
        json.loads(line)["step"]
        for line in next(story.artifacts.glob("pretrain/*.partial/metrics.jsonl")).read_text().splitlines()
        if '"loss"' in line
    ]
    assert steps == sorted(set(steps)), "one curve"


def test_cancel_ends_soon_although_the_worker_that_started_it_is_dead(story):
    story.kill("worker")
    assert story.steel("up").returncode == 0
    begun = time.monotonic()
    story.act("cancel")
    until(lambda: story.state()[0] == "Cancelled", 120)
    print(f"Cancelled after {time.monotonic() - begun:.0f} s")
    until(lambda: not story.flows(), 60)
    assert not story.trainings()


def test_a_training_goes_on_without_the_prefect_server(story):
    story.begin()
    story.kill("prefect")
    before = story.step()
    time.sleep(100)  # a client that has connected gives up after 71 s
    assert story.trainings()
    assert story.step() > before
    assert story.steel("up").returncode == 0
    time.sleep(30)
    assert story.state()[0] == "Running"
    assert story.trainings()


def test_a_deleted_run_ends_and_frees_its_place(story):
    story.act("delete")
    until(lambda: not story.flows(), 120)
    assert not story.trainings()
    assert "flow run" not in story.steel("status").stdout
