"""Both servers on PostgreSQL, by setting alone: the smoke pipeline through the worker, and no password anywhere."""

from __future__ import annotations

import importlib.util
import time
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from tasks.settings.config import DATA_STAGES, STAGES
from tests.support import postgres
from tests.support.house import House
from tests.support.server_logs import errors

pytestmark = [
    pytest.mark.e2e,
    pytest.mark.slow,
    pytest.mark.skipif(
        not any(map(importlib.util.find_spec, ("psycopg", "psycopg2"))),
        reason="no driver: pip install psycopg[binary]",
    ),
]


@dataclass
class Stored(House):
    """A clone whose servers are told where their databases are."""

    more: dict[str, str] = field(default_factory=dict)

    @property
    def environment(self) -> dict[str, str]:
        return {**super().environment, **self.more}


def test_the_smoke_pipeline_runs_on_postgresql(tmp_path):
    with postgres.running() as server:
        databases = {
            "STEEL_PREFECT_DATABASE": server.url("prefect", server.password),  # taken out of the address
            "STEEL_MLFLOW_DATABASE": server.url("mlflow"),
            "PGPASSWORD": server.password,
        }
        house = Stored(tmp_path, databases)
        try:
            begun = time.monotonic()
            for until in (["--until", "tokenize"], []):  # each may take 15 minutes on a busy machine
                done = house.run(*until)
                assert done.returncode == 0, done.stdout + done.stderr
                print(f"{until or 'the whole pipeline'} on PostgreSQL: {time.monotonic() - begun:.0f} s")
            assert house.states() == {
                **dict.fromkeys(STAGES, "Completed"),
                **dict.fromkeys(DATA_STAGES, "Cached"),
            }
            begun = time.monotonic()
            assert house.run().returncode == 0
            print(f"again: {time.monotonic() - begun:.0f} s")
            assert house.states() == dict.fromkeys(STAGES, "Cached")
            assert not list((tmp_path / "state").rglob("*.db")), "nothing went to SQLite"
            assert errors(tmp_path / "state") == []
        finally:
            down = house.steel("down")
        assert down.returncode == 0, down.stdout + down.stderr
        assert _holding(tmp_path, server.password) == []

        house.more = {}  # a shell that does not know
        refused = house.steel("up")
        assert refused.returncode == 2
        assert "was on postgresql://steel@127.0.0.1" in refused.stderr
        assert refused.stderr.count("\n") == 1
        assert house.steel("down").returncode == 0


def test_a_wrong_password_is_one_clear_end(tmp_path):
    with postgres.running() as server:
        wrong = {"STEEL_MLFLOW_DATABASE": server.url("mlflow", "not-this-word")}
        house = Stored(tmp_path, wrong)
        try:
            done = house.steel("up")
            assert done.returncode != 0
            assert "password authentication failed" in done.stderr
            assert "not-this-word" not in done.stdout + done.stderr
            assert _holding(tmp_path, "not-this-word") == []
        finally:
            house.steel("down")


def _holding(folder: Path, secret: str) -> list[str]:
    """The files that hold a text, logs, manifests, artifacts and databases among them."""
    files = [path for path in folder.rglob("*") if path.is_file()]
    assert files
    return [str(path) for path in files if secret.encode() in path.read_bytes()]
