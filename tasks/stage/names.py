"""Names of nodes: `stage` or `stage:unit`, and `#folder` behind it for a part of that node's artifact."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class NodeRef:
    """A node, or the part of its artifact below a folder, as the inputs of a node name it."""

    stage: str
    unit: str = ""
    folder: str = ""

    @classmethod
    def parse(cls, text: str) -> NodeRef:
        """Read `stage`, `stage:unit`, `stage#folder` or `stage:unit#folder`."""
        name, _, folder = text.partition("#")
        stage, _, unit = name.partition(":")
        return cls(stage, unit, folder)

    @property
    def node(self) -> str:
        """The name of the node, without the folder."""
        return f"{self.stage}:{self.unit}" if self.unit else self.stage

    def __str__(self) -> str:
        return f"{self.node}#{self.folder}" if self.folder else self.node


def stage_of(name: str) -> str:
    return NodeRef.parse(name).stage


def unit_of(name: str) -> str:
    """The part behind the colon; "" for a node that is its whole stage."""
    return NodeRef.parse(name).unit
