"""Where this clone keeps the state of its servers, and how Prefect and MLflow are set.

The state folder is `.steel/` in the clone, or STEEL_STATE (tests use it). It holds Prefect's home
and database, MLflow's database and artifacts, the chosen ports, the processes and their logs;
nothing is written to the user's home.

Settings are written once, as the tree of Prefect's own configuration file, and derived from it:
- `variables()`: environment of everything that Steel starts;
- `prefect.toml` in the repository's root (only for the default state folder): `prefect …` finds the
  servers in any shell there;
- `<state>/env`: sourced by `.venv/bin/activate` (`make setup` appends that line), because the
  `mlflow` commands read nothing but the environment. With another state folder: `. <state>/env`.

Security. Both servers listen on 127.0.0.1 only, and both want a password: without one any account of
this machine could start processes through Prefect, and read and write files through MLflow. It is
made once, kept in `<state>/auth` (readable by the user alone), and known to all that Steel starts and
to the files above; only the pages ask for it. Prefect's defaults also let any web page that is open on
this machine start flows (CORS `*`, no CSRF token); here only its own origin may, and CSRF tokens are
required. MLflow stands behind flows.gate.
"""

from __future__ import annotations

import os
import re
import secrets
import shlex
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from flows import stores
from flows.ports import HOST
from tasks.settings import loopback
from tasks.settings.files import write_text
from tasks.settings.paths import ROOT

POOL = "steel-local"
QUEUES = ("pipelines", "stages")
"""Of a pool: whole pipelines and studies, and single stages. One run of each goes on at a time."""
OWN_POOL = "STEEL_POOL"
"""The pool that a run is of (prefect.yaml sets it in the run's environment), or that a worker serves (flows.alone)."""
TRAINING_POOL = "STEEL_TRAINING_POOL"
"""The pool where trainings run, if it is another than POOL (a GPU machine's). Whole pipelines then begin on POOL, and
hand over behind the data stages (flows.hand_over)."""


def training_pool(environ: Mapping[str, str] = os.environ) -> str:
    """Raises stores.StoreError for a name that Prefect would not take in a path."""
    name = environ.get(TRAINING_POOL, "").strip() or POOL
    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]*", name):
        raise stores.StoreError(f"{TRAINING_POOL}={name} is no name of a pool: letters, digits, - _ .")
    return name


def pools(environ: Mapping[str, str] = os.environ) -> tuple[str, ...]:
    """Those of this clone."""
    return tuple(dict.fromkeys((POOL, training_pool(environ))))


RETENTION_SECONDS = 90 * 24 * 3600
"""How long Prefect keeps a flow run that has ended, with its logs."""


@dataclass(frozen=True)
class State:
    """The state folder and what lies where in it."""

    folder: Path
    root: Path = ROOT

    @classmethod
    def default(cls) -> State:
        moved = os.environ.get("STEEL_STATE", "").strip()
        return cls(Path(moved).expanduser().resolve() if moved else ROOT / ".steel")

    @property
    def is_default(self) -> bool:
        return self.folder == self.root / ".steel"

    @property
    def prefect_home(self) -> Path:
        return self.folder / "prefect"

    @property
    def mlflow_home(self) -> Path:
        return self.folder / "mlflow"

    @property
    def ports(self) -> Path:
        return self.folder / "ports.json"

    @property
    def processes(self) -> Path:
        return self.folder / "processes.json"

    @property
    def held(self) -> Path:
        """There while `make down` has paused the pool."""
        return self.folder / "held"

    @property
    def deployed(self) -> Path:
        return self.folder / "deployed.json"

    @property
    def env(self) -> Path:
        return self.folder / "env"

    @property
    def auth(self) -> Path:
        return self.folder / "auth"

    @property
    def stores(self) -> Path:
        """Where the servers' databases are, without passwords."""
        return self.folder / "stores.json"

    @property
    def arrivals(self) -> Path:
        """What flows.arrivals has told of."""
        return self.folder / "arrivals.json"

    def log(self, service: str) -> Path:
        return self.folder / "logs" / f"{service}.log"

    def make(self) -> None:
        """Make the folders. Databases, artifacts and logs are for the user's eyes only."""
        self.folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        for path in (self.prefect_home, self.mlflow_home, self.folder / "logs"):
            path.mkdir(exist_ok=True)
            path.chmod(0o700)


@dataclass(frozen=True)
class Addresses:
    """Where the servers are."""

    prefect_port: int
    mlflow_port: int
    prefect_host: str = HOST
    mlflow_host: str = HOST

    @property
    def prefect(self) -> str:
        return f"http://{self.prefect_host}:{self.prefect_port}"

    @property
    def api(self) -> str:
        return f"{self.prefect}/api"

    @property
    def mlflow(self) -> str:
        return f"http://{self.mlflow_host}:{self.mlflow_port}"

    @property
    def mlflow_hosts(self) -> tuple[str, ...]:
        """How a client may name the MLflow server."""
        names = dict.fromkeys((HOST, "localhost", self.mlflow_host))
        return tuple(f"{name}:{self.mlflow_port}" for name in names)


def auth_string(state: State) -> str:
    """`user:password` of both servers, made when it is first asked for."""
    text = state.auth.read_text("utf-8").strip() if state.auth.exists() else ""
    if not text:
        state.make()
        text = f"steel:{secrets.token_urlsafe(24)}"
        write_text(state.auth, f"{text}\n", private=True)
    return text


