"""MLflow runs that a killed flow run left open: they are closed when the next one begins."""

from __future__ import annotations

import logging
from uuid import UUID

from prefect.client.orchestration import get_client
from prefect.exceptions import ObjectNotFound

from flows.reporter import AWAY
from tasks.stage import tracking
from tasks.stage.tracking import Tracker

log = logging.getLogger(__name__)


def close(tracker: Tracker, besides: str = "") -> int:
    """End as KILLED what is RUNNING in MLflow for a flow run that has ended or is gone; the number of runs.

    `besides` is the flow run that asks. Nothing is judged by a server that is away.
    """
    closed = 0
    try:
        open_runs = tracker.running()
        ended = _ended({flow_run for _, flow_run in open_runs if flow_run and flow_run != besides})
        for run_id, flow_run in open_runs:
            if flow_run in ended:
                tracker.finish(run_id, "KILLED")
                closed += 1
    except (*AWAY, *tracking.AWAY) as error:
        log.warning("runs that a killed flow left open are not closed now: %r", error)
    if closed:
        log.info("closed %d MLflow run(s) of flow runs that were killed", closed)
    return closed


def _ended(flow_runs: set[str]) -> set[str]:
    ended: set[str] = set()
    if not flow_runs:
        return ended
    with get_client(sync_client=True) as client:
        for run in flow_runs:
            try:
                state = client.read_flow_run(UUID(run)).state
            except ObjectNotFound:
                ended.add(run)
            else:
                if state and state.is_final():
                    ended.add(run)
    return ended
