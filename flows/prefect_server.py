"""`python -m flows.prefect_server --host … --port …`: what `prefect server start` serves, at a lower cost.

Prefect runs its loops on docket, whose worker looks for due tasks four times a second and has no setting for it.
Here it looks every LOOK_SECONDS; loops that come round once in 5 s or more do not notice. Measured together with
the settings of flows.settings: server, worker and MLflow 5.8 % of a core when idle, 2.0 % with them.

A deployment comes with the schema of its parameters, 60 kB here, and Prefect checks it several times; that was most of
what the first `make up` took. Here a schema is checked once.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable
from datetime import timedelta
from functools import partial
from hashlib import sha256
from typing import Any

import docket
import uvicorn
from jsonschema import Draft202012Validator
from prefect.logging.configuration import setup_logging
from prefect.server.api import background_workers, server
from prefect.settings import get_current_settings

from flows import listening

LOOK_SECONDS = 5
BEAT_SECONDS = 10


def main(host: str, port: int) -> None:
    """Serve until a signal ends it. Raises ports.PortError."""
    listening.serve_on(host, port)
    look = timedelta(seconds=LOOK_SECONDS)
    background_workers.Worker = partial(  # type: ignore[misc,assignment]
        docket.Worker, minimum_check_interval=look, scheduling_resolution=look
    )
    server.Docket = partial(  # type: ignore[misc,assignment]
        docket.Docket, heartbeat_interval=timedelta(seconds=BEAT_SECONDS)
    )
    Draft202012Validator.check_schema = staticmethod(once(Draft202012Validator.check_schema))  # type: ignore[method-assign]
    setup_logging()
    settings = get_current_settings().server
    # without Prefect's own command, which ends when something listens on the port: our socket does
    uvicorn.run(
        server.create_app(final=True),
        host=host,
        port=port,
        timeout_keep_alive=settings.api.keepalive_timeout,
        log_level=settings.logging_level.lower(),
    )


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
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--host", required=True)
    parser.add_argument("--port", type=int, required=True)
    options = parser.parse_args()
    main(options.host, options.port)
