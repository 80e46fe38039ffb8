"""What people see of a run: Prefect artifacts, progress, `run.json`, and the watch for cancellation."""

from __future__ import annotations

import contextvars
import logging
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from types import TracebackType
from typing import Any
from uuid import UUID

import httpx
import yaml
from prefect.artifacts import (
    create_markdown_artifact,
    create_progress_artifact,
    create_table_artifact,
    update_progress_artifact,
)
from prefect.client.orchestration import get_client
from prefect.exceptions import PrefectException
from prefect.logging import get_run_logger
from prefect.states import State

from flows.spec import FlowSpec
from tasks.settings.files import write_json
from tasks.settings.names import artifact_key
from tasks.stage.node import Artifact, Outcome
from tasks.stage.runner import Runner

POLL_SECONDS = 10.0
PROGRESS_SECONDS = 2.0
AWAY_SECONDS = 30.0
"""Between two tries to report progress to a server that does not answer."""
STOPPED = {"CANCELLING", "CANCELLED", "CRASHED"}

log = logging.getLogger(__name__)


def started(runner: Runner) -> None:
    """Open the MLflow run and show the exact configuration."""
    run = runner.begin()
    config = yaml.safe_dump(runner.config.model_dump(mode="json"), allow_unicode=True, sort_keys=False)
    text = f"MLflow: [{run}]({runner.tracker.url(run)})\n\n```yaml\n{config}```\n"
    create_markdown_artifact(
        text, key="configuration", description=f"profile {runner.config.profile}, resolved"
    )


def stage_headline(runner: Runner, stage: str) -> str:
    """One line for a stage: the sum over equal nodes (one a source), else what its last node says."""
    mine = _results(runner, stage)
    if not mine:
        return ""
    words = mine[-1].headline
    counts = [runner.done[r.name].manifest["counts"] for r in mine if r.name in runner.done]
    if stage == "download":
        words = f"{_sum(counts, 'files'):,} files, {_sum(counts, 'bytes') / 1e6:,.1f} MB"
    elif stage == "convert":
        words = f"{_sum(counts, 'kept'):,} of {_sum(counts, 'records_in'):,} records kept"
    cached = sum(r.state == "Cached" for r in mine)
    many = f"{len(mine)} nodes, {cached} cached" if len(mine) > 1 else ""
    return "; ".join(part for part in (words, many) if part)


def _sum(counts: list[dict[str, int]], name: str) -> int:
    return sum(c.get(name, 0) for c in counts)


def stage_table(runner: Runner, stage: str) -> None:
    """The nodes of a stage, as a table on the page of its task run."""
    rows = [
        {
            "node": r.name,
            "state": r.state,
            "seconds": round(r.seconds, 1),
            "result": r.headline,
            "why": r.reason,
            "MLflow run": r.run_id,
        }
        for r in _results(runner, stage)
    ]
    if rows:
        with unless_away(f"the table of {stage}"):
            create_table_artifact(
                rows, key=f"{stage}-nodes", description=f"what became of each node of {stage}"
            )


def node_summary(runner: Runner, artifact: Artifact, outcome: Outcome) -> None:
    """What a node made, in words, with the way to its MLflow run and its folder."""
    link = f"MLflow: [{artifact.run_id}]({runner.tracker.url(artifact.run_id)}) · `{artifact.path}`\n\n"
    with unless_away(f"the summary of {artifact.node}"):
        create_markdown_artifact(
            link + (outcome.summary or outcome.headline),
            key=artifact_key(artifact.node),
            description=outcome.headline,
        )


@contextmanager
def unless_away(what: str) -> Iterator[None]:
    """What is only shown may be lost: a server that is away fails no node and stops no training."""
    try:
        yield
    except (PrefectException, httpx.HTTPError) as error:
        log.warning("Prefect does not take %s: %r", what, error)


class Progress:
    """A node's progress bar in the UI: `progress(share, text)`, at most one call to the server in 2 s."""

    def __init__(self, name: str):
        self.name = name
        self._log = get_run_logger()
        self._context = contextvars.copy_context()  # of the task: a node may report from threads of its own
        self._artifact: UUID | None = None
        self._next = 0.0

    def __call__(self, share: float, text: str) -> None:
        now = time.monotonic()
        if now < self._next and share < 1:
            return
        self._next = now + AWAY_SECONDS  # a call to a server that is away takes long: not again at once
        percent = round(100 * min(max(share, 0.0), 1.0), 1)
        self._log.info("%s %5.1f %% %s", self.name, percent, text)
        with unless_away(f"the progress of {self.name}"):
            if self._artifact is None:
                self._artifact = self._context.run(
                    create_progress_artifact, percent, description=f"{self.name}: {text}"
                )
            else:
                update_progress_artifact(self._artifact, percent, description=f"{self.name}: {text}")
            self._next = now + PROGRESS_SECONDS

    def __enter__(self) -> Progress:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._artifact is not None and kind is None:
            with unless_away(f"the end of {self.name}"):
                update_progress_artifact(self._artifact, 100.0)


class Watch:
    """Follows the flow run: notes stage times, notices a cancellation that no worker delivered,
    and leaves run.json in the flow's latest folder for the command line."""

    def __init__(self, runner: Runner, spec: FlowSpec):
        self.runner, self.spec = runner, spec
        self._folder = spec.latest(runner.store.root, runner.config.profile)
        self.stages: list[dict[str, Any]] = []
        self._begun = time.monotonic()
        self._thread = threading.Thread(target=self._poll, daemon=True)
        self._thread.start()

    def stage(self, name: str) -> None:
        self.stages.append({"name": name, "state": "Running", "seconds": 0.0})
        self._begun = time.monotonic()

    def stage_ended(self, name: str, state: State) -> None:
        self.stages[-1].update(
            state=state.name or state.type.value.title(),
            seconds=round(time.monotonic() - self._begun, 2),
            headline=stage_headline(self.runner, name),
            nodes=[vars(r) for r in _results(self.runner, name)],
        )

    def headline(self) -> str:
        cached = sum(s["state"] == "Cached" for s in self.stages)
        return f"{len(self.stages)} stages, {cached} cached"

    def ended(self, status: str) -> None:
        runner = self.runner
        if self.stages and self.stages[-1]["state"] == "Running":  # cancelled, or killed by a signal
            self.stages[-1].update(state=status.title(), seconds=round(time.monotonic() - self._begun, 2))
        run = {
            "flow_run_id": runner.flow_run_id,
            "profile": runner.config.profile,
            "state": status,
            "stages": self.stages,
            "mlflow_run_id": runner.pipeline_run,
            "mlflow_url": runner.tracker.url(runner.pipeline_run) if runner.pipeline_run else "",
        }
        write_json(self._folder / "run.json", run)
        result = runner.done.get(self.spec.result)
        if status == "FINISHED" and result:
            self.spec.publish(self._folder, result.path, self.stages)

    def _poll(self) -> None:
        while not self.runner.stop.wait(POLL_SECONDS):
            try:
                with get_client(sync_client=True) as client:
                    state = client.read_flow_run(UUID(self.runner.flow_run_id)).state
            except (
                PrefectException,
                httpx.HTTPError,
            ) as error:  # a server that is away never stops a training
                log.warning("Prefect does not answer: %r", error)
                continue
            if state and state.type.value in STOPPED:
                self.runner.stop.set()


def _results(runner: Runner, stage: str) -> list[Any]:
    names = [n.name for n in runner.nodes.values() if n.stage == stage]
    return [runner.results[name] for name in names if name in runner.results]
