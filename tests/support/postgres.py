"""A PostgreSQL server of its own in a temporary folder, where Debian's or another's binaries are installed."""

from __future__ import annotations

import contextlib
import os
import pwd
import secrets
import shutil
import socket
import subprocess
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pytest

OWNER = "steel"
_NEEDED = ("initdb", "postgres", "pg_isready", "createdb")


class Postgres(NamedTuple):
    """A server that runs. Its databases `prefect` and `mlflow` belong to a user with a password."""

    port: int
    password: str
    log: Path

    def url(self, database: str, password: str = "") -> str:
        inside = f":{password}" if password else ""
        return f"postgresql://{OWNER}{inside}@127.0.0.1:{self.port}/{database}"


def binaries() -> Path | None:
    """The folder with `postgres` and `initdb`: on the path, or where Debian puts them."""
    debian = sorted(Path("/usr/lib/postgresql").glob("*/bin/initdb"))
    found = [Path(path).resolve() for path in [shutil.which("initdb")] if path]
    complete = [
        path.parent
        for path in (*debian[-1:], *found)
        if all((path.parent / name).exists() for name in _NEEDED)
    ]
    return complete[0] if complete else None


@contextlib.contextmanager
def running() -> Iterator[Postgres]:
    """Start one with password logins on a free port of loopback; skips the test where there is none."""
    programs = binaries()
    if programs is None:
        pytest.skip("no PostgreSQL here: apt-get install postgresql")
    account = _account()
    password, port = secrets.token_urlsafe(12), _free_port()
    with tempfile.TemporaryDirectory(prefix="steel-postgres-") as name:
        folder = Path(name)
        data, log = folder / "data", folder / "log"
        secret = folder / "password"
        secret.write_text(password)
        if account:
            for path in (folder, secret):
                os.chown(path, account.pw_uid, account.pw_gid)
        who = {"user": account.pw_uid, "group": account.pw_gid, "extra_groups": []} if account else {}
        environment = {"PATH": os.environ["PATH"], "LC_ALL": "C.UTF-8", "TZ": "UTC"}

        def call(*command: str) -> None:
            done = subprocess.run(command, capture_output=True, text=True, env=environment, cwd=folder, **who)
            assert done.returncode == 0, done.stdout + done.stderr

        made = (
            "--auth=scram-sha-256",
            "--encoding=UTF8",
            "--no-sync",
            f"--pwfile={secret}",
            f"--username={OWNER}",
        )
        call(str(programs / "initdb"), f"--pgdata={data}", *made)
        options = f"-c listen_addresses=127.0.0.1 -p {port} -k {folder} -c fsync=off -c shared_buffers=32MB"
        server = subprocess.Popen(
            [programs / "postgres", "-D", data, *options.split()],
            stdout=log.open("wb"),
            stderr=subprocess.STDOUT,
            env=environment,
            cwd=folder,
            **who,
        )
        try:
            environment["PGPASSWORD"] = password
            _wait(programs, port)
            for database in ("prefect", "mlflow"):
                call(str(programs / "createdb"), "-h", "127.0.0.1", "-p", str(port), "-U", OWNER, database)
            yield Postgres(port, password, log)
        finally:
            server.terminate()
            server.wait(30)


def _account() -> pwd.struct_passwd | None:
    """PostgreSQL refuses to run as root."""
    if os.geteuid():
        return None
    for name in ("postgres", "nobody"):
        with contextlib.suppress(KeyError):
            return pwd.getpwnam(name)
    pytest.skip("PostgreSQL does not run as root, and there is no account `postgres` or `nobody`")


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def _wait(programs: Path, port: int) -> None:
    end = time.monotonic() + 60
    ready = [programs / "pg_isready", "-q", "-h", "127.0.0.1", "-p", str(port)]
    while subprocess.run(ready).returncode:
        assert time.monotonic() < end, "PostgreSQL does not answer"
        time.sleep(0.2)
