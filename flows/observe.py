"""What people see of a run: Prefect's artifacts and progress, and `run.json` for the command line."""

from __future__ import annotations

import time
from types import TracebackType
from typing import Any

import yaml
from prefect.logging import get_run_logger
from prefect.settings import PREFECT_API_URL
from prefect.states import State

from flows.reporter import Reporter
from flows.spec import FlowSpec
from tasks.settings.files import write_json
from tasks.settings.names import artifact_key
from tasks.stage.node import Artifact, Outcome
from tasks.stage.runner import Runner

PROGRESS_SECONDS = 2.0


def started(runner: Runner, reporter: Reporter, spec: FlowSpec) -> None:
    """Open the MLflow run and show the exact configuration."""
    page = spec.latest(runner.store.root, runner.config.profile) / spec.page
    here = f"{_ui()}/runs/flow-run/{runner.flow_run_id}"
    run = runner.begin(f"Prefect: [{runner.flow_run_id}]({here})\n\nNewest result: `{page}`")
    config = yaml.safe_dump(runner.config.model_dump(mode="json"), allow_unicode=True, sort_keys=False)
    text = f"MLflow: [{run}]({runner.tracker.url(run)})\n\n```yaml\n{config}```\n"
    reporter.markdown(text, key="configuration", description=f"profile {runner.config.profile}, resolved")


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


def stage_table(runner: Runner, reporter: Reporter, stage: str) -> None:
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
        reporter.table(rows, key=f"{stage}-nodes", description=f"what became of each node of {stage}")


def node_summary(runner: Runner, reporter: Reporter, artifact: Artifact, outcome: Outcome) -> None:
    """What a node made, in words, with the way to its MLflow run and its folder."""
    link = f"MLflow: [{artifact.run_id}]({runner.tracker.url(artifact.run_id)}) · `{artifact.path}`\n\n"
    reporter.markdown(
        link + (outcome.summary or outcome.headline),
        key=artifact_key(artifact.node),
        description=outcome.headline,
    )


class Progress:
    """A node's progress in the UI and, at most once in 2 s, in the log: `progress(share, text)`."""

    def __init__(self, name: str, reporter: Reporter):
        self.name = name
        self._log = get_run_logger()
        self._reporter, self._bar = reporter, reporter.bar(name)
        self._next = 0.0

    def __call__(self, share: float, text: str) -> None:
        percent = round(100 * min(max(share, 0.0), 1.0), 1)
        # more often than every 2 s: the reporter sends the newest, and the last word before a wait must stay
        self._reporter.progress(self._bar, percent, text)
        now = time.monotonic()
        if now >= self._next or share >= 1:
            self._next = now + PROGRESS_SECONDS
            self._log.info("%s %5.1f %% %s", self.name, percent, text)

    def __enter__(self) -> Progress:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._bar.text and kind is None:
            self._reporter.finish(self._bar, 100.0, self._bar.text)
        else:
            self._bar.over = True


class Journal:
    """The stages of a run as they end, left as run.json in the flow's latest folder for the command line."""

    def __init__(self, runner: Runner, spec: FlowSpec):
        self.runner, self.spec = runner, spec
        self._folder = spec.latest(runner.store.root, runner.config.profile)
        self.stages: list[dict[str, Any]] = []
        self._begun = time.monotonic()

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

    def place(self) -> str:
        """Where a run stopped, in words."""
        last = self.stages[-1]["name"] if self.stages else "the first stage"
        return f"stopped in {last}; what is finished is kept, and a training goes on from its checkpoint"

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
        if status == "FINISHED":
            self.spec.point(self._folder, runner.done)
        result = runner.done.get(self.spec.result)
        if status == "FINISHED" and result:
            self.spec.publish(self._folder, result.path, self.stages)


def _ui() -> str:
    return PREFECT_API_URL.value().removesuffix("/api")


def _results(runner: Runner, stage: str) -> list[Any]:
    names = [n.name for n in runner.nodes.values() if n.stage == stage]
    return [runner.results[name] for name in names if name in runner.results]
