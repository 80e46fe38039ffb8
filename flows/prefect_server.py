"""`python -m flows.prefect_server --host … --port …`: `prefect server start`, idling at a quarter of the cost.

Prefect runs its loops on docket, whose worker looks for due tasks four times a second and has no setting for it.
Here it looks every LOOK_SECONDS; loops that come round once in 5 s or more do not notice. Measured together with
the settings of flows.settings: server, worker and MLflow 5.8 % of a core when idle, 2.0 % with them.
"""

from __future__ import annotations

import sys
from datetime import timedelta
from functools import partial

import docket
from prefect.server.api import background_workers, server

LOOK_SECONDS = 5
BEAT_SECONDS = 10


def main(options: list[str]) -> None:
    """Serve until a signal ends it."""
    look = timedelta(seconds=LOOK_SECONDS)
    background_workers.Worker = partial(  # type: ignore[misc,assignment]
        docket.Worker, minimum_check_interval=look, scheduling_resolution=look
    )
    server.Docket = partial(  # type: ignore[misc,assignment]
        docket.Docket, heartbeat_interval=timedelta(seconds=BEAT_SECONDS)
    )
    from prefect.cli import app

    sys.argv = ["prefect", "server", "start", *options]
    app()


if __name__ == "__main__":
    main(sys.argv[1:])
