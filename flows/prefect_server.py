"""`python -m flows.prefect_server --host … --port …`: `prefect server start`, at a lower cost.

Prefect runs its loops on docket, whose worker looks for due tasks four times a second and has no setting for it.
Here it looks every LOOK_SECONDS; loops that come round once in 5 s or more do not notice. Measured together with
the settings of flows.settings: server, worker and MLflow 5.8 % of a core when idle, 2.0 % with them.

A deployment comes with the schema of its parameters, 60 kB here, and Prefect checks it several times; that was most of
what the first `make up` took. Here a schema is checked once.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from datetime import timedelta
from functools import partial
from hashlib import sha256
from typing import Any

import docket
from jsonschema import Draft202012Validator
from prefect.server.api import background_workers, server

from flows import listening

LOOK_SECONDS = 5
BEAT_SECONDS = 10


def main(options: list[str]) -> None:
    """Serve until a signal ends it."""
    listening.on_the_inherited_socket()
    look = timedelta(seconds=LOOK_SECONDS)
    background_workers.Worker = partial(  # type: ignore[misc,assignment]
        docket.Worker, minimum_check_interval=look, scheduling_resolution=look
    )
    server.Docket = partial(  # type: ignore[misc,assignment]
        docket.Docket, heartbeat_interval=timedelta(seconds=BEAT_SECONDS)
    )
    Draft202012Validator.check_schema = staticmethod(once(Draft202012Validator.check_schema))  # type: ignore[method-assign]
    from prefect.cli import app

    sys.argv = ["prefect", "server", "start", *options]
    app()


def once(check: Callable[..., None]) -> Callable[..., None]:
    """`check(schema)`, but for a schema that it has passed before."""
    passed: set[bytes] = set()

    def checked(schema: Any, **options: Any) -> None:
        content = sha256(json.dumps([schema, sorted(options)], sort_keys=True, default=str).encode()).digest()
        if content not in passed:
            check(schema, **options)
            passed.add(content)

    return checked


if __name__ == "__main__":
    main(sys.argv[1:])
