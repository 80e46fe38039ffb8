"""The whole graph of nodes, put together from the rooms: the order of the pipeline, in one place."""

from __future__ import annotations

from tasks import clean, convert, download, dpo, evaluate, pretrain, report, sft, tokenize
from tasks.config import STAGES, SteelRun
from tasks.node import Node


def build(config: SteelRun) -> dict[str, Node]:
    """All nodes by name, each after its inputs. Raises ValueError on an input that nobody makes."""
    nodes = [
        node
        for room in (download, convert, clean, tokenize, pretrain, sft, dpo, evaluate)
        for node in room.nodes(config)
    ]
    nodes += report.nodes(config, [node.name for node in nodes])
    graph: dict[str, Node] = {}
    for node in nodes:
        if node.name in graph:
            raise ValueError(f"two nodes are named {node.name!r}")
        if node.stage not in STAGES:
            raise ValueError(f"{node.name!r} belongs to no stage")
        for role, source in node.inputs.items():
            if source.partition("#")[0] not in graph:
                raise ValueError(f"{node.name!r} wants {source!r} as {role!r}, which no earlier node makes")
        graph[node.name] = node
    return graph
