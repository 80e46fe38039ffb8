"""Every flow, said once: its deployments, stages, graph and what it shows.

A study is a room of tasks/, one line in STUDIES and its deployment in prefect.yaml; the command line, the checks
before a run, following, publishing and deploying go by these. No Prefect here: it reads its settings when it is
imported, and much of this is needed before they are set.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tasks.ablation.ffn import node as ffn
from tasks.ablation.language_ratio import node as language_ratio
from tasks.compare import node as models
from tasks.figures.latest import publish_latest, publish_models
from tasks.settings.config import DATA_STAGES, STAGES, SteelRun
from tasks.stage.node import Artifact, Node

FAMILY = "steel-ablation"
"""The name of the flows that change one thing: their deployments are `steel-ablation/<study>`."""


@dataclass(frozen=True)
class FlowSpec:
    """One flow. Flows of one family share the name and differ in graph and deployments."""

    name: str
    """The flow's name in Prefect."""
    entrypoint: str
    """`file:function` of it, as in prefect.yaml."""
    deployments: tuple[str, ...]
    """Of `<name>/<deployment>`; the first one runs all stages."""
    stages: tuple[str, ...]
    build: Callable[[SteelRun], dict[str, Node]]
    """The graph of nodes of a configuration."""
    result: str
    """The node whose artifact is published when the run has ended well."""
    publish: Callable[[Path, Path, Sequence[Mapping[str, Any]]], None]
    """`publish(folder, artifact's path, stages of the run)` puts the newest result into the folder for people."""
    page: str
    """The file there that a person opens."""
    folder: str = ""
    """Below artifacts/latest/<profile>; run.json goes there too."""
    point: Callable[[Path, Mapping[str, Artifact]], None] = lambda folder, nodes: None
    """`point(folder, nodes)` links what the nodes of a run that has ended well hold for people and programs."""
    takes_until: bool = False
    """Can end at a stage: has the parameter `until`."""

    @property
    def deployment(self) -> str:
        """The full name of the deployment that runs all stages."""
        return f"{self.name}/{self.deployments[0]}"

    @property
    def study(self) -> str:
        """The study's name; "" of the pipeline."""
        return "" if self.takes_until else self.deployments[0]

    def latest(self, artifacts: Path, profile: str) -> Path:
        """Where the newest run of a profile leaves what people look at."""
        return artifacts / "latest" / profile / self.folder

    def until(self, stage: str) -> tuple[str, ...]:
        """The stages up to one of them."""
        return self.stages[: self.stages.index(stage) + 1]


def _pipeline(config: SteelRun) -> dict[str, Node]:
    from tasks import (
        dag,  # every room with what it reads and writes with: half a second, for those who need a graph
    )

    return dag.build(config)


def _study(config: SteelRun, room: Any) -> dict[str, Node]:
    from tasks import dag

    return dag.study(config, room=room)


PIPELINE = FlowSpec(
    name="steel",
    entrypoint="flows/steel.py:steel",
    deployments=("full-pipeline", "training", *STAGES),
    stages=STAGES,
    build=_pipeline,
    result="report",
    publish=publish_latest,
    point=publish_models,
    page="report.html",
    takes_until=True,
)


def study(name: str, room: Any, flow: str = FAMILY) -> FlowSpec:
    """The data stages, then the nodes of a room of tasks/ that says `nodes`, STAGE, TABLE, PAGE, FOLDER and `publish`."""
    return FlowSpec(
        name=flow,
        entrypoint=f"flows/sweep.py:{name.replace('-', '_')}",
        deployments=(name,),
        stages=(*DATA_STAGES, *getattr(room, "NEEDS", ()), room.STAGE),
        build=lambda config: _study(config, room),
        result=room.TABLE,
        publish=room.publish,
        page=room.PAGE,
        folder=room.FOLDER,
    )


def _compare(config: SteelRun) -> dict[str, Node]:
    from tasks import dag

    return dag.compare(config)


COMPARE = FlowSpec(
    name="steel-compare",
    entrypoint="flows/sweep.py:models",
    deployments=("models",),
    stages=models.STAGES,
    build=_compare,
    result=models.TABLE,
    publish=models.publish,
    page=models.PAGE,
    folder=models.FOLDER,
)

STUDIES = (study("ffn", ffn), study("language-ratio", language_ratio), COMPARE)
SPECS = (PIPELINE, *STUDIES)


def of(deployment: str) -> FlowSpec:
    """The flow of `<name>/<deployment>`: the one that declares it, else the first of that name, else the pipeline."""
    name, _, unit = deployment.partition("/")
    mine = [spec for spec in SPECS if spec.name == name]
    return next((spec for spec in mine if unit in spec.deployments), mine[0] if mine else PIPELINE)


def names() -> tuple[str, ...]:
    """Of all flows, in Prefect."""
    return tuple(dict.fromkeys(spec.name for spec in SPECS))


def stages() -> tuple[str, ...]:
    """Of all flows, in the order they are shown."""
    return tuple(dict.fromkeys(stage for spec in SPECS for stage in spec.stages))


def studies(flow: str = FAMILY) -> dict[str, FlowSpec]:
    """The studies of a family by name: what `make ablation STUDY=…` can be."""
    return {spec.deployments[0]: spec for spec in STUDIES if spec.name == flow}
