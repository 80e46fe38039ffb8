"""Flow runs, from the outside: trigger one, read how it goes, clear away those that nobody runs.

Imports Prefect at its top, and Prefect reads its settings when imported: import this module only
after `servers.up()` has set the environment.
"""

from __future__ import annotations

import time
from collections.abc import Collection, Iterable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from itertools import count
from typing import Any
from uuid import UUID

from prefect.client.orchestration import SyncPrefectClient, get_client
from prefect.client.schemas.actions import WorkPoolUpdate
from prefect.client.schemas.filters import (
    ArtifactFilter,
    ArtifactFilterTaskRunId,
    ArtifactFilterType,
    FlowFilter,
    FlowFilterName,
    FlowRunFilter,
    FlowRunFilterId,
    FlowRunFilterState,
    FlowRunFilterStateType,
    FlowRunFilterTags,
    LogFilter,
    LogFilterFlowRunId,
)
from prefect.client.schemas.objects import FlowRun, StateType, TaskRun
from prefect.client.schemas.sorting import ArtifactSort, FlowRunSort, LogSort, TaskRunSort
from prefect.exceptions import ObjectNotFound, PrefectHTTPStatusError
from prefect.states import Cancelled, Cancelling, Crashed

from flows import hand_over, processes, spec
from flows.run_names import run_name
from flows.settings import POOL

_UNSTARTED = timedelta(seconds=60)
"""A run that never had a process: its worker is about to start one, or died before it could."""


_NEVER = datetime.max.replace(tzinfo=UTC)
_PAGE = 200
"""Task runs that the server gives at a time."""


class RunError(RuntimeError):
    """A run cannot be triggered or read; one line for the user."""


@dataclass(frozen=True)
class TaskLine:
    """A stage or a node, as Prefect has it now."""

    name: str
    state: str
    done: bool
    good: bool
    seconds: float
    message: str
    id: UUID | None = None
    start: datetime | None = None
    """When this attempt began to run."""


@dataclass(frozen=True)
class Snapshot:
    """A flow run at one moment."""

    state: str
    done: bool
    good: bool
    message: str
    tasks: Mapping[str, TaskLine] = field(default_factory=dict)
    """Stages and nodes by name; of a stage whose only node has its name, the stage."""
    nodes: Mapping[str, TaskLine] = field(default_factory=dict)
    """The nodes alone."""


def _line(task: TaskRun) -> TaskLine:
    state = task.state
    return TaskLine(
        task.name,
        (state.name or state.type.value.title()) if state else "Pending",
        bool(state and state.is_final()),
        bool(state and state.is_completed()),
        task.total_run_time.total_seconds() if task.total_run_time else 0.0,
        (state.message or "") if state else "",
        task.id,
        task.start_time,
    )


def trigger(deployment: str, parameters: Mapping[str, Any]) -> UUID:
    """Create a run of `<flow>/<deployment>`; the worker picks it up."""
    with get_client(sync_client=True) as client:
        target = client.read_deployment_by_name(deployment)
        try:
            # its flow gives the same name again when it starts; until then the pages show this one
            name = run_name(parameters, spec.of(deployment).study)
            return client.create_flow_run_from_deployment(
                target.id, name=name, parameters=dict(parameters)
            ).id
        except PrefectHTTPStatusError as error:
            if error.response.status_code not in (409, 422):
                raise
            detail = error.response.json().get("detail", error.response.text)
            raise RunError(f"Prefect refuses the parameters: {detail}") from error


def successor(run: UUID) -> UUID | None:
    """The run that goes on with what this one began, in the pool of the trainings; None if it did all itself."""
    tags = FlowRunFilter(tags=FlowRunFilterTags(all_=[hand_over.tag(str(run))]))
    with get_client(sync_client=True) as client:
        runs = client.read_flow_runs(flow_run_filter=tags, sort=FlowRunSort.EXPECTED_START_TIME_DESC, limit=1)
    return runs[0].id if runs else None


def latest() -> UUID | None:
    """The newest run of our flows."""
    with get_client(sync_client=True) as client:
        runs = client.read_flow_runs(
            flow_filter=FlowFilter(name=FlowFilterName(any_=list(spec.names()))),
            sort=FlowRunSort.START_TIME_DESC,
            limit=1,
        )
    return runs[0].id if runs else None


