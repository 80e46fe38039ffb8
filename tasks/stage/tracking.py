"""The only file that speaks to MLflow: the record of what is done, and of how it went.

Runs form a tree: pipeline run → stage run → node run. A node's run carries its fingerprint and the
digest of its artifact: the witness by which a node is skipped (tasks/stage/lookup.py). Parameters are immutable in MLflow and tags are cut at 8,000 characters,
so anything long (configs, identities) is a small artifact instead.
"""

from __future__ import annotations

import json
import logging
import os
import threading
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import requests
from mlflow.entities import Dataset, DatasetInput, InputTag, LoggedModelOutput, Metric, Param, RunTag
from mlflow.entities.model_registry import ModelVersion
from mlflow.exceptions import MlflowException, RestException
from mlflow.tracking import MlflowClient

from tasks.settings import secrets
from tasks.settings.errors import NodeError, one_line
from tasks.settings.names import metric_name as _metric_name
from tasks.stage import models
from tasks.stage.models import Evaluation, Model
from tasks.stage.node import Artifact

EXPERIMENT = "steel"
KIND, NODE, FINGERPRINT, DIGEST = "steel.kind", "steel.node", "steel.fingerprint", "steel.digest"
FLOW_RUN, PROFILE, PARENT = "prefect.flow_run_id", "steel.profile", "mlflow.parentRunId"
COMMIT, VERSION = "mlflow.source.git.commit", "steel.version"
AWAY = (MlflowException, requests.RequestException, ConnectionError)
"""What a server that is down, full or being restarted makes of a call."""
PATIENCE_SECONDS = 600.0
"""How long a call that a node cannot start without waits for a server that is away."""
_POLL_SECONDS = 2.0
_EXPERIMENT_TAGS = {
    # else the page opens on an overview of prompts and traces, which is empty
    "mlflow.experimentKind": "custom_model_development",
    "mlflow.note.content": "Runs of Steel: a `pipeline` run for each flow run, below it one for each stage that did "
    "something, below that one for each node. Numbers to compare stand in the pipeline's run.",
}
_BATCH = 500
_IDS = 400
"""Run ids in one question: the parser of filters stops at 10,000 tokens."""
_FLUSH_SECONDS = 2.0

log = logging.getLogger(__name__)

Answer = TypeVar("Answer")


@dataclass(frozen=True)
class Record:
    """One node run, as MLflow remembers it."""

    run_id: str
    node: str
    status: str
    fingerprint: str
    digest: str
    flow_run_id: str
    profile: str
    parts: Mapping[str, str]
    """Digest of each part of the identity: code, config, inputs, …"""


