"""Both servers as `make up` starts them: closed for another account of the machine, open for MLflow's own client."""

from __future__ import annotations

import errno
import json
import os
import re
import shutil
import stat
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import pytest

from flows.settings import ROOT, State, auth_string, write_client_files
from tests.support.own_servers import running
from tests.support.server_logs import errors

pytestmark = pytest.mark.e2e

KNOCK = """
import encodings.idna, json, os, sys, urllib.error, urllib.request
if os.geteuid() == 0:  # imports come first: the other account may not read this Python
    os.setgroups([]), os.setgid(65534), os.setuid(65534)
opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
answers = []
for method, url, body in json.load(sys.stdin):
    if method == "READ":
        try:
            answers.append([0, open(url, "rb").read(100).hex()])
        except PermissionError as error:
            answers.append([error.errno, ""])
        continue
    data = None if body is None else json.dumps(body).encode()
    request = urllib.request.Request(url, data, {"content-type": "application/json"}, method=method)
    try:
        with opener.open(request, timeout=60) as reply:
            answers.append([reply.status, reply.read(2000).decode("utf-8", "replace")])
    except urllib.error.HTTPError as error:
        answers.append([error.code, error.read(2000).decode("utf-8", "replace")])
print(json.dumps(answers))
"""

CLIENT = """
import pathlib, sys
from mlflow.tracking import MlflowClient
client, folder = MlflowClient(), pathlib.Path(sys.argv[1])
experiment = client.create_experiment("doors", tags={"a": "b"})
run = client.create_run(experiment).info.run_id
client.log_param(run, "p", "v")
for step in range(3):
    client.log_metric(run, "loss", 3.0 - step, step=step)
client.set_tag(run, "t", "u")
sent = folder / "sent.txt"
sent.write_text("what was sent")
client.log_artifact(run, str(sent), "in")
assert [f.path for f in client.list_artifacts(run, "in")] == ["in/sent.txt"]
got = client.download_artifacts(run, "in/sent.txt", str(folder))
assert pathlib.Path(got).read_text() == "what was sent"
assert [m.value for m in client.get_metric_history(run, "loss")] == [3.0, 2.0, 1.0]
assert client.get_run(run).info.artifact_uri.startswith("mlflow-artifacts:/")
model = client.create_registered_model("doors")
client.set_terminated(run)
assert [r.info.run_id for r in client.search_runs([experiment], "tags.t = 'u'")] == [run]
print("all done")
"""


def test_another_account_finds_every_door_closed_and_the_client_works():
    # beside tmp_path: pytest's own folders keep another account out already
    folder = Path(tempfile.mkdtemp())
    folder.chmod(0o755)
    try:
        _doors(folder)
    finally:
        shutil.rmtree(folder)


def _doors(folder: Path) -> None:
    state = State(folder / "state", folder)
    state.folder.mkdir(mode=0o755)  # as clones of before have it
    with running(state, "prefect", "mlflow") as (at, environment, _):
        write_client_files(state, at, auth_string(state))
        home = folder / "home"
        home.mkdir()
        done = subprocess.run(
            [sys.executable, "-c", CLIENT, str(home)],
            env=environment,
            cwd=ROOT,
            capture_output=True,
            text=True,
        )
        assert done.stdout.splitlines()[-1:] == ["all done"], done.stderr[-3000:]
        refused = subprocess.run(
            [sys.executable, "-c", "from tasks.stage.tracking import Tracker; Tracker()"],
            env={**environment, "MLFLOW_TRACKING_PASSWORD": "another"},
            cwd=ROOT,
            capture_output=True,
            text=True,
        )
        assert re.search(r"NodeError: MLflow at \S+ refuses this shell: `\. \S+env` has", refused.stderr)
        shown = subprocess.run(
            [sys.executable, "-m", "prefect", "work-pool", "ls"],
            env=environment,
            cwd=folder,
            capture_output=True,
            text=True,
        )
        assert shown.returncode == 0, shown.stderr[-3000:]

        mlflow, token = f"{at.mlflow}/ajax-api/3.0/mlflow", f"{at.api}/csrf-token?client=stranger"
        doors = [
            ["POST", f"{mlflow}/assistant/message", {"message": "run a command"}],
            ["PUT", f"{mlflow}/assistant/config", {"full_access": True}],
            [
                "POST",
                f"{at.mlflow}/api/2.0/mlflow/experiments/create",
                {"name": "x", "artifact_location": "/tmp"},
            ],
            ["POST", f"{at.mlflow}/api/2.0/mlflow/runs/search", {"experiment_ids": ["0"]}],
            ["GET", f"{at.mlflow}/", None],
            ["GET", f"{at.mlflow}/api/2.0/mlflow-artifacts/artifacts", None],
            ["POST", f"{at.api}/deployments/filter", {}],
            ["POST", f"{at.api}/flow_runs/", {"flow_id": "x"}],
            ["GET", token, None],
            ["GET", f"{at.api}/admin/settings", None],
        ]
        statuses = _stranger(doors)
        assert set(statuses) <= {401, 403}, list(zip(doors, statuses, strict=True))
        assert (
            _stranger([["GET", f"{at.mlflow}/health", None], ["GET", f"{at.api}/health", None]]) == [200] * 2
        )

        private = [state.auth, state.env, state.log("mlflow"), state.mlflow_home / "mlflow.db"]
        assert all(path.exists() for path in private)
        if os.geteuid() == 0:
            assert _stranger([["READ", str(path), None] for path in private]) == [errno.EACCES] * len(private)
        for path in private:
            modes = (stat.S_IMODE(each.stat().st_mode) for each in (path, path.parent))
            assert any(not mode & 0o077 for mode in modes), path
        _with_the_password(at, environment, mlflow)
    assert errors(state.folder) == []
    secret = auth_string(state).partition(":")[2]
    for service in ("prefect", "mlflow"):
        assert secret not in state.log(service).read_text("utf-8")


def _with_the_password(at, environment, mlflow) -> None:
    """The Assistant is not there for the user either; the pages are."""
    import httpx

    auth = (environment["MLFLOW_TRACKING_USERNAME"], environment["MLFLOW_TRACKING_PASSWORD"])
    with httpx.Client(auth=auth, trust_env=False, timeout=60) as client:
        assert "<html" in client.get(f"{at.mlflow}/").text
        for path in ("message", "config", "providers"):
            assert client.post(f"{mlflow}/assistant/{path}", json={}).status_code == 404
        assert client.post(f"{at.mlflow}/ajax-api/3.0/jobs", json={}).status_code == 404


def _stranger(doors: list[list[Any]]) -> list[int]:
    """How each door answers another account where we may be one (we are root), else us without our variables."""
    done = subprocess.run(
        [sys.executable, "-I", "-c", KNOCK],
        input=json.dumps(doors),
        env={"PATH": os.environ["PATH"]},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    return [status for status, _ in json.loads(done.stdout)]
