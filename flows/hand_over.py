"""From the pool of the data stages to the pool of the trainings.

With STEEL_TRAINING_POOL another pool than POOL, a whole pipeline begins on POOL and ends there behind the data stages:
it has made a run of the deployment `training` in the other pool, with the same parameters, and says so. That run finds
the data stages done (both see the same artifacts and the same MLflow) and goes on. Nothing waits on a CPU machine
while GPUs train, and each of the two can be cancelled, suspended and retried by itself.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from typing import Any

from prefect.client.orchestration import get_client

from flows.run_names import run_name
from flows.settings import OWN_POOL, TRAINING_POOL
from tasks.settings.config import DATA_STAGES

DEPLOYMENT = "steel/training"


def stages_here(stages: Sequence[str], environ: Mapping[str, str] = os.environ) -> tuple[str, ...]:
    """Those of `stages` that this run does itself; all, unless the trainings have a pool that is not its own."""
    own, training = environ.get(OWN_POOL, ""), environ.get(TRAINING_POOL, "")
    if not own or not training or own == training:
        return tuple(stages)
    here = tuple(stage for stage in stages if stage in DATA_STAGES)
    return here or tuple(stages)


def tag(run: str) -> str:
    """Of the run that goes on with what `run` began."""
    return f"goes-on-from:{run}"


def hand_over(run: str, attempt: int, parameters: Mapping[str, Any]) -> str:
    """Make the run that goes on; its name. The same attempt asked twice makes one run."""
    with get_client(sync_client=True) as client:
        target = client.read_deployment_by_name(DEPLOYMENT)
        made = client.create_flow_run_from_deployment(
            target.id,
            name=run_name(parameters),
            parameters=dict(parameters),
            tags=[*target.tags, tag(run)],
            idempotency_key=f"{run}-{attempt}",
        )
    return made.name