class Tracker:
    """MLflow, as the pipeline uses it."""

    def __init__(self, uri: str | None = None):
        self.uri = uri or os.environ.get("MLFLOW_TRACKING_URI", "")
        if not self.uri:
            raise NodeError("MLFLOW_TRACKING_URI is not set: start the servers with `make up`")
        if what := secrets.inside(self.uri):
            raise NodeError(
                f"MLFLOW_TRACKING_URI has {what}: it would be logged; use MLFLOW_TRACKING_USERNAME and _PASSWORD"
            )
        # waiting for a server is done here (`patiently`), where a cancelled run can end it
        os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "1")
        os.environ.setdefault("MLFLOW_HTTP_REQUEST_BACKOFF_FACTOR", "1")
        os.environ.setdefault("MLFLOW_HTTP_REQUEST_TIMEOUT", "60")
        self.client = MlflowClient(self.uri)
        self.stop = threading.Event()
        """Set when the run is cancelled: no call waits for a server any longer."""
        self._lineage = threading.Lock()
        try:
            self.experiment = self._experiment()
        except AWAY as error:
            if isinstance(error, RestException) and error.get_http_status_code() in (401, 403):
                raise NodeError(
                    f"MLflow at {self.uri} refuses this shell: `. .steel/env` has the password ({one_line(error)})"
                ) from error
            raise NodeError(
                f"MLflow does not answer at {self.uri}: start the servers with `make up` ({error})"
            ) from error

    def _experiment(self) -> str:
        experiment = self.client.get_experiment_by_name(EXPERIMENT)
        if experiment is None:
            try:
                return self.client.create_experiment(EXPERIMENT, tags=_EXPERIMENT_TAGS)
            except RestException as error:  # two first runs at once: the other one was faster
                if error.error_code != "RESOURCE_ALREADY_EXISTS":
                    raise
                experiment = self.client.get_experiment_by_name(EXPERIMENT)
        if experiment.lifecycle_stage == "deleted":
            log.warning("the MLflow experiment %s was deleted: it is restored, with its runs", EXPERIMENT)
            self.client.restore_experiment(experiment.experiment_id)
        for key, value in _EXPERIMENT_TAGS.items():  # one that an older version made
            if experiment.tags.get(key) != value:
                self.client.set_experiment_tag(experiment.experiment_id, key, value)
        return experiment.experiment_id

    def patiently(self, call: Callable[[], Answer], what: str) -> Answer:
        """The call's answer, asked again while the server is away, up to PATIENCE_SECONDS or until `stop` is set.

        Raises NodeError then. A call that the server refuses (400, 404) is not asked again.
        """
        begun, said = time.monotonic(), False
        while True:
            try:
                return call()
            except AWAY as error:
                if isinstance(error, RestException) and error.get_http_status_code() < 500:
                    raise
                if self.stop.is_set() or time.monotonic() - begun > PATIENCE_SECONDS:
                    raise NodeError(
                        f"MLflow at {self.uri} does not take {what}: `make up` starts it again ({one_line(error)})"
                    ) from error
                if not said:
                    log.warning("MLflow does not take %s; waiting for it (%s)", what, one_line(error))
                    said = True
                self.stop.wait(_POLL_SECONDS)

    def runs(self, ids: Iterable[str]) -> list[Record]:
        """The runs of these ids that are there and not deleted."""
        every, records = list(dict.fromkeys(ids)), []
        for start in range(0, len(every), _IDS):
            text = ",".join(f"'{run_id}'" for run_id in every[start : start + _IDS])
            found = self.client.search_runs(
                [self.experiment], f"attributes.run_id IN ({text})", max_results=_IDS
            )
            records += [_record(run) for run in found]
        return records

    def last(self, node: str, profile: str | None = None) -> Record | None:
        """The newest finished run of a node, of a profile if one is named."""
        words = [f"tags.`{NODE}` = {_quoted(node)}", "attributes.status = 'FINISHED'"]
        if profile is not None:
            words.append(f"tags.`{PROFILE}` = {_quoted(profile)}")
        page = self.client.search_runs(
            [self.experiment], " and ".join(words), max_results=1, order_by=["attributes.start_time DESC"]
        )
        return _record(page[0]) if page else None

    def running(self) -> list[tuple[str, str]]:
        """(run id, flow run id) of every run that is open."""
        page = self.client.search_runs([self.experiment], "attributes.status = 'RUNNING'", max_results=_IDS)
        return [(run.info.run_id, run.data.tags.get(FLOW_RUN, "")) for run in page]

    def find(self, fingerprint: str) -> list[Record]:
        """The node runs of one fingerprint, newest first."""
        runs = self.client.search_runs(
            [self.experiment],
            f"tags.`{KIND}` = 'node' and tags.`{FINGERPRINT}` = '{fingerprint}'",
            order_by=["attributes.start_time DESC"],
        )
        return [_record(run) for run in runs]

    def start(self, kind: str, name: str, parent: str | None, tags: Mapping[str, str]) -> str:
        """Open a run of a kind (`pipeline`, `stage`, `node`) and return its id."""
        every = {KIND: kind, "mlflow.runName": name, **tags}
        if parent:
            every[PARENT] = parent
        return self.client.create_run(self.experiment, tags=every, run_name=name).info.run_id

    def reopen(self, run_id: str, tags: Mapping[str, str]) -> None:
        """Continue a run that did not finish: one loss curve, one run."""
        self.client.update_run(run_id, status="RUNNING")
        for key, value in tags.items():
            self.client.set_tag(run_id, key, value)

    def finish(self, run_id: str, status: str, tags: Mapping[str, str] = {}) -> None:
        """Close a run as FINISHED, FAILED or KILLED; tags first, so that FINISHED implies them."""
        if tags:
            self.client.log_batch(run_id, tags=[RunTag(k, str(v)) for k, v in tags.items()])
        self.client.set_terminated(run_id, status)

    def params(self, run_id: str, values: Mapping[str, Any]) -> None:
        """Log flattened parameters; a reopened run keeps those it has."""
        known = self.client.get_run(run_id).data.params
        flat = {k: v for k, v in _flatten(values) if k not in known}
        items = [Param(key, text[:6000]) for key, text in flat.items()]
        for start in range(0, len(items), 100):
            self.client.log_batch(run_id, params=items[start : start + 100])

    def metrics(self, run_id: str, rows: Iterable[tuple[str, float, int]]) -> None:
        """Log (name, value, step) rows in batches."""
        now = int(time.time() * 1000)
        batch = [Metric(_metric_name(name), float(value), now, step) for name, value, step in rows]
        for start in range(0, len(batch), _BATCH):
            self.client.log_batch(run_id, metrics=batch[start : start + _BATCH])

    def logged(self, run_id: str) -> set[str]:
        """The names of the metrics that a run has."""
        try:
            return set(self.client.get_run(run_id).data.metrics)
        except AWAY as error:
            log.warning(
                "MLflow does not tell the metrics of a run (%s): steps may appear twice", one_line(error)
            )
            return set()

    def logged_step(self, run_id: str, name: str) -> int:
        """The last step of a metric's history, -1 if it has none."""
        try:
            return max(
                (m.step for m in self.client.get_metric_history(run_id, _metric_name(name))), default=-1
            )
        except AWAY as error:
            log.warning(
                "MLflow does not tell the history of %s (%s): steps may appear twice", name, one_line(error)
            )
            return -1

    def file(self, run_id: str, path: Path, folder: str = "") -> None:
        self.client.log_artifact(run_id, str(path), folder or None)

    def document(self, run_id: str, value: Any, name: str) -> None:
        """Log a small JSON or YAML document as an artifact (by the name's suffix)."""
        self.client.log_dict(run_id, value, name)

    def continues(self, run_id: str, fingerprint: str, step: int) -> None:
        """Link a training to the one it goes on from, in both directions; `fingerprint` may be a prefix."""
        tags = {"steel.continues": fingerprint, "steel.continues_from_step": str(step)}
        parents = self.client.search_runs(
            [self.experiment],
            f"tags.`{KIND}` = 'node' and tags.`{FINGERPRINT}` LIKE '{fingerprint}%'",
            order_by=["attributes.start_time DESC"],
        )
        if parents:  # a parent from elsewhere has no run here
            tags["steel.continues_run"] = parents[0].info.run_id
            before = parents[0].data.tags.get("steel.continued_by", "").split(",")
            ids = ",".join(dict.fromkeys([*filter(None, before), run_id]))
            self.client.set_tag(parents[0].info.run_id, "steel.continued_by", ids[-7900:])
        self.client.log_batch(run_id, tags=[RunTag(k, v) for k, v in tags.items()])

    def lineage(self, run_id: str, inputs: Mapping[str, Artifact]) -> None:
        """Record which artifacts, by digest, a run was made from."""
        entries = [
            DatasetInput(
                Dataset(
                    name=item.node,
                    digest=item.digest[:32],
                    source_type="local",
                    source=json.dumps({"uri": item.path.as_uri()}),
                ),
                [InputTag("mlflow.data.context", role)],
            )
            for role, item in inputs.items()
        ]
        if not entries:
            return
        # MLflow looks a data set up and then inserts it: two runs that name the same one for the first time
        # collide, and the loser only has to ask again
        with self._lineage:
            try:
                self.client.log_inputs(run_id, entries)
            except MlflowException as error:
                if "unique" not in str(error).lower():  # SQLite and PostgreSQL say it in other letters
                    raise
                self.client.log_inputs(run_id, entries)

    def register(self, model: Model, run_id: str = "") -> str:
        """The version of a model, made if none has its digest: `newest` points to it, `champion` if the rule says so.
        `run_id`: a run that shows it among its models.

        The files stay where they are: the version is that of a logged model which names their address.
        """
        try:
            self.client.create_registered_model(model.name, tags={"steel.rule": "tasks/stage/models.py"})
        except MlflowException as error:
            if error.error_code != "RESOURCE_ALREADY_EXISTS":
                raise
        known = self.client.search_model_versions(f"name = {_quoted(model.name)}")
        before = (version for version in known if version.tags.get("steel.digest") == model.digest)
        made = next(before, None) or self._version(model)
        version = made.version
        if run_id:  # the server gives a version without its model_id
            self.client.log_outputs(run_id, [LoggedModelOutput(made.source.rpartition("/")[2], 0)])
        if model.evaluation:
            self._evaluated(model.name, made, model.evaluation)
        self.client.set_registered_model_alias(model.name, models.NEWEST, str(version))
        if models.promoted(model.evaluation, self._champion(model.name)):
            self.client.set_registered_model_alias(model.name, models.CHAMPION, str(version))
        return str(version)

    def _version(self, model: Model) -> ModelVersion:
        external = {"mlflow.model.isExternal": "true", "uri": model.uri, "digest": model.digest}
        made = self.client.create_logged_model(
            self.experiment, model.name, source_run_id=model.run_id or None, tags=external, model_type="steel"
        )
        self.client.finalize_logged_model(made.model_id, "READY")
        run_id = model.run_id if model.run_id and self.writable(model.run_id) else None
        if run_id:
            self.client.log_outputs(run_id, [LoggedModelOutput(made.model_id, 0)])
        source = f"models:/{made.model_id}"
        return self.client.create_model_version(
            model.name, source, run_id, tags=dict(model.tags), description=model.uri, model_id=made.model_id
        )

    def _evaluated(self, name: str, made: ModelVersion, evaluation: Evaluation) -> None:
        """Put an evaluation in the place of an earlier one of the same version."""
        scores = {key: f"{value:.6f}" for key, value in evaluation.scores.items()}
        for key in [k for k in made.tags if k.startswith(models.SCORE) and k not in scores]:
            self.client.delete_model_version_tag(name, str(made.version), key)
        for key, value in {**scores, models.ASKED: evaluation.asked}.items():
            self.client.set_model_version_tag(name, str(made.version), key, value)

    def _champion(self, name: str) -> Evaluation | None:
        """The champion's evaluation; None where there is none."""
        aliases = self.client.get_registered_model(name).aliases
        if models.CHAMPION not in aliases:
            return None
        tags = self.client.get_model_version(name, str(aliases[models.CHAMPION])).tags
        scores = models.scores_of(tags)
        return Evaluation(tags.get(models.ASKED, ""), scores) if scores else None

    def writable(self, run_id: str) -> str:
        """The state of a run that can still be written to, such as RUNNING; "" for one that is unknown or deleted."""
        try:
            info = self.client.get_run(run_id).info
        except MlflowException as error:
            if isinstance(error, RestException) and error.get_http_status_code() >= 500:
                raise
            return ""  # no such run
        return info.status if info.lifecycle_stage == "active" else ""

    def page(self) -> str:
        """The page of all runs in the MLflow UI."""
        return f"{self.uri}/#/experiments/{self.experiment}/runs?workflowType=machine_learning"

    def url(self, run_id: str) -> str:
        """The page of a run in the MLflow UI."""
        return (
            f"{self.uri}/#/experiments/{self.experiment}/runs/{run_id}"
            if self.uri.startswith("http")
            else self.uri
        )


