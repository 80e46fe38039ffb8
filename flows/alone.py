"""`python -m flows.alone prefect|mlflow|deploy|worker`: one of the processes in the foreground, under another's supervision.
`python -m flows.alone check [prefect|mlflow]`: exit code 0 if the servers answer (1: they do not), for a health check.

For containers, systemd and jobs of a cluster, where `make up` is not the one that starts things. The settings are those of
`make up` (flows.settings); what differs comes by variables:

STEEL_AUTH_FILE            a file with `user:password` of both servers: a mounted secret
STEEL_PREFECT_ADDRESS      http://host:port of the Prefect server, as its clients reach it (default http://127.0.0.1:4200)
STEEL_MLFLOW_ADDRESS       the same of MLflow (default http://127.0.0.1:5000)
STEEL_LISTEN               the interface that a server listens on (default 127.0.0.1)
STEEL_POOL                 the pool that a worker serves (default steel-local)
STEEL_…_DATABASE, STEEL_MLFLOW_ARTIFACTS   see flows.stores

A worker waits until Prefect answers. SIGTERM ends each of them; a worker ends its flow runs behind a checkpoint.
"""

from __future__ import annotations

import argparse
import os
import signal
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from urllib.parse import urlsplit

from flows import health, stores
from flows.ports import DEFAULTS, HOST, PortError
from flows.settings import OWN_POOL, POOL, Addresses, State, auth_string, clean_environment
from tasks.settings import secrets

NAMES = ("prefect", "mlflow", "deploy", "worker")
WAIT_SECONDS = 300


class AloneError(RuntimeError):
    """A variable is wrong or a server does not come; one line."""


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m flows.alone", description="One process in the foreground."
    )
    parser.add_argument("name", choices=(*NAMES, "check"))
    parser.add_argument("server", nargs="?", choices=tuple(DEFAULTS), help="the one to check; default: both")
    options = parser.parse_args(arguments)
    if options.server and options.name != "check":
        parser.error(f"{options.name} takes nothing more")
    try:
        if options.name == "check":
            return _check([options.server] if options.server else list(DEFAULTS))
        return _run(options.name)
    except (AloneError, PortError, stores.StoreError) as error:
        print(error, file=sys.stderr)
        return 2


def addresses(environ: Mapping[str, str] = os.environ) -> Addresses:
    """Where the clients reach the servers. Raises AloneError; an address with a password in it is not repeated."""
    found = {}
    for name, port in DEFAULTS.items():
        variable = f"STEEL_{name.upper()}_ADDRESS"
        text = environ.get(variable, "").strip() or f"http://{HOST}:{port}"
        if what := secrets.inside(text):
            raise AloneError(f"{variable} has {what}: the password of both servers is in STEEL_AUTH_FILE")
        try:
            parts = urlsplit(text)
            found[name] = (parts.hostname or "", parts.port or port)
        except ValueError:
            parts = urlsplit("")
        if parts.scheme != "http" or not parts.hostname or parts.path.strip("/") or parts.query:
            raise AloneError(f"{variable} wants http://host:port")
    (prefect, prefect_port), (mlflow, mlflow_port) = found["prefect"], found["mlflow"]
    return Addresses(prefect_port, mlflow_port, prefect, mlflow)


def password(state: State, environ: Mapping[str, str] = os.environ) -> str:
    """`user:password` of both servers: of STEEL_AUTH_FILE, else of the state folder."""
    path = environ.get("STEEL_AUTH_FILE", "").strip()
    if not path:
        return auth_string(state)
    try:
        text = Path(path).read_text("utf-8").strip()
    except (OSError, ValueError) as error:
        raise AloneError(f"STEEL_AUTH_FILE={path} cannot be read ({type(error).__name__})") from error
    if not all(text.partition(":")[::2]) or len(text.splitlines()) != 1:
        raise AloneError(f"STEEL_AUTH_FILE={path} holds no line `user:password`")
    return text


def _run(name: str) -> int:
    state = State.default()
    state.make()
    at, auth = addresses(), password(state)
    listen = os.environ.get("STEEL_LISTEN", "").strip() or HOST
    more = stores.server_variables(name)
    stores.same_as_before(state.stores, name)
    environment = {**clean_environment(state, at, auth), **more}
    # what a browser is told: the port is published on the machine that it runs on
    environment["PREFECT_SERVER_UI_API_URL"] = f"http://{HOST}:{at.prefect_port}/api"
    for key in set(os.environ) - set(environment):
        del os.environ[key]
    os.environ.update(environment)
    os.chdir(state.root)
    # a shell's background job inherits it ignored, and Prefect's worker, which turns SIGTERM into SIGINT, would not end
    signal.signal(signal.SIGINT, signal.default_int_handler)
    if name == "prefect":
        from flows import prefect_server

        prefect_server.main(listen, at.prefect_port)
    elif name == "mlflow":
        from flows import listening, mlflow_server

        listening.serve_on(listen, at.mlflow_port)
        mlflow_server.serve(state, at, auth, listen)
    else:
        _wait_for(health.address("prefect", at))
        from flows import deploy

        deploy.make_pools()
        if name == "deploy":
            deploy.deploy(state, at, environment)
        else:
            pool = os.environ.get(OWN_POOL, "").strip() or POOL
            command = ["prefect", "worker", "start", "--pool", pool, "--type", "process"]
            os.execv(sys.executable, [sys.executable, "-m", *command])
    return 0


def _check(servers: Sequence[str]) -> int:
    at = addresses()
    problems = [f"{name}: {why}" for name in servers if (why := health.problem(health.address(name, at)))]
    print("\n".join(problems) or "up")
    return 1 if problems else 0


def _wait_for(url: str) -> None:
    end = time.monotonic() + WAIT_SECONDS
    while why := health.problem(url):
        if time.monotonic() > end:
            raise AloneError(f"{url} does not answer within {WAIT_SECONDS} s ({why})")
        time.sleep(1)


if __name__ == "__main__":
    sys.exit(main())
