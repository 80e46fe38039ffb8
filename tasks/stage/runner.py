"""The stage contract, kept: fingerprint → skip or run → publish.

`Runner` walks declared nodes. For each it computes the fingerprint (name, version, code, config,
digests of inputs), looks for a FINISHED MLflow run of it whose artifact is whole, and otherwise
runs the body in a work folder, seals and renames it, and closes the MLflow run. A killed run leaves
either a work folder to resume from or a finished artifact, never half of one. It knows nothing of
Prefect: `flows.stages` wraps its calls into tasks.
"""

from __future__ import annotations

import json
import logging
import shutil
import socket
import threading
import time
from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from tasks.settings.config import SteelRun
from tasks.stage.fingerprint import SCHEMA, canonical, code_digest, digest
from tasks.stage.lookup import Lookup
from tasks.stage.names import NodeRef
from tasks.stage.node import Artifact, Context, Node, Outcome
from tasks.stage.recording import Recording, unless_away
from tasks.stage.store import MANIFEST, Store, content_digest
from tasks.stage.tracking import FINGERPRINT, Record, RunTrack, Tracker

UNRECORDED = "sealed and whole; MLflow has no finished run of it, so it is recorded again"
"""Why an artifact is reused that was sealed while MLflow was away."""


@dataclass
class Resolution:
    """What is known of a node before it runs."""

    node: Node
    identity: dict[str, Any]
    fingerprint: str
    artifact: Artifact | None
    """The finished artifact, if it can be reused."""
    reason: str
    """Why it is reused, or why it has to run."""
    unrecorded: bool = False
    """The artifact is sealed and whole, and MLflow has no finished run of it."""


@dataclass
class Result:
    """How a node ended; what the final table and run.json show."""

    name: str
    state: str
    seconds: float = 0.0
    headline: str = ""
    run_id: str = ""
    reason: str = ""


