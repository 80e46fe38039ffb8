"""What a flow run leaves in MLflow: a pipeline's run, a run for each stage that ran, a run for each node.

Nothing here decides what runs. After a node is sealed its record may fail without harm: the artifact is its own
witness, and the next run that meets it records it again.
"""

from __future__ import annotations

import getpass
import logging
import os
import socket
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from tasks.settings.errors import one_line
from tasks.stage import models, provenance
from tasks.stage.names import stage_of, unit_of
from tasks.stage.node import Artifact
from tasks.stage.store import MANIFEST, Store
from tasks.stage.tracking import (
    AWAY,
    COMMIT,
    DIGEST,
    FLOW_RUN,
    NODE,
    PROFILE,
    VERSION,
    Tracker,
)

SHOWN = ("seed", "model", "pretrain", "sft", "dpo", "rl", "evaluate")
"""Sections of the configuration that are the pipeline run's parameters; the rest is in its config.yaml."""
HEADLINES = ("pretrain", "sft", "dpo", "rl", "evaluate", "ablation", "ratio")
"""Stages whose nodes' metrics the pipeline's run repeats."""
USER, NOTE = "mlflow.user", "mlflow.note.content"

log = logging.getLogger(__name__)


@contextmanager
def unless_away(what: str) -> Iterator[None]:
    """What is told to MLflow here may be lost without harm: a later run tells it again."""
    try:
        yield
    except AWAY as error:
        log.warning("%s (%s); the next run records it", what, one_line(error))


class Recording:
    """The records of one flow run."""

    def __init__(self, tracker: Tracker, store: Store, profile: str, flow_run_id: str):
        self._tracker, self._store = tracker, store
        self.commit, self.version = provenance.commit(), provenance.version()
        self._run = {PROFILE: profile, FLOW_RUN: flow_run_id}
        self._pipeline = ""
        self._stages: dict[str, str] = {}
        self._lock = threading.Lock()

    @property
    def origin(self) -> dict[str, str]:
        """Tags that pipeline and node runs share: what was run, where, by which code."""
        code = {COMMIT: self.commit, VERSION: self.version}
        known = {key: value for key, value in code.items() if value}
        source = {USER: _user(), "mlflow.source.name": "steel", "mlflow.source.type": "LOCAL"}
        return {**self._run, "host": socket.gethostname(), **source, **known}

    def begin(self, config: Mapping[str, Any], note: str = "") -> str:
        """Open the pipeline's run, with what decides the model as its parameters and the config as its artifact.

        `note` is its description, Markdown. Returns the run's id.
        """
        name = f"pipeline-{self._run[PROFILE]}"
        tags = {**self.origin, **({NOTE: note} if note else {})}
        self._pipeline = self._tracker.patiently(
            lambda: self._tracker.start("pipeline", name, None, tags), "a new run"
        )
        self._tracker.document(self._pipeline, config, "config.yaml")
        shown = {key: config[key] for key in SHOWN if key in config}
        self._tracker.params(self._pipeline, {PROFILE.rpartition(".")[2]: self._run[PROFILE], **shown})
        return self._pipeline

    def end(
        self, status: str, reused: Mapping[str, str], nodes_run: int, done: Mapping[str, Artifact] = {}
    ) -> None:
        """Close the pipeline's run; `reused` are the runs of reused nodes by name, `done` every node's artifact.

        The metrics of trainings and evaluations are repeated in it: MLflow sums nothing up. Its data sets are what was
        downloaded, its models those that were registered.
        """
        counts = {"nodes_reused": len(reused), "nodes_run": nodes_run}
        for node, artifact in done.items():
            if stage_of(node) in HEADLINES:
                values = artifact.manifest["metrics"]
                counts.update({f"{node.replace(':', '/')}/{key}": value for key, value in values.items()})
        tags = {"steel.reused_runs": ",".join(reused.values())[:7900]}
        with unless_away("MLflow does not take the end of the pipeline's run"):
            self._tracker.document(self._pipeline, dict(reused), "reused.json")
            self._tracker.metrics(self._pipeline, [(k, v, 0) for k, v in counts.items()])
            raw = {unit_of(node): item for node, item in done.items() if stage_of(node) == "download"}
            self._tracker.lineage(self._pipeline, raw)
            self._tracker.finish(self._pipeline, status, tags)
        with unless_away("MLflow does not take the models of the run"):
            for model in models.of_run(self._run[PROFILE], done):
                self._tracker.register(model, self._pipeline)

    def end_stage(self, stage: str, status: str, numbers: Mapping[str, float] = {}) -> None:
        """Close the run of a stage, if any of its nodes ran, with the stage's own numbers as metrics."""
        if run := self._stages.pop(stage, None):
            with unless_away(f"MLflow does not take the numbers of {stage}"):
                self._tracker.metrics(run, [(key, value, 0) for key, value in numbers.items()])
            self.close(run, status)

    def open(self, node: str, tags: Mapping[str, str]) -> str:
        """Open a node's run below that of its stage; its id."""
        return self._tracker.start("node", node, self._stage(stage_of(node)), {NODE: node, **tags})

    def close(self, run_id: str, status: str) -> None:
        """Close a run that made no artifact."""
        with unless_away(f"MLflow does not take that a run has ended as {status}"):
            self._tracker.finish(run_id, status)

    def sealed(self, run_id: str, manifest: Mapping[str, Any]) -> None:
        """Write what a sealed artifact is remembered by, and finish its run."""
        numbers = {**manifest["metrics"], **manifest["counts"], "seconds": manifest["seconds"]}
        self._tracker.metrics(run_id, [(k, v, 0) for k, v in numbers.items()])
        final = self._store.final(manifest["node"], manifest["fingerprint"])
        self._tracker.file(run_id, final / MANIFEST)
        for name in manifest.get("reported_files", ()):
            self._tracker.file(run_id, final / name, name.rpartition("/")[0])
        # the digest tag goes with FINISHED: a reader never sees one without the other
        self._tracker.finish(run_id, "FINISHED", {DIGEST: manifest["digest"]})

    def again(self, artifact: Artifact, tags: Mapping[str, str]) -> str:
        """Record an artifact that was sealed while MLflow was away, in its old run, if it is there; the run's id."""
        with unless_away(f"{artifact.node} is sealed, but MLflow still does not take its record"):
            here = self._tracker.writable(artifact.run_id)
            run_id = artifact.run_id if here else self.open(artifact.node, tags)
            self.sealed(run_id, artifact.manifest)
            return run_id
        return artifact.run_id

    def _stage(self, stage: str) -> str:
        with self._lock:
            if stage not in self._stages:
                self._stages[stage] = self._tracker.patiently(
                    lambda: self._tracker.start("stage", stage, self._pipeline or None, self._run),
                    "a new run",
                )
            return self._stages[stage]


def _user() -> str:
    try:
        return getpass.getuser()
    except (KeyError, OSError):  # a container's user has no name
        return str(os.getuid())
