"""What people do to a flow run by Prefect's API. Prefect reads its settings when imported: set the environment first."""

from __future__ import annotations

from uuid import UUID

from prefect.client.orchestration import get_client
from prefect.exceptions import ObjectNotFound
from prefect.states import AwaitingRetry, Cancelling, Suspended


def suspend(run: str) -> None:
    """As the page does, with its time-out."""
    with get_client(sync_client=True) as client:
        client.set_flow_run_state(UUID(run), Suspended(timeout_seconds=300), force=True)


def resume(run: str) -> None:
    with get_client(sync_client=True) as client:
        client.resume_flow_run(UUID(run))


def cancel(run: str) -> None:
    with get_client(sync_client=True) as client:
        client.set_flow_run_state(UUID(run), Cancelling(), force=True)


def retry(run: str) -> None:
    """As the button Retry."""
    with get_client(sync_client=True) as client:
        client.set_flow_run_state(UUID(run), AwaitingRetry(), force=True)


def delete(run: str) -> None:
    with get_client(sync_client=True) as client:
        client.delete_flow_run(UUID(run))


def state(run: str) -> str:
    """Its name; "deleted" if there is no such run."""
    with get_client(sync_client=True) as client:
        try:
            found = client.read_flow_run(UUID(run)).state
        except ObjectNotFound:
            return "deleted"
    return found.name if found else "Pending"


def ended(run: str) -> bool:
    with get_client(sync_client=True) as client:
        try:
            found = client.read_flow_run(UUID(run)).state
        except ObjectNotFound:
            return True
    return bool(found and found.is_final())
