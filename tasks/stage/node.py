"""The stage contract, as types: what a room of the house declares and what it is given.

A *node* is the unit of work and of caching: `download:zhihu`, `pretrain`, `sft:exp4`. A stage is
the group of nodes that share the part of the name before the colon. Each room offers
`nodes(config) -> list[Node]`; everything is declared before anything runs, so `make plan` can
explain a run without starting it. The body of a node fills `ctx.out` and returns an `Outcome`;
fingerprints, skipping, locks, manifests, MLflow and Prefect are the business of `tasks.stage.runner`.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

from pydantic import BaseModel

from tasks.settings.config import Runtime
from tasks.stage.names import NodeRef


@dataclass(frozen=True)
class Artifact:
    """A finished, immutable output folder (or the part of one below `prefix`).

    `digest` covers the content of the files only; `manifest` is the parsed manifest.json of the
    whole artifact (files, counts, metrics, extra, seconds, run_id, fingerprint, inputs).
    """

    node: str
    path: Path
    digest: str
    fingerprint: str
    manifest: Mapping[str, Any]
    run_id: str = ""
    cached: bool = False

    @property
    def ref(self) -> NodeRef:
        """Stage, unit and, for a part of an artifact, folder."""
        return NodeRef.parse(self.node)

    def read_json(self, name: str) -> Any:
        """Parse `<path>/<name>` as JSON."""
        return json.loads((self.path / name).read_text("utf-8"))


class Track(Protocol):
    """Where a node reports while it runs (MLflow behind it; a list in tests)."""

    def metrics(self, values: Mapping[str, float], step: int | None = None) -> None: ...

    def params(self, values: Mapping[str, Any]) -> None: ...

    def file(self, path: Path, folder: str = "") -> None: ...

    def continues(self, fingerprint: str, step: int) -> None:
        """This training goes on from another run's step."""
        ...


@dataclass
class Context:
    """What a running node is given."""

    name: str
    out: Path
    """Folder to fill. Empty, unless the node is `resumable` and an earlier try left its work."""
    config: Any
    """The node's recipe slice, as declared."""
    inputs: Mapping[str, Artifact]
    """Input role -> artifact, in the order declared."""
    runtime: Runtime
    seed: int
    log: logging.Logger
    track: Track
    progress: Callable[[float, str], None] = lambda share, text: None
    """Report progress: share in [0, 1] and a few words."""
    resumed: bool = False
    forced: bool = False
    """Nothing that was made before is to be used (tasks/work/partitions.py)."""
    should_stop: Callable[[], bool] = lambda: False
    """True once the flow run has been cancelled; long loops poll it."""

    @property
    def unit(self) -> str:
        """The node's name behind the colon: the source of `clean:zhihu`."""
        return NodeRef.parse(self.name).unit


@dataclass
class Outcome:
    """What a node hands back beside the files in `ctx.out`."""

    headline: str = ""
    """A few words for the final table, such as `val loss 1.93` or `9,512 of 10,104 kept`."""
    counts: dict[str, int] = field(default_factory=dict)
    metrics: dict[str, float] = field(default_factory=dict)
    extra: dict[str, Any] = field(default_factory=dict)
    """Anything else worth keeping in manifest.json; must be JSON."""
    summary: str = ""
    """Markdown for a person: becomes a Prefect artifact of the task run."""
    files: list[str] = field(default_factory=list)
    """Small files below `ctx.out` to copy into MLflow (large ones stay by path and digest)."""


@dataclass(frozen=True)
class Node:
    """One unit of work, declared."""

    name: str
    """`stage` or `stage:unit`, with the names of the house."""
    body: Callable[[Context], Outcome]
    """A module-level function; the code that it reaches is part of the identity (tasks.stage.closure)."""
    config: BaseModel | Mapping[str, Any] = field(default_factory=dict)
    """Recipe slice: exactly what changes the meaning of the output. No paths, no process counts."""
    inputs: Mapping[str, str] = field(default_factory=dict)
    """Role -> node name, or `node#folder` for a part of that node's artifact."""
    external: Callable[[], Mapping[str, str]] | None = None
    """Digests of inputs that lie outside the artifact store (a local folder): name -> digest.
    Raises NodeError with one clear line when the outside thing is missing."""
    version: int = 1
    code: tuple[str, ...] = ()
    """Modules or packages that the body uses in a way that cannot be seen by reading; they count whole."""
    resumable: bool = False
    """Keep the work folder of a failed try and give it back to the next one."""
    seeded: bool = False
    """Draws random numbers from the run's seed, which is then part of its identity. Data stages are functions
    of their inputs alone; an ablation has its seeds in its config."""
    trains: bool = False
    """Is a training: worker processes are released before its stage, and runtime.parallel_trainings
    says how many of its kind run beside each other."""
    length: Callable[[Mapping[str, Artifact]], float] | None = None
    """How long it takes beside nodes of its kind, in any unit, seen from its inputs (role -> artifact): the longest
    starts first, so that none is left to run alone at the end."""
    exclusive: bool = False
    """Wants the whole machine and the main thread (torchrun): never beside another node."""
    on_code_change: str = "rerun"
    """`rerun` or `keep`: what a changed code digest does to a finished artifact."""

    @property
    def stage(self) -> str:
        return NodeRef.parse(self.name).stage

    @property
    def unit(self) -> str:
        return NodeRef.parse(self.name).unit

    @property
    def sources(self) -> dict[str, NodeRef]:
        """Role -> what the input refers to."""
        return {role: NodeRef.parse(text) for role, text in self.inputs.items()}