@dataclass
class Runner:
    """One flow run's walk over the nodes."""

    config: SteelRun
    nodes: Mapping[str, Node]
    store: Store
    tracker: Tracker
    flow_run_id: str
    force: frozenset[str] = frozenset()
    done: dict[str, Artifact] = field(default_factory=dict)
    results: dict[str, Result] = field(default_factory=dict)
    pipeline_run: str = ""
    stop: threading.Event = field(default_factory=threading.Event)

    def __post_init__(self) -> None:
        for item in self.force:
            if item not in self.nodes and item not in {n.stage for n in self.nodes.values()}:
                raise ValueError(f"force: there is no stage or node {item!r}")
        for node in self.nodes.values():
            _code(node)  # parsed now, while there is one thread
        self.tracker.stop = self.stop
        self.recording = Recording(self.tracker, self.store, self.config.profile, self.flow_run_id)
        self._lookup = Lookup(self.tracker, self.store, self.nodes)

    # -------------------------------------------------------------------------- planning
    def resolve(self, node: Node, known: Mapping[str, Artifact] | None = None) -> Resolution:
        """Fingerprint a node and decide whether its artifact can be reused.

        Its inputs are looked up in `known`, or else in what this run has made or adopted.
        """
        identity = self._identity(node, self.done if known is None else known)
        hashed = {k: v for k, v in identity.items() if k != "code" or node.on_code_change == "rerun"}
        fingerprint = digest(hashed)
        forced = self._forced(node)
        records = [r for r in self._lookup.of(node.name, fingerprint) if r.status == "FINISHED"]
        reason = ""
        for record in records:
            if forced and record.flow_run_id != self.flow_run_id:
                reason = "forced"
                continue  # forced once per flow run: a Retry is satisfied by what the first try made
            manifest, wrong = self.store.check(
                node.name, fingerprint, record.digest, self.config.runtime.verify
            )
            if wrong:
                reason = f"its artifact cannot be used: {wrong}"
                break  # older records name the same folder
            final = self.store.final(node.name, fingerprint)
            artifact = Artifact(node.name, final, record.digest, fingerprint, manifest, record.run_id, True)
            return Resolution(node, identity, fingerprint, artifact, "same fingerprint, artifact verified")
        recorded = {record.run_id for record in records}
        if reason != "forced" and (artifact := self._sealed(node, fingerprint, forced, recorded)):
            return Resolution(node, identity, fingerprint, artifact, UNRECORDED, unrecorded=True)
        return Resolution(
            node, identity, fingerprint, None, reason or self._explain(node, fingerprint, identity)
        )

    def _sealed(
        self, node: Node, fingerprint: str, forced: bool, recorded: Collection[str]
    ) -> Artifact | None:
        """An artifact that MLflow does not know as finished: the server was away when it was sealed.

        Its manifest carries the fingerprint and is its own witness; every file is hashed, whatever
        `runtime.verify` says, because no second record vouches for it. One whose run MLflow has as finished
        with another digest was altered since.
        """
        manifest, wrong = self.store.check(node.name, fingerprint, None, "size")
        if wrong or manifest["run_id"] in recorded:
            return None
        if forced and manifest["flow_run_id"] != self.flow_run_id:
            return None
        if self.store.check(node.name, fingerprint, None, "full")[1]:
            return None
        final = self.store.final(node.name, fingerprint)
        return Artifact(node.name, final, manifest["digest"], fingerprint, manifest, manifest["run_id"], True)

    def adopt(self, resolution: Resolution) -> Artifact:
        """Take a reusable artifact as this run's own; in a run, one that MLflow does not know is recorded again."""
        artifact = resolution.artifact
        if resolution.unrecorded and self.pipeline_run:
            run_id = self.recording.again(artifact, self._tags(resolution))
            artifact = replace(artifact, run_id=run_id)
        self.done[artifact.node] = artifact
        self.results[artifact.node] = Result(
            artifact.node,
            "Cached",
            0.0,
            artifact.manifest.get("headline", ""),
            artifact.run_id,
            resolution.reason,
        )
        return artifact

    def _forced(self, node: Node) -> bool:
        return not self.force.isdisjoint((node.name, node.stage))

    def _tried_before(self, node: Node, fingerprint: str) -> bool:
        """Whether an earlier try of this very flow run has begun it: a Retry does not force again."""
        return any(r.flow_run_id == self.flow_run_id for r in self._lookup.of(node.name, fingerprint))

    def _identity(self, node: Node, known: Mapping[str, Artifact]) -> dict[str, Any]:
        return {
            "schema": SCHEMA,
            "node": node.name,
            "version": node.version,
            "code": _code(node),
            "config": canonical(node.config),
            "seed": self.config.seed if node.seeded else None,
            "inputs": {role: _input(ref, known).digest for role, ref in node.sources.items()},
            "external": dict(node.external()) if node.external else {},
        }

    def _explain(self, node: Node, fingerprint: str, identity: Mapping[str, Any]) -> str:
        """Which part of the identity differs from the last finished run of this node."""
        last = self._lookup.last(node.name, self.config.profile)
        if last is None:
            return "never finished before"
        if last.fingerprint == fingerprint:
            _, wrong = self.store.check(node.name, fingerprint, None, "size")
            return f"its artifact cannot be used: {wrong}" if wrong else "no run of it counts any more"
        changed = [k for k, v in _parts(identity).items() if last.parts.get(k) != v]
        text = ", ".join(changed) or "nothing that counts"
        if "config" in changed:
            text += self._config_difference(node, last, identity)
        same = last.profile == self.config.profile
        return f"changed since {'the last run' if same else 'another profile'}: {text}"

    def _config_difference(self, node: Node, last: Record, identity: Mapping[str, Any]) -> str:
        try:
            old = json.loads((self.store.final(node.name, last.fingerprint) / MANIFEST).read_text("utf-8"))
        except (OSError, ValueError):
            return ""  # the old artifact is gone: the digests alone tell that the config differs
        names = list(_differences(old.get("identity", {}).get("config", {}), identity["config"]))
        return f" ({'; '.join(names[:4])}{' …' if len(names) > 4 else ''})" if names else ""

    # --------------------------------------------------------------------------- running
    def begin(self, note: str = "") -> str:
        """Open the pipeline's MLflow run, with the resolved config as its artifact and `note` as its description."""
        self.pipeline_run = self.recording.begin(self.config.model_dump(mode="json"), note)
        return self.pipeline_run

    def end(self, status: str) -> None:
        """Close the pipeline's run; it lists the node runs it reused."""
        if self.pipeline_run:
            reused = {r.name: r.run_id for r in self.results.values() if r.state == "Cached"}
            self.recording.end(status, reused, len(self.results) - len(reused), self.done)

    def end_stage(self, stage: str, status: str) -> None:
        """Close the MLflow run of a stage, if any of its nodes ran."""
        mine = [
            self.results[n.name] for n in self.nodes.values() if n.stage == stage and n.name in self.results
        ]
        numbers: dict[str, float] = {
            "nodes": len(mine),
            "nodes_reused": sum(result.state == "Cached" for result in mine),
            "seconds": round(sum(result.seconds for result in mine), 3),
        }
        for result in mine:
            counts = self.done[result.name].manifest["counts"] if result.name in self.done else {}
            for key, value in counts.items():
                numbers[key] = numbers.get(key, 0) + value
        self.recording.end_stage(stage, status, numbers)

    def run(
        self,
        resolution: Resolution,
        logger: logging.Logger,
        progress: Callable[[float, str], None] = lambda share, text: None,
        tags: Mapping[str, str] = {},
    ) -> tuple[Artifact, Outcome | None]:
        """Run a node to a published artifact. Outcome is None if another writer made it meanwhile."""
        node, fingerprint = resolution.node, resolution.fingerprint
        logger.info("%s runs: %s", node.name, resolution.reason)
        started = time.monotonic()
        owner = f"flow run {self.flow_run_id}"
        with self.store.lock(node.name, fingerprint, owner, logger.warning, self.stop.is_set) as waited:
            if waited:  # someone else held this fingerprint: it may be done by now
                self._lookup.again(node.name, fingerprint)
                again = self.resolve(node)
                if again.artifact:
                    return self.adopt(again), None
            work, resumed, run_id = self._open(resolution, tags)
            track = RunTrack(self.tracker, run_id)
            inputs = {role: _input(ref, self.done) for role, ref in node.sources.items()}
            context = Context(
                name=node.name,
                out=work,
                config=node.config,
                inputs=inputs,
                runtime=self.config.runtime,
                seed=self.config.seed if node.seeded else 0,
                log=logger,
                track=track,
                progress=progress,
                resumed=resumed,
                forced=self._forced(node) and not self._tried_before(node, fingerprint),
                should_stop=self.stop.is_set,
            )
            status = "KILLED"
            try:
                track.params(canonical(node.config))
                if not resumed:
                    self.tracker.patiently(
                        lambda: self.tracker.lineage(run_id, inputs), "the inputs of a run"
                    )
                outcome = node.body(context)
                seconds = time.monotonic() - started
                manifest = self._publish(resolution, inputs, outcome, seconds, run_id)
                status = "FINISHED"
            except Exception:
                status = "FAILED"
                raise
            finally:
                if status != "FINISHED":
                    self.recording.close(run_id, status)
                    self.results[node.name] = Result(
                        node.name, "Failed", time.monotonic() - started, "", run_id, resolution.reason
                    )
            # sealed: from here on nothing fails the node
            with unless_away(f"{node.name} is sealed, but MLflow does not take its record"):
                track.flush()
                self.recording.sealed(run_id, manifest)
        final = self.store.final(node.name, fingerprint)
        artifact = Artifact(node.name, final, manifest["digest"], fingerprint, manifest, run_id)
        self.done[node.name] = artifact
        self.results[node.name] = Result(
            node.name, "Completed", seconds, outcome.headline, run_id, resolution.reason
        )
        return artifact, outcome

    def _open(self, resolution: Resolution, tags: Mapping[str, str]) -> tuple[Any, bool, str]:
        """Work folder, whether it holds earlier work, and the MLflow run to write to."""
        node, fingerprint = resolution.node, resolution.fingerprint
        work = self.store.work(node.name, fingerprint)
        forced = self._forced(node)
        unfinished = [r for r in self._lookup.of(node.name, fingerprint) if r.status != "FINISHED"]
        if forced:  # start over, except where this very flow run began before
            unfinished = [r for r in unfinished if r.flow_run_id == self.flow_run_id]
        resumed = node.resumable and work.exists() and (bool(unfinished) or not forced)
        if not resumed:
            shutil.rmtree(work, ignore_errors=True)
        work.mkdir(parents=True, exist_ok=True)
        every = {**self._tags(resolution), **tags}
        if resumed and unfinished:
            run_id = unfinished[0].run_id
            self.tracker.patiently(lambda: self.tracker.reopen(run_id, every), "a run that goes on")
            return work, True, run_id
        run_id = self.tracker.patiently(lambda: self.recording.open(node.name, every), "a new run")
        self.store.begin(node.name, fingerprint, run_id, self.flow_run_id)
        return work, resumed, run_id

    def _tags(self, resolution: Resolution) -> dict[str, str]:
        return {
            FINGERPRINT: resolution.fingerprint,
            "steel.reason": resolution.reason[:4000],
            **{f"steel.part.{k}": v for k, v in _parts(resolution.identity).items()},
            **self.recording.origin,
        }

    def _publish(
        self,
        resolution: Resolution,
        inputs: Mapping[str, Artifact],
        outcome: Outcome,
        seconds: float,
        run_id: str,
    ) -> dict[str, Any]:
        return self.store.publish(
            resolution.node.name,
            resolution.fingerprint,
            {
                "node": resolution.node.name,
                "headline": outcome.headline,
                "counts": outcome.counts,
                "metrics": outcome.metrics,
                "extra": outcome.extra,
                "reported_files": list(outcome.files),
                "seconds": round(seconds, 3),
                "identity": resolution.identity,
                "inputs": {
                    role: {"node": item.node, "digest": item.digest, "fingerprint": item.fingerprint}
                    for role, item in inputs.items()
                },
                "run_id": run_id,
                "flow_run_id": self.flow_run_id,
                "code_commit": self.recording.commit,
                "steel_version": self.recording.version,
                "host": socket.gethostname(),
            },
        )


def _input(ref: NodeRef, known: Mapping[str, Artifact]) -> Artifact:
    """The artifact that an input refers to, or the part of it below a folder."""
    whole = known[ref.node]
    if not ref.folder:
        return whole
    digest_of_part = content_digest(whole.manifest["files"], ref.folder)
    path = whole.path / ref.folder
    return Artifact(str(ref), path, digest_of_part, whole.fingerprint, whole.manifest, whole.run_id)


def _code(node: Node) -> str:
    return code_digest(node.body, node.code)


def _parts(identity: Mapping[str, Any]) -> dict[str, str]:
    names = ("version", "code", "config", "seed", "inputs", "external")
    return {name: digest({"": identity[name]})[:12] for name in names}


def _differences(old: Any, new: Any, path: str = "") -> Iterable[str]:
    if isinstance(old, dict) and isinstance(new, dict):
        for key in sorted(old.keys() | new.keys()):
            yield from _differences(old.get(key), new.get(key), f"{path}.{key}" if path else key)
    elif old != new:
        yield f"{path}: {_short(old)} → {_short(new)}"


def _short(value: Any) -> str:
    text = json.dumps(value, ensure_ascii=False)
    return text if len(text) <= 40 else text[:37] + "…"
