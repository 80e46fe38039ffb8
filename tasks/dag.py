"""The whole graph of nodes, put together from the rooms: the order of the pipeline, in one place."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from tasks.ablation.ffn import node as ablation
from tasks.clean import node as clean
from tasks.compare import node as models
from tasks.convert import node as convert
from tasks.download import node as download
from tasks.evaluate import node as evaluate
from tasks.export import node as export
from tasks.report import node as report
from tasks.settings.config import DATA_STAGES, STAGES, SteelRun
from tasks.stage.node import Node
from tasks.tokenize import node as tokenize
from tasks.training import dpo, pretrain, rl, sft

DATA = (download, convert, clean, tokenize)


def build(config: SteelRun) -> dict[str, Node]:
    """All nodes of the pipeline by name, each after its inputs. Raises ValueError on an input that nobody makes."""
    nodes = [node for room in (*DATA, pretrain, sft, dpo, rl, evaluate) for node in room.nodes(config)]
    names = [node.name for node in nodes]
    return _graph([*nodes, *export.nodes(config, names), *report.nodes(config, names)], STAGES)


def study(config: SteelRun, room: Any) -> dict[str, Node]:
    """The pipeline's data stages, then the nodes of a study's room: `room.nodes(config)`, in the stage `room.STAGE`.

    A room that starts from a base model says NEEDS = ("pretrain",), and that training comes before its own.
    """
    needs = getattr(room, "NEEDS", ())
    before = (*DATA, pretrain) if "pretrain" in needs else DATA
    nodes = [node for each in (*before, room) for node in each.nodes(config)]
    return _graph(nodes, (*DATA_STAGES, *needs, room.STAGE))


def compare(config: SteelRun) -> dict[str, Node]:
    """Models by path: what is asked is downloaded and converted, then each is asked, then all stand side by side."""
    return _graph(models.nodes(config), models.STAGES)


def build_ablation(config: SteelRun) -> dict[str, Node]:
    """The nodes of the FFN ablation."""
    return study(config, ablation)


def _graph(nodes: Iterable[Node], stages: Iterable[str]) -> dict[str, Node]:
    graph: dict[str, Node] = {}
    for node in nodes:
        if node.name in graph:
            raise ValueError(f"two nodes are named {node.name!r}")
        if node.stage not in stages:
            raise ValueError(f"{node.name!r} belongs to no stage")
        for role, source in node.sources.items():
            if source.node not in graph:
                raise ValueError(f"{node.name!r} wants '{source}' as {role!r}, which no earlier node makes")
        graph[node.name] = node
    return graph