class RunTrack:
    """`tasks.stage.node.Track` for one node run.

    A tracking server that is down must not stop training: what could not be sent is kept, and sent
    with the next call; `flush` (called when the node ends) raises if it still cannot.
    """

    def __init__(self, tracker: Tracker, run_id: str):
        self.tracker, self.run_id = tracker, run_id
        self._backlog: list[tuple[str, float, int]] = []
        self._last_step: dict[str, int] = {}
        self._logged: set[str] | None = None
        self._flushed = 0.0

    def metrics(self, values: Mapping[str, float], step: int | None = None) -> None:
        for name, value in values.items():
            if step is not None:
                if name not in self._last_step:  # a resumed run has a history: no step twice
                    self._last_step[name] = self._history(name)
                if step <= self._last_step[name]:
                    continue
                self._last_step[name] = step
            self._backlog.append((name, value, step or 0))
        if time.monotonic() - self._flushed < _FLUSH_SECONDS and len(self._backlog) < _BATCH:
            return
        try:
            self.flush()
        except AWAY as error:
            log.warning(
                "MLflow does not take metrics (%s); %d kept for later", one_line(error), len(self._backlog)
            )

    def _history(self, name: str) -> int:
        """The last step of a metric. A new run, asked once, has none of any: a training has a hundred names."""
        if self._logged is None:
            self._logged = self.tracker.logged(self.run_id)
        return self.tracker.logged_step(self.run_id, name) if _metric_name(name) in self._logged else -1

    def params(self, values: Mapping[str, Any]) -> None:
        self.tracker.patiently(lambda: self.tracker.params(self.run_id, values), "parameters")

    def file(self, path: Path, folder: str = "") -> None:
        self.tracker.patiently(lambda: self.tracker.file(self.run_id, path, folder), "a file")

    def continues(self, fingerprint: str, step: int) -> None:
        self.tracker.patiently(
            lambda: self.tracker.continues(self.run_id, fingerprint, step), "the parent of a run"
        )

    def flush(self) -> None:
        if self._backlog:
            self.tracker.metrics(self.run_id, self._backlog)
            self._backlog.clear()
        self._flushed = time.monotonic()


def _quoted(text: str) -> str:
    """A string in a filter; MLflow has no escape for a quote inside of it, but takes two kinds of quotes."""
    return f'"{text}"' if "'" in text else f"'{text}'"


def _record(run: Any) -> Record:
    tags = run.data.tags
    return Record(
        run_id=run.info.run_id,
        node=tags.get(NODE, ""),
        status=run.info.status,
        fingerprint=tags.get(FINGERPRINT, ""),
        digest=tags.get(DIGEST, ""),
        flow_run_id=tags.get(FLOW_RUN, ""),
        profile=tags.get(PROFILE, ""),
        parts={k.removeprefix("steel.part."): v for k, v in tags.items() if k.startswith("steel.part.")},
    )


def _flatten(values: Mapping[str, Any], prefix: str = "") -> Iterable[tuple[str, str]]:
    for key, value in values.items():
        if isinstance(value, Mapping) and value:
            yield from _flatten(value, f"{prefix}{key}.")
        else:
            yield _metric_name(f"{prefix}{key}"), str(value)
