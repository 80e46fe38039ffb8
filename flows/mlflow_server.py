"""`python -m flows.mlflow_server PORT`: MLflow's tracking server behind our gate, in one process.

In place of `mlflow server`, which starts the same application without a gate and has no switch for
its Assistant. What its options say is told by variables whose names are private to MLflow:
tests/flows/test_mlflow_server.py fails when a new version takes them no longer.
"""

from __future__ import annotations

import os
import sys

import uvicorn

from flows import listening, stores
from flows.gate import Gate
from flows.mlflow_page import FirstView
from flows.ports import HOST
from flows.settings import Addresses, State, auth_string

ARTIFACTS = "mlflow-artifacts:/"
"""The root that runs are told: artifacts go through the server, never to a path."""


def main(port: int) -> None:
    """Serve on this machine until a signal ends it. Raises ports.PortError."""
    listening.serve_on(HOST, port)
    state = State.default()
    serve(state, Addresses(0, port), auth_string(state), HOST)


def serve(state: State, at: Addresses, auth: str, listen: str) -> None:
    """Serve on the interface `listen` until a signal ends it.

    The database is made or migrated first: one that is broken ends the start. Raises stores.StoreError.
    """
    database = stores.mlflow_database(state.mlflow_home)
    destination = stores.artifacts() or str(state.mlflow_home / "artifacts")
    # MLflow reads its variables when imported, so they are set before
    from mlflow.server import constants

    os.environ.update(
        {
            constants.BACKEND_STORE_URI_ENV_VAR: database,
            constants.REGISTRY_STORE_URI_ENV_VAR: database,
            constants.ARTIFACT_ROOT_ENV_VAR: ARTIFACTS,
            constants.ARTIFACTS_DESTINATION_ENV_VAR: destination,
            constants.SERVE_ARTIFACTS_ENV_VAR: "true",
        }
    )
    from mlflow.server.handlers import initialize_backend_stores

    initialize_backend_stores(database, database, ARTIFACTS)
    # MLflow's own accounts are not used and not installed, but every search tries to import them anew: that takes time, and
    # another thread that sees the half-imported module answers 500
    sys.modules["mlflow.server.auth"] = None  # type: ignore[assignment]
    from mlflow.server.fastapi_app import app

    uvicorn.run(
        Gate(FirstView(app), at.mlflow_hosts, auth), host=listen, port=at.mlflow_port, access_log=False
    )


if __name__ == "__main__":
    main(int(sys.argv[1]))
