"""What the Prefect server has to know: the work pool, the deployments of prefect.yaml, the automation.

All three are idempotent. Deploying takes seconds, so it is skipped while nothing that a deployment
is made of has changed (prefect.yaml, the flow's parameters, addresses) and the server still has
every one of them.
"""

from __future__ import annotations

import hashlib
import json
import subprocess
import sys
from collections.abc import Callable, Mapping
from contextlib import suppress
from datetime import timedelta
from pathlib import Path
from typing import Any

import yaml
from prefect.automations import Automation
from prefect.client.orchestration import SyncPrefectClient, get_client
from prefect.client.schemas.actions import WorkPoolCreate
from prefect.client.schemas.objects import StateType
from prefect.events.actions import ChangeFlowRunState
from prefect.events.schemas.automations import EventTrigger, Posture
from prefect.events.schemas.events import ResourceSpecification
from prefect.exceptions import ObjectAlreadyExists, ObjectNotFound

from flows.settings import QUEUES, Addresses, State, pools
from flows.spec import SPECS
from tasks.settings.files import write_json

ZOMBIES = "steel: runs without a heartbeat have crashed"
_BEATS = timedelta(seconds=90)  # three heartbeats, see flows.settings


class DeployError(RuntimeError):
    """`prefect deploy` refused; the message carries what it said."""


def make_pools() -> None:
    """The pools of this clone, and their queues. One that is there already keeps its kind; one that is made here is of
    the kind `process`: a flow run is a child of the worker."""
    with get_client(sync_client=True) as client:
        for pool in pools():
            try:
                client.read_work_pool(pool)
            except ObjectNotFound:
                with suppress(ObjectAlreadyExists):  # the worker was faster
                    client.create_work_pool(WorkPoolCreate(name=pool, type="process"))
            for name in QUEUES:
                _make_queue(client, pool, name)


def _make_queue(client: SyncPrefectClient, pool: str, name: str) -> None:
    try:
        queue = client.read_work_queue_by_name(name, work_pool_name=pool)
    except ObjectNotFound:
        with suppress(ObjectAlreadyExists):  # another clone's worker was faster
            client.create_work_queue(name, concurrency_limit=1, work_pool_name=pool)
    else:
        if queue.concurrency_limit is None:
            client.update_work_queue(queue.id, concurrency_limit=1)


def make_automation() -> None:
    """A run whose process was killed together with its worker would stay Running for ever.

    A suspended run beats no more either, and has not crashed. An automation of an older version is replaced.
    """
    names = ("Completed", "Failed", "Cancelled", "Crashed", "Suspended", "Paused")
    ends = {f"prefect.flow-run.{name}" for name in names}
    trigger = EventTrigger(
        after={"prefect.flow-run.heartbeat"},
        expect={"prefect.flow-run.heartbeat", *ends},
        match=ResourceSpecification({"prefect.resource.id": ["prefect.flow-run.*"]}),
        for_each={"prefect.resource.id"},
        posture=Posture.Proactive,
        threshold=1,
        within=_BEATS,
    )
    with get_client(sync_client=True) as client:
        existing = client.read_automations_by_name(ZOMBIES)
        same = [automation for automation in existing if _expects(automation) == trigger.expect]
        for automation in existing:
            if automation not in same[:1]:
                client.delete_automation(automation.id)
    if same:
        return
    Automation(
        name=ZOMBIES,
        description="Three heartbeats missed: the process is gone. Marks the run Crashed, so that it can be retried.",
        trigger=trigger,
        actions=[ChangeFlowRunState(state=StateType.CRASHED, message="No heartbeat: the process is gone.")],
    ).create()


def _expects(automation: Automation) -> set[str]:
    return automation.trigger.expect if isinstance(automation.trigger, EventTrigger) else set()


def names(root: Path) -> list[str]:
    """The deployments that prefect.yaml declares."""
    declared = yaml.safe_load((root / "prefect.yaml").read_text("utf-8"))
    return [item["name"] for item in declared["deployments"]]


def deploy(
    state: State, at: Addresses, environment: Mapping[str, str], say: Callable[[str], None] = print
) -> bool:
    """Deploy everything in prefect.yaml if something changed; True if it did."""
    make_automation()
    digest = _digest(state.root, at)
    declared = set(names(state.root))
    if _last(state) == digest and declared <= existing():
        return False
    command = [sys.executable, "-m", "flows.deploying"]
    result = subprocess.run(
        command,
        cwd=state.root,
        env=dict(environment),
        capture_output=True,
        text=True,
        stdin=subprocess.DEVNULL,
    )
    state.log("deploy").write_text(result.stdout + result.stderr, "utf-8")
    missing = declared - existing()
    if result.returncode or missing:
        what = f"lacks {', '.join(sorted(missing))}" if missing else f"exited with {result.returncode}"
        raise DeployError(f"prefect deploy {what}; it said:\n{result.stdout[-3000:]}{result.stderr[-3000:]}")
    write_json(state.deployed, {"digest": digest})
    say(f"deployed {len(declared)} deployments of prefect.yaml")
    return True


def existing() -> set[str]:
    """The deployments that the server has."""
    with get_client(sync_client=True) as client:
        return {item.name for item in client.read_deployments(limit=200)}


def _digest(root: Path, at: Addresses) -> str:
    """Digest of all that a deployment is made of: the file, the flow's signature and types, addresses."""
    files = [
        root / "prefect.yaml",
        root / "flows" / "spec.py",
        *(root / file for file in sorted({spec.entrypoint.partition(":")[0] for spec in SPECS})),
        *sorted((root / "tasks" / "settings").glob("*.py")),
    ]
    parts: list[Any] = [str(root), at.prefect, at.mlflow, pools()]
    # the form offers the profiles that there are
    parts += sorted(path.name for path in (root / "deployments" / "profiles").glob("*.yaml"))
    parts += [hashlib.sha256(file.read_bytes()).hexdigest() for file in files]
    return hashlib.sha256(json.dumps(parts).encode()).hexdigest()


def _last(state: State) -> str:
    try:
        return json.loads(state.deployed.read_text("utf-8"))["digest"]
    except (OSError, ValueError, KeyError):
        return ""