class Reader:
    """One connection that reads a flow run again and again."""

    def __init__(self, run: UUID):
        self.run = run
        self._client: SyncPrefectClient = get_client(sync_client=True)

    def __enter__(self) -> Reader:
        self._client.__enter__()
        return self

    def __exit__(self, *error: Any) -> None:
        self._client.__exit__(*error)

    def flow_run(self) -> FlowRun:
        return self._client.read_flow_run(self.run)

    def deployment(self) -> str:
        """`<flow>/<deployment>` of the run; "" if it was started without one."""
        run = self.flow_run()
        if run.deployment_id is None:
            return ""
        return f"{self._client.read_flow(run.flow_id).name}/{self._client.read_deployment(run.deployment_id).name}"

    def snapshot(self) -> Snapshot:
        run = self.flow_run()
        tasks: dict[str, TaskLine] = {}
        nodes: dict[str, TaskLine] = {}
        if run.state_type not in (StateType.SCHEDULED, StateType.PENDING):
            begun = sorted(self._task_runs(), key=lambda task: (task.created or _NEVER, task.id))
            for task in begun:
                if task.flow_run_run_count != run.run_count:
                    continue  # of an earlier attempt
                line = _line(task)
                if task.name in tasks or ":" in task.name:  # a stage's task begins before its node's
                    nodes[task.name] = line
                tasks.setdefault(task.name, line)
        state = run.state
        return Snapshot(
            (state.name or state.type.value.title()) if state else "Unknown",
            bool(state and state.is_final()),
            bool(state and state.is_completed()),
            (state.message or "") if state else "",
            tasks,
            nodes,
        )

    def _task_runs(self) -> Iterator[TaskRun]:
        filters = FlowRunFilter(id=FlowRunFilterId(any_=[self.run]))
        for offset in count(0, _PAGE):
            page = self._client.read_task_runs(
                flow_run_filter=filters, sort=TaskRunSort.ID_DESC, limit=_PAGE, offset=offset
            )
            yield from page
            if len(page) < _PAGE:
                return

    def progress(self, tasks: Iterable[TaskLine]) -> dict[str, str]:
        """Task's name -> what its progress bar says now, such as `pretrain: step 120 of 700, … (17 %)`. One that has no
        bar is left out."""
        names = {task.id: task.name for task in tasks if task.id is not None}
        if not names:
            return {}
        bars = self._client.read_artifacts(
            artifact_filter=ArtifactFilter(
                task_run_id=ArtifactFilterTaskRunId(any_=list(names)),
                type=ArtifactFilterType(any_=["progress"]),
            ),
            sort=ArtifactSort.UPDATED_DESC,  # those of a task's earlier tries come last
            limit=200,
        )
        found: dict[str, str] = {}
        for bar in bars:
            if bar.task_run_id in names and isinstance(bar.data, (int, float)):
                found.setdefault(names[bar.task_run_id], f"{bar.description or ''} ({bar.data:.0f} %)")
        return found

    def ahead(self) -> str:
        """The name of the run that this one waits for: one of its queue that goes on. "" if there is none."""
        queue = self.flow_run().work_queue_id
        going = FlowRunFilterState(type=FlowRunFilterStateType(any_=[StateType.RUNNING, StateType.PENDING]))
        runs = self._client.read_flow_runs(flow_run_filter=FlowRunFilter(state=going), limit=200)
        return next(
            (run.name for run in runs if queue and run.work_queue_id == queue and run.id != self.run), ""
        )

    def logs(self, lines: int = 30) -> list[str]:
        """The last lines of the run's log, oldest first."""
        logs = self._client.read_logs(
            log_filter=LogFilter(flow_run_id=LogFilterFlowRunId(any_=[self.run])),
            limit=lines,
            sort=LogSort.TIMESTAMP_DESC,
        )
        return [line.message for line in reversed(logs)]


