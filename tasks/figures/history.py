"""Reading what the other rooms left behind: artifacts by stage, line files, loss curves.

Every function takes the report's inputs (node name -> Artifact) and gives back less when less is
there: a run that stopped at `until: sft` has a report too, only a shorter one.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import orjson

from model.training import lines
from tasks.stage.names import NodeRef
from tasks.stage.node import Artifact

MAX_POINTS = 2000
"""A curve is thinned to so many points: a month of training has millions."""

Nodes = Mapping[str, Artifact]
Points = list[tuple[int, float]]


@dataclass(frozen=True)
class Curve:
    """What one training logged: the loss, and every other number by its key."""

    loss: Points = field(default_factory=list)
    other: dict[str, Points] = field(default_factory=dict)

    @property
    def val(self) -> Points:
        return self.other.get("val_loss", [])

    def below(self, key: str) -> dict[str, Points]:
        """The curves of what a line has by name under a key, such as `loss_by_source`."""
        start = f"{key}/"
        return {
            name.removeprefix(start): points for name, points in self.other.items() if name.startswith(start)
        }

    @property
    def last_val(self) -> float | None:
        return self.val[-1][1] if self.val else None


def units(nodes: Nodes, stage: str) -> dict[str, Artifact]:
    """The nodes of a stage by unit name (`pretrain` itself has the unit "")."""
    artifacts = {}
    for name, artifact in nodes.items():
        ref = NodeRef.parse(name)
        if ref.stage == stage:
            artifacts[ref.unit] = artifact
    return artifacts


def read_lines(path: Path) -> Iterator[dict[str, Any]]:
    """The objects of a JSON-lines file; nothing if the file does not exist."""
    if not path.exists():
        return
    with open(path, "rb") as file:
        for line in file:
            if line.strip():
                yield orjson.loads(line)


def read_curve(artifact: Artifact) -> Curve:
    """The curves in an artifact's metrics.jsonl, ordered by step and thinned."""
    columns: dict[str, dict[int, float]] = {}
    for line in lines.read(artifact.path / "metrics.jsonl"):
        step = line["step"]
        for key, value in _flat(line):
            if key != "step":
                columns.setdefault(key, {})[int(step)] = value  # a repeated step: the later line counts
    points = {key: thin(sorted(column.items())) for key, column in columns.items()}
    return Curve(loss=points.pop("loss", []), other=points)


def _flat(line: Mapping[str, Any]) -> Iterator[tuple[str, float]]:
    for key, value in line.items():
        below = value.items() if isinstance(value, Mapping) else ()
        for name, each in [(key, value), *((f"{key}/{name}", each) for name, each in below)]:
            if isinstance(each, int | float) and not isinstance(each, bool):
                yield name, float(each)


def thin(points: Points, limit: int = MAX_POINTS) -> Points:
    """Evenly chosen points, the first and the last among them."""
    if len(points) <= limit:
        return points
    return [points[i * (len(points) - 1) // (limit - 1)] for i in range(limit)]


def training_curves(nodes: Nodes) -> dict[str, Curve]:
    """Node name -> curve, for every trained node: `pretrain`, `sft:<variant>`, `dpo:train`."""
    trained = [n for n in nodes if n == "pretrain" or n.startswith("sft:") or n == "dpo:train"]
    return {n: curve for n in trained if (curve := read_curve(nodes[n])).loss}


def last_of(nodes: Nodes, key: str) -> Any:
    """The last value under a key of the base model's training, such as `val_loss_by_source`; None: it has none."""
    last = None
    if "pretrain" in nodes:
        for line in lines.read(nodes["pretrain"].path / "metrics.jsonl"):
            last = line.get(key, last)
    return last


def chosen_variant(nodes: Nodes) -> str | None:
    """The SFT variant that went on to DPO."""
    if "sft:select" not in nodes:
        return None
    return str(nodes["sft:select"].read_json("choice.json")["variant"])


def exports(nodes: Nodes) -> dict[str, Path]:
    """Name -> export folder of the models that were trained, the furthest first: `dpo`, `rl`, `sft` (the chosen
    variant), `sft:<variant>` in the order of training, `base`."""
    trained: dict[str, str] = {"dpo": "dpo:train", "rl": "rl:train"}
    if "rl:train" in nodes and nodes["rl:train"].manifest.get("extra", {}).get("start") == "dpo:train":
        trained = {"rl": "rl:train", **trained}  # it goes on from there
    if variant := chosen_variant(nodes):
        trained["sft"] = f"sft:{variant}"
    trained |= {name: name for name in nodes if name.startswith("sft:") and name != "sft:select"}
    trained["base"] = "pretrain"
    folders = {model: nodes[node].path / "export" for model, node in trained.items() if node in nodes}
    return {model: folder for model, folder in folders.items() if folder.is_dir()}


def final_export(nodes: Nodes) -> tuple[str, Path] | None:
    """(name of the model, its export folder) of the furthest model on the way from base over the chosen
    variant to DPO or RL."""
    variant = chosen_variant(nodes)
    names = {"dpo": "dpo", "rl": "rl", "sft": f"sft:{variant}", "base": "base"}
    return next(((names[model], folder) for model, folder in exports(nodes).items() if model in names), None)


def seconds(artifact: Artifact) -> float:
    return float(artifact.manifest.get("seconds") or 0.0)
