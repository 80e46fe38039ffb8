"""MLflow's artifacts on an S3-compatible store, by setting alone: through the server, which alone has the keys."""

from __future__ import annotations

import subprocess
import sys

import pytest

from flows.settings import ROOT, State
from tests.support.own_servers import running

pytestmark = [pytest.mark.e2e, pytest.mark.slow]

LOG = """
import os, sys
from pathlib import Path
from mlflow import MlflowClient
assert not [name for name in os.environ if name.startswith("AWS_")], "a client needs no keys"
client = MlflowClient()
run = client.create_run(client.create_experiment("steel")).info
client.log_text(run.run_id, "\\u94a2", "notes/a.txt")
assert run.artifact_uri.startswith("mlflow-artifacts:/"), run.artifact_uri
print([file.path for file in client.list_artifacts(run.run_id, "notes")])
print(Path(client.download_artifacts(run.run_id, "notes/a.txt", sys.argv[1])).read_text("utf-8"))
"""


def test_artifacts_go_to_the_bucket_and_come_back(tmp_path, monkeypatch):
    boto3 = pytest.importorskip("boto3", reason="pip install boto3")
    moto = pytest.importorskip("moto.server", reason="pip install moto[server]: an S3-compatible store")
    store = moto.ThreadedMotoServer("127.0.0.1", 0)
    store.start()
    try:
        host, port = store.get_host_and_port()
        keys = {
            "AWS_ACCESS_KEY_ID": "test",
            "AWS_SECRET_ACCESS_KEY": "not-in-any-file",
            "AWS_DEFAULT_REGION": "us-east-1",
            "MLFLOW_S3_ENDPOINT_URL": f"http://{host}:{port}",
            "STEEL_MLFLOW_ARTIFACTS": "s3://steel-artifacts/of/mlflow/",
        }
        for name, value in keys.items():
            monkeypatch.setenv(name, value)
        bucket = boto3.client("s3", endpoint_url=keys["MLFLOW_S3_ENDPOINT_URL"])
        bucket.create_bucket(Bucket="steel-artifacts")
        state = State(tmp_path / "state")
        with running(state, "mlflow") as (_, environment, _):
            client = {name: value for name, value in environment.items() if not name.startswith("AWS_")}
            done = subprocess.run(
                [sys.executable, "-c", LOG, str(tmp_path)],
                env=client,
                cwd=ROOT,
                capture_output=True,
                text=True,
            )
            assert done.returncode == 0, done.stderr
            assert done.stdout.splitlines() == ["['notes/a.txt']", "钢"]
        found = [item["Key"] for item in bucket.list_objects_v2(Bucket="steel-artifacts")["Contents"]]
        assert len(found) == 1
        assert found[0].startswith("of/mlflow/")
        assert found[0].endswith("/artifacts/notes/a.txt")
        assert not (state.mlflow_home / "artifacts").exists()
        held = [
            path
            for path in state.folder.rglob("*")
            if path.is_file() and b"not-in-any-file" in path.read_bytes()
        ]
        assert held == []
    finally:
        store.stop()
