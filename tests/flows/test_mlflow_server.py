"""flows.mlflow_server: MLflow takes what it is told, and answers when many ask at once from the first moment."""

from __future__ import annotations

import json
import subprocess
import sys

from flows.settings import ROOT

ASK = """
import json, sys, threading
from pathlib import Path
import uvicorn
from flows import mlflow_server
from flows.settings import Addresses, State

tried = []

class Finder:
    # sees each import of what is not loaded yet

    def find_spec(name, *_):
        if name == "mlflow.server.auth":
            tried.append(name)

sys.meta_path.insert(0, Finder)

def ask(gate, **options):
    from starlette.testclient import TestClient
    import mlflow.server.handlers as handlers
    client = TestClient(gate, base_url="http://127.0.0.1:5000", headers={"Authorization": "Basic dTpw"})
    codes = []
    def search():
        path = "/api/2.0/mlflow/runs/search"
        codes.append(client.post(path, json={"experiment_ids": ["0"], "max_results": 1}).status_code)
    threads = [threading.Thread(target=search) for _ in range(8)]
    for thread in threads: thread.start()
    for thread in threads: thread.join()
    root = client.get("/api/2.0/mlflow/experiments/get", params={"experiment_id": "0"}).json()
    print(json.dumps([codes, root["experiment"]["artifact_location"], tried]))

uvicorn.run = ask
mlflow_server.serve(State(Path(sys.argv[1])), Addresses(0, 5000), "u:p", "127.0.0.1")
"""


def test_many_searches_at_once_are_answered(tmp_path):
    (tmp_path / "mlflow").mkdir()
    done = subprocess.run(
        [sys.executable, "-c", ASK, str(tmp_path)], cwd=ROOT, capture_output=True, text=True, timeout=300, check=False
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-2000:]
    codes, artifacts, tried = json.loads(done.stdout.splitlines()[-1])
    assert codes == [200] * 8, done.stderr[-2000:]
    assert artifacts.startswith("mlflow-artifacts:/")
    assert tried == []  # each import anew takes time, and lets another thread see half a module
