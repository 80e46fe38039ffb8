"""Where the servers keep what they know: SQLite and a folder in the state folder, or PostgreSQL and S3 by setting.

STEEL_PREFECT_DATABASE and STEEL_MLFLOW_DATABASE are `postgresql://user@host:port/database`. The two must differ: both servers
keep their schema's version in a table of the same name. The password is taken out of the address (or comes by
PGPASSWORD, PGPASSFILE, or from the file that STEEL_DATABASE_PASSWORD_FILE names) and handed to that one server as PGPASSWORD: no other process has it, and no address that is
logged, shown or written holds it. STEEL_MLFLOW_ARTIFACTS is `s3://bucket/path`: MLflow's server alone speaks to the store
(MLFLOW_S3_ENDPOINT_URL, AWS_*), everybody else to MLflow.

`<state>/stores.json` remembers where a server was last, without passwords: one that is started without the
setting must not begin anew on an empty SQLite.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from urllib.parse import unquote, urlsplit, urlunsplit

from tasks.settings.files import read_memo, write_json

DATABASES = {"prefect": "STEEL_PREFECT_DATABASE", "mlflow": "STEEL_MLFLOW_DATABASE"}
PASSWORD_FILE = "STEEL_DATABASE_PASSWORD_FILE"
ARTIFACTS = "STEEL_MLFLOW_ARTIFACTS"
BUILT_IN = "sqlite"
"""What a setting says to go back to the state folder."""

_SECRET = (*DATABASES.values(), "PGPASSWORD")
_S3 = ("MLFLOW_S3_ENDPOINT_URL", "MLFLOW_S3_IGNORE_TLS", "MLFLOW_BOTO_CLIENT_ADDRESSING_STYLE")
_SCHEMES = ("postgresql", "postgres")


class StoreError(RuntimeError):
    """A setting of this module is wrong; one line, without the password."""


@dataclass(frozen=True)
class Database:
    """A PostgreSQL database. `url` names no driver and has no password."""

    url: str
    password: str

    def driven_by(self, driver: str) -> str:
        """The address as SQLAlchemy wants it."""
        return f"postgresql+{driver}{self.url.removeprefix('postgresql')}"


def database(server: str, environ: Mapping[str, str] = os.environ) -> Database | None:
    """The PostgreSQL database of a server; None: SQLite. Raises StoreError, which never shows the address."""
    variable = DATABASES[server]
    text = environ.get(variable, "").strip()
    if text in ("", BUILT_IN):
        return None
    try:
        parts = urlsplit(text)
        host, port = parts.hostname, parts.port
    except ValueError as error:
        raise StoreError(f"{variable} is no address: postgresql://user@host:5432/database") from error
    if parts.scheme.partition("+")[0] not in _SCHEMES or not host or not parts.path.strip("/"):
        raise StoreError(f"{variable} wants postgresql://user@host:5432/database, or {BUILT_IN}")
    if "password" in parts.query.lower():
        raise StoreError(f"{variable}: the password does not go behind the `?`; give it by PGPASSWORD")
    name, _, inside = parts.netloc.rpartition("@")[0].partition(":")
    place = f"[{host}]" if ":" in host else host
    at = f"{name}@" * bool(name) + place + (f":{port}" if port else "")
    url = urlunsplit(("postgresql", at, parts.path, parts.query, ""))
    return Database(url, unquote(inside) or environ.get("PGPASSWORD", "") or _from_file(environ))


def _from_file(environ: Mapping[str, str]) -> str:
    path = environ.get(PASSWORD_FILE, "").strip()
    try:
        return Path(path).read_text("utf-8").strip() if path else ""
    except (OSError, ValueError) as error:
        raise StoreError(f"{PASSWORD_FILE}={path} cannot be read ({type(error).__name__})") from error


def artifacts(environ: Mapping[str, str] = os.environ) -> str:
    """Where MLflow's server puts artifacts: `s3://bucket/path`, or "" for the state folder."""
    text = environ.get(ARTIFACTS, "").strip().rstrip("/")
    if not text:
        return ""
    parts = urlsplit(text)
    if parts.scheme != "s3" or not parts.netloc or "@" in parts.netloc or parts.query:
        raise StoreError(
            f"{ARTIFACTS} wants s3://bucket/path; keys go to AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY"
        )
    if not find_spec("boto3"):
        raise StoreError(f"{ARTIFACTS} needs the package boto3: .venv/bin/python -m pip install boto3")
    return text


def server_variables(server: str, environ: Mapping[str, str] = os.environ) -> dict[str, str]:
    """What the process of one server has in its environment beside what all have. Raises StoreError."""
    if server not in DATABASES:
        return {}
    mine = database(server, environ)
    both = [found for name in DATABASES if (found := database(name, environ))]
    if len(both) == 2 and both[0].url == both[1].url:
        raise StoreError(
            f"{' and '.join(DATABASES.values())} must be two databases: both keep a table alembic_version"
        )
    more = {"PGPASSWORD": mine.password} if mine and mine.password else {}
    if server == "prefect":
        return {**more, "PREFECT_SERVER_DATABASE_CONNECTION_URL": mine.driven_by("asyncpg")} if mine else {}
    if mine:
        more[DATABASES["mlflow"]] = mine.url
        _driver()
    if place := artifacts(environ):
        more.update({ARTIFACTS: place, **{name: environ[name] for name in _S3 if name in environ}})
    return more


def mlflow_database(folder: Path, environ: Mapping[str, str] = os.environ) -> str:
    """The address that MLflow's server opens; `folder` is for SQLite."""
    mine = database("mlflow", environ)
    return mine.driven_by(_driver()) if mine else f"sqlite:///{folder}/mlflow.db"


def without(environ: Mapping[str, str]) -> dict[str, str]:
    """An environment without the addresses and passwords of databases."""
    return {name: value for name, value in environ.items() if name not in _SECRET}


def same_as_before(path: Path, server: str, environ: Mapping[str, str] = os.environ) -> None:
    """Raises StoreError if a server that was on PostgreSQL would begin on an empty SQLite; else remembers its place."""
    known = read_memo(path)
    if server not in DATABASES:
        return
    mine, variable = database(server, environ), DATABASES[server]
    was = known.get(server, BUILT_IN)
    if mine is None and was != BUILT_IN and environ.get(variable, "").strip() != BUILT_IN:
        raise StoreError(
            f"{server} was on {was}: set {variable} again, or to `{BUILT_IN}` to leave that database"
        )
    now = mine.url if mine else BUILT_IN
    if now != was:
        write_json(path, {**known, server: now})


def _driver() -> str:
    for name in ("psycopg", "psycopg2"):
        if find_spec(name):
            return name
    raise StoreError(
        f"{DATABASES['mlflow']} needs a driver: .venv/bin/python -m pip install 'psycopg[binary]'"
    )