def prefect_settings(state: State, at: Addresses, auth: str) -> dict[str, Any]:
    """Every Prefect setting that differs from the default, as the tree of prefect.toml."""
    names = dict.fromkeys((HOST, "localhost", at.prefect_host))
    origins = ",".join(f"http://{name}:{at.prefect_port}" for name in names)
    return {
        "home": str(state.prefect_home),
        "api": {"url": at.api, "auth_string": auth},
        "server": {
            "analytics_enabled": False,
            "api": {
                "host": HOST,
                "port": at.prefect_port,
                "csrf_protection_enabled": True,
                "cors_allowed_origins": origins,
                "auth_string": auth,
            },
            # a busy 2-core machine: SQLite answers late, and late must not mean "database is locked"
            "database": {"timeout": 60.0, "connection_timeout": 60.0},
            "ui": {"show_promotional_content": False},
            # loops of a server that one person uses: rarer, and off where nothing here needs them
            "services": {
                "late_runs": {"loop_seconds": 60},
                "foreman": {"loop_seconds": 60},
                "scheduler": {"recent_deployments_loop_seconds": 20},
                "pause_expirations": {
                    "enabled": False
                },  # flows.watch keeps a suspended run without a time-out
                "cleanup_reconciler": {"enabled": False},
                "repossessor": {"enabled": False},  # nothing holds a lease
                # the flow says itself that it was cancelled; this is the net, longer than a save
                "cancellation_cleanup": {"loop_seconds": 60, "cancelling_timeout_seconds": 90},
                # events, logs and artifacts of old runs go after RETENTION; MLflow keeps what counts
                "db_vacuum": {"enabled": "events,flow_runs", "retention_period": RETENTION_SECONDS},
            },
            "events": {"proactive_granularity": "PT20S", "retention_period": "P7D"},
        },
        "worker": {"query_seconds": 5.0},
        # the shortest beat Prefect takes; the automation in flows.deploy waits for three
        "flows": {"heartbeat_frequency": 30},
        "results": {"default_serializer": "json"},
        "logging": {"colors": False},
        "telemetry": {"enable_resource_metrics": False},
    }


def variables(state: State, at: Addresses, auth: str) -> dict[str, str]:
    """The environment of every process that Steel starts, beside what it inherits."""
    return {
        **dict(_flat(prefect_settings(state, at, auth))),
        **_mlflow_client(at, auth),
        "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false",
        "MLFLOW_ENABLE_AI_GATEWAY": "false",
        "MLFLOW_SERVER_ALLOWED_HOSTS": ",".join(at.mlflow_hosts),
        "DO_NOT_TRACK": "1",
        "STEEL_HOME": str(state.root),
        "STEEL_STATE": str(state.folder),
        TRAINING_POOL: training_pool(),
        "PYTHONPATH": str(state.root),
    }


def _mlflow_client(at: Addresses, auth: str) -> dict[str, str]:
    user, _, password = auth.partition(":")
    return {
        "MLFLOW_TRACKING_URI": at.mlflow,
        "MLFLOW_TRACKING_USERNAME": user,
        "MLFLOW_TRACKING_PASSWORD": password,
        "MLFLOW_DISABLE_TELEMETRY": "true",
    }


def _flat(tree: Mapping[str, Any], prefix: str = "PREFECT"):
    """Prefect names a setting's variable after its place in the tree."""
    for key, value in tree.items():
        name = f"{prefix}_{key.upper()}"
        if isinstance(value, Mapping):
            yield from _flat(value, name)
        else:
            yield name, str(value).lower() if isinstance(value, bool) else str(value)


def clean_environment(state: State, at: Addresses, auth: str) -> dict[str, str]:
    """os.environ without the user's own Prefect and MLflow settings, plus ours.

    A PREFECT_API_URL that points to a company's server must not catch this clone's processes. Nor do they get the
    addresses and passwords of databases: each server has its own from flows.stores alone.
    """
    inherited = {
        k: v
        for k, v in os.environ.items()
        if not k.startswith(("PREFECT_", "MLFLOW_", "_MLFLOW_")) and k != "PYTHONPATH"
    }
    loopback.spare(inherited)
    return {**stores.without(inherited), **variables(state, at, auth)}


def write_client_files(state: State, at: Addresses, auth: str) -> None:
    """Let the literal `prefect …` and `mlflow …` commands find the servers (see the module's text)."""
    addresses = {
        **_mlflow_client(at, auth),
        "PREFECT_API_URL": at.api,
        "PREFECT_API_AUTH_STRING": auth,
        "PREFECT_HOME": str(state.prefect_home),
        "STEEL_HOME": str(state.root),  # prefect.yaml asks for both: `prefect deploy --all`
        TRAINING_POOL: training_pool(),
        "DO_NOT_TRACK": "1",
        **({} if state.is_default else {"STEEL_STATE": str(state.folder)}),
    }
    note = "# Written by `make up`: addresses and password of this clone's servers.\n"
    lines = "".join(f"export {k}={shlex.quote(v)}\n" for k, v in addresses.items())
    write_text(state.env, note + lines + loopback.shell_lines(), private=True)
    if state.is_default:
        import tomli_w

        settings = tomli_w.dumps(prefect_settings(state, at, auth))
        write_text(state.root / "prefect.toml", note + settings, private=True)
