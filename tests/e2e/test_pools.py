"""Data stages on one pool, trainings on another: two workers, one pipeline, each stage where it belongs. And the examples."""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from flows.settings import ROOT, Addresses
from tasks.settings.config import DATA_STAGES, STAGES
from tests.support.house import House, until

pytestmark = [pytest.mark.e2e, pytest.mark.slow]

READ = """
import json
from prefect.client.orchestration import get_client
with get_client(sync_client=True) as client:
    deployments = {item.id: item.name for item in client.read_deployments(limit=200)}
    runs = [
        {"id": str(run.id), "pool": run.work_pool_name, "deployment": deployments.get(run.deployment_id),
         "state": run.state.name, "auto": run.auto_scheduled, "parameters": run.parameters,
         "message": run.state.message or ""}
        for run in client.read_flow_runs(limit=200)
    ]
print(json.dumps(runs))
"""


@dataclass
class TwoPools(House):
    """A clone whose trainings have a pool of their own."""

    @property
    def environment(self) -> dict[str, str]:
        return {**super().environment, "STEEL_TRAINING_POOL": "steel-gpu"}

    def python(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        words = " ".join(f"'{word}'" for word in (sys.executable, *arguments))
        return self.shell(words)

    def runs(self) -> list[dict[str, Any]]:
        script = self.folder / "read.py"
        script.write_text(READ)
        return json.loads(self.python(str(script)).stdout.splitlines()[-1])


@pytest.fixture(scope="module")
def house(tmp_path_factory) -> Iterator[TwoPools]:
    house = TwoPools(tmp_path_factory.mktemp("pools"))
    with contextlib.ExitStack() as ends:
        ends.callback(house.steel, "down", "--cancel")
        up = house.steel("up")
        assert up.returncode == 0, up.stdout + up.stderr
        ports = json.loads((house.folder / "state" / "ports.json").read_text())
        at = Addresses(ports["prefect"], ports["mlflow"])
        environment = {
            **house.environment,
            "STEEL_PREFECT_ADDRESS": at.prefect,
            "STEEL_MLFLOW_ADDRESS": at.mlflow,
            "STEEL_AUTH_FILE": str(house.folder / "state" / "auth"),
            "STEEL_POOL": "steel-gpu",
        }
        with open(house.folder / "gpu-worker.log", "wb") as log:
            command = [sys.executable, "-m", "flows.alone", "worker"]
            worker = subprocess.Popen(command, env=environment, cwd=ROOT, stdout=log, stderr=log)
        ends.callback(worker.wait, 60)
        ends.callback(worker.terminate)
        yield house


def test_each_stage_runs_in_its_pool(house):
    done = house.run("--until", "pretrain", "--set", "pretrain.steps=6")
    assert done.returncode == 0, done.stdout + done.stderr
    by_pool = {run["pool"]: run for run in house.runs()}
    assert {pool: run["deployment"] for pool, run in by_pool.items()} == {
        "steel-local": "full-pipeline",
        "steel-gpu": "training",
    }
    assert [run["state"] for run in by_pool.values()] == ["Completed"] * 2
    assert by_pool["steel-gpu"]["parameters"] == by_pool["steel-local"]["parameters"] | {"force": []}
    assert "goes on in the pool of the trainings" in by_pool["steel-local"]["message"]
    assert "goes on in the pool of the trainings" in done.stdout
    # of the second run: what the first had done is found, the training was its own
    assert house.states() == {**dict.fromkeys(DATA_STAGES, "Cached"), "pretrain": "Completed"}
    assert house.latest("run.json")["flow_run_id"] == by_pool["steel-gpu"]["id"]
    again = house.run("--until", "tokenize")
    assert again.returncode == 0
    assert len(house.runs()) == 3, "data stages alone hand nothing over"


def test_the_example_schedule_and_trigger_make_runs(house, tmp_path):
    example = (ROOT / "deployments/examples/when.yaml").read_text("utf-8")
    one_stage = (
        f"{{profile: smoke, until: download, overrides: {{runtime: {{artifacts: '{house.artifacts}'}}}}"
    )
    here = example.replace("{profile: demo", one_stage)
    assert here.count(one_stage) == 2
    file = Path(tmp_path) / "when.yaml"
    file.write_text(here)
    deployed = house.shell(f"prefect --no-prompt deploy --all --prefect-file '{file}'")
    assert deployed.returncode == 0, deployed.stdout + deployed.stderr
    until(lambda: [r for r in house.runs() if r["deployment"] == "every-night" and r["auto"]], 120)

    data = tmp_path / "data"
    data.mkdir()
    (data / "new.jsonl").write_text('{"text": "x"}\n')
    assert house.python("-m", "flows.arrivals", str(data)).returncode == 1, "just written"
    os.utime(data / "new.jsonl", (1_700_000_000, 1_700_000_000))
    told = house.python("-m", "flows.arrivals", str(data))
    assert told.stdout.startswith("told: 1 files"), told.stdout + told.stderr
    assert "nothing new" in house.python("-m", "flows.arrivals", str(data)).stdout

    def ended() -> list[dict[str, Any]]:
        return [r for r in house.runs() if r["deployment"] == "on-new-data" and r["state"] == "Completed"]

    until(ended, 240)
    assert len([r for r in house.runs() if r["deployment"] == "on-new-data"]) == 1
    assert house.states().keys() == {STAGES[0]}