def reap() -> list[str]:
    """Mark runs Crashed whose process is gone; returns their names.

    When a worker is killed together with its run, nobody tells the server; the automation of
    flows.deploy notices after three missed heartbeats, and until then the next run would wait for
    the deployment's only slot. On this machine we can simply look.
    """
    crashed = []
    with get_client(sync_client=True) as client:
        running = FlowRunFilterState(
            type=FlowRunFilterStateType(any_=[StateType.RUNNING, StateType.PENDING, StateType.CANCELLING])
        )
        runs = client.read_flow_runs(
            flow_filter=FlowFilter(name=FlowFilterName(any_=list(spec.names()))),
            flow_run_filter=FlowRunFilter(state=running),
            limit=200,
        )
        alive = processes.flow_runs() if runs else {}
        for run in runs:
            if str(run.id) in alive or run.work_pool_name != POOL:
                continue  # another pool's workers may be on other machines
            since = run.state.timestamp if run.state else run.created
            if run.infrastructure_pid is None and since and datetime.now(UTC) - since < _UNSTARTED:
                continue
            # a run that has ended well a moment ago has no process either: ask again before judging
            time.sleep(1)
            again = client.read_flow_run(run.id)
            if again.state and again.state.is_final():
                continue
            if again.state and again.state.is_cancelling():
                client.set_flow_run_state(run.id, Cancelled(message=_ENDED), force=True)
                continue
            client.set_flow_run_state(run.id, Crashed(message="Its process is gone."), force=True)
            crashed.append(run.name)
    return crashed


def hold(on: bool) -> None:
    """Let no waiting run begin while the servers are being stopped; off again, let them."""
    with get_client(sync_client=True) as client, suppress(ObjectNotFound):
        client.update_work_pool(POOL, WorkPoolUpdate(is_paused=on))


_ENDED = "Its process has ended."


def cancelled(ids: Iterable[str]) -> None:
    """What a person stopped is Cancelled, also where its worker was stopped before it could say so."""
    with get_client(sync_client=True) as client:
        for run in ids:
            try:
                state = client.read_flow_run(UUID(run)).state
            except ObjectNotFound:
                continue
            if state and (state.is_cancelling() or state.is_crashed()):
                client.set_flow_run_state(UUID(run), Cancelled(message=_ENDED), force=True)


def cancel(ids: Iterable[str]) -> int:
    """Ask for runs to be cancelled (a training saves a checkpoint first); returns how many still went on.

    A run that was deleted from Prefect is passed over: only its process can be told.
    """
    cancelled = 0
    with get_client(sync_client=True) as client:
        for run in ids:
            try:
                state = client.read_flow_run(UUID(run)).state
            except ObjectNotFound:
                continue
            if state and state.is_final():
                continue
            cancelled += 1
            client.set_flow_run_state(UUID(run), Cancelling(message="`make down`"), force=True)
    return cancelled


@dataclass(frozen=True)
class Waiting:
    """A flow run that was asked for and has not begun."""

    id: UUID
    name: str
    deployment: str
    created: datetime
    start: datetime

    def __str__(self) -> str:
        later = self.start - self.created > _UNSTARTED
        when = f"for {_clock(self.start)}" if later else f"since {_clock(self.created)}"
        return f"{self.name} ({self.deployment}, {when}) {self.id}"


def _clock(time: datetime) -> str:
    return f"{time.astimezone():%d %b %H:%M}"


def waiting(besides: Collection[str] = ()) -> list[Waiting]:
    """The runs that the next worker will start, the one that waits longest first, `besides` those of these ids.

    What a schedule has planned for later does not wait.
    """
    unstarted = FlowRunFilterState(type=FlowRunFilterStateType(any_=[StateType.SCHEDULED, StateType.PENDING]))
    with get_client(sync_client=True) as client:
        runs = client.read_flow_runs(
            flow_filter=FlowFilter(name=FlowFilterName(any_=list(spec.names()))),
            flow_run_filter=FlowRunFilter(state=unstarted),
            sort=FlowRunSort.EXPECTED_START_TIME_ASC,
            limit=200,
        )
        names = {item.id: item.name for item in client.read_deployments(limit=200)}
    now = datetime.now(UTC)
    due = [run for run in runs if not run.auto_scheduled or (run.expected_start_time or now) <= now]
    queue = [
        Waiting(
            run.id,
            run.name,
            names.get(run.deployment_id, "no deployment"),
            run.created,
            run.expected_start_time or now,
        )
        for run in due
        if str(run.id) not in besides
    ]
    return sorted(queue, key=lambda run: run.created)


def forget(queue: Iterable[Waiting]) -> None:
    """Cancel runs that have not begun."""
    with get_client(sync_client=True) as client:
        for run in queue:
            client.set_flow_run_state(
                run.id, Cancelled(message="`make down CANCEL=1`, before it began"), force=True
            )
