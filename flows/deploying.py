"""`python -m flows.deploying`: `prefect --no-prompt deploy --all`, each flow loaded once.

Twelve deployments are of one flow, and Prefect loads the file and makes the schema of its parameters, 60 kB, anew for
each of them: that was most of what deploying took.
"""

from __future__ import annotations

import sys
from functools import cache

from prefect.cli import app
from prefect.cli.deploy import _core
from prefect.deployments import runner


def main() -> None:
    _core.load_flow_from_entrypoint = cache(_core.load_flow_from_entrypoint)
    _core.parameter_schema = runner.parameter_schema = cache(_core.parameter_schema)
    sys.argv = ["prefect", "--no-prompt", "deploy", "--all"]
    app()


if __name__ == "__main__":
    main()
