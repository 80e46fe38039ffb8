"""flows.settings: what the servers, and the user's own commands, are told."""

from __future__ import annotations

import json
import os
import stat
import subprocess
import sys
from pathlib import Path

import pytest

from flows.settings import (
    Addresses,
    State,
    auth_string,
    clean_environment,
    write_client_files,
)

AT = Addresses(4711, 5711)

READ = """
import json
from prefect.settings import get_current_settings
s = get_current_settings()
print(json.dumps({
    "home": str(s.home), "url": s.api.url, "auth": s.api.auth_string and s.api.auth_string.get_secret_value(),
    "server_auth": s.server.api.auth_string and s.server.api.auth_string.get_secret_value(),
    "host": s.server.api.host, "port": s.server.api.port,
    "csrf": s.server.api.csrf_protection_enabled, "cors": s.server.api.cors_allowed_origins,
    "analytics": s.server.analytics_enabled, "timeout": s.server.database.timeout,
    "connection": s.server.database.connection_timeout, "query": s.worker.query_seconds,
    "beat": s.flows.heartbeat_frequency, "serializer": s.results.default_serializer,
    "colors": s.logging.colors, "metrics": s.telemetry.enable_resource_metrics,
    "promotion": s.server.ui.show_promotional_content,
}))
"""


def read(cwd: Path, env: dict[str, str]) -> dict:
    done = subprocess.run(
        [sys.executable, "-c", READ], cwd=cwd, env=env, capture_output=True, text=True, check=True
    )
    return json.loads(done.stdout.splitlines()[-1])


def expected(state: State, auth: str) -> dict:
    return {
        "home": str(state.prefect_home),
        "url": "http://127.0.0.1:4711/api",
        "auth": auth,
        "server_auth": auth,
        "host": "127.0.0.1",
        "port": 4711,
        "csrf": True,
        "cors": "http://127.0.0.1:4711,http://localhost:4711",
        "analytics": False,
        "timeout": 60.0,
        "connection": 60.0,
        "query": 5.0,
        "beat": 30,
        "serializer": "json",
        "colors": False,
        "metrics": False,
        "promotion": False,
    }


def test_prefect_understands_every_setting_both_ways(tmp_path):
    """As variables (what Steel starts) and as prefect.toml (what a user's shell reads): the same."""
    state = State(tmp_path / ".steel", tmp_path)
    write_client_files(state, AT, "steel:word")
    bare = {"PATH": os.environ["PATH"], "HOME": str(tmp_path)}
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    assert read(tmp_path, bare) == expected(state, "steel:word")
    assert read(elsewhere, clean_environment(state, AT, "steel:word")) == expected(state, "steel:word")


def test_settings_of_the_users_own_do_not_reach_our_processes(monkeypatch, tmp_path):
    monkeypatch.setenv("PREFECT_API_KEY", "a company's")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://a-company")
    env = clean_environment(State(tmp_path), AT, "steel:word")
    assert "PREFECT_API_KEY" not in env
    assert env["MLFLOW_TRACKING_URI"] == "http://127.0.0.1:5711"


def test_a_shell_that_sources_env_finds_the_servers(tmp_path):
    state = State(tmp_path / "a state", tmp_path)  # the blank has to survive
    write_client_files(state, AT, "steel:word")
    shown = subprocess.run(
        [
            "bash",
            "-c",
            f". '{state.env}'; echo $MLFLOW_TRACKING_URI $PREFECT_API_URL; echo $PREFECT_HOME;"
            " echo $MLFLOW_TRACKING_USERNAME $MLFLOW_TRACKING_PASSWORD $PREFECT_API_AUTH_STRING",
        ],
        capture_output=True,
        text=True,
        check=True,
    ).stdout.splitlines()
    assert shown == [
        "http://127.0.0.1:5711 http://127.0.0.1:4711/api",
        str(state.prefect_home),
        "steel word steel:word",
    ]


def test_a_moved_state_leaves_the_clone_alone(tmp_path):
    clone = tmp_path / "clone"
    clone.mkdir()
    write_client_files(State(tmp_path / "moved", clone), AT, "steel:word")
    assert list(clone.iterdir()) == []


def test_a_password_that_is_made_once_and_for_the_users_eyes_only(tmp_path):
    state = State(tmp_path / ".steel", tmp_path)
    first = auth_string(state)
    assert first.startswith("steel:")
    assert len(first) > 30
    assert auth_string(state) == first  # a new shell has to know nothing
    write_client_files(state, AT, first)
    for path in (state.auth, state.env, tmp_path / "prefect.toml"):
        assert stat.S_IMODE(path.stat().st_mode) == 0o600
    for path in (state.folder, state.prefect_home, state.mlflow_home, state.folder / "logs"):
        assert stat.S_IMODE(path.stat().st_mode) == 0o700
    assert auth_string(State(tmp_path / "other", tmp_path)) != first
    state.auth.write_text("")  # a disk that was full
    assert len(auth_string(state)) == len(first)


@pytest.mark.parametrize(("moved", "default"), [("", True), ("somewhere", False)])
def test_where_the_state_is(monkeypatch, tmp_path, moved, default):
    monkeypatch.setenv("STEEL_STATE", str(tmp_path / moved) if moved else "")
    assert State.default().is_default is default
