"""The FFN study: every kind of feed-forward layer at equal depth, width, tokens and data order."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from tasks.ablation import study
from tasks.ablation.ffn import table
from tasks.ablation.study import STAGE
from tasks.figures.latest import link
from tasks.settings.config import LEAKY_KINDS, Model, SteelRun
from tasks.settings.errors import NodeError
from tasks.stage.node import Node

__all__ = ["FOLDER", "PAGE", "STAGE", "TABLE", "nodes", "publish"]

TABLE = f"{STAGE}:ffn"
PAGE, FOLDER = table.PAGE, "ffn-ablation"


def nodes(config: SteelRun) -> list[Node]:
    """A training for each kind and seed, and the comparison of all."""
    settings = config.ablation
    models: dict[str, Model] = {kind: _model(config, kind) for kind in settings.kinds}
    trainings = study.trainings(config, models, study.recipe_of(config, settings), settings.seeds)
    compare = Node(
        name=TABLE,
        body=table.body,
        config=table.Recipe(kinds=settings.kinds, seeds=settings.seeds, profile=config.profile),
        inputs={node.unit: node.name for node in trainings},
    )
    return [*trainings, compare]


def _model(config: SteelRun, kind: str) -> Model:
    if not config.model.own:
        raise NodeError(
            "the study compares Steel's own feed-forward layers: take a profile with Steel's model"
        )
    values = config.model.model_dump()
    if kind == "merge" and config.ablation.merge_segment:
        values["merge_segment"] = config.ablation.merge_segment
    # a study may train what no run should
    return Model.model_validate({**values, "ffn": kind, "allow_future_leakage": kind in LEAKY_KINDS})


def publish(folder: Path, artifact: Path, stages: Sequence[Mapping[str, Any]] = ()) -> None:
    """Link the newest comparison into artifacts/latest/<profile>/ffn-ablation/ (`stages` are in run.json there)."""
    for name in (table.PAGE, table.NUMBERS):
        link(artifact / name, folder / name)
