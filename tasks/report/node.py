"""The report stage: one node that reads every other node of the run."""

from __future__ import annotations

from collections.abc import Iterable

from tasks.report.body import report
from tasks.settings.config import PipelineRecipe, SteelRun
from tasks.stage.node import Node


def nodes(config: SteelRun, names: Iterable[str]) -> list[Node]:
    """The one node; `names` are all other nodes of the run, each an input under its own name."""
    return [
        Node(
            name="report",
            body=report,
            config=placeless(config.recipe),
            inputs={name: name for name in names},
            seeded=True,
        )
    ]


def placeless(recipe: PipelineRecipe) -> PipelineRecipe:
    """Where a pretrained model lies does not change the report: its files are in the fingerprint of the training."""
    folder = recipe.model.pretrained
    if folder is None:
        return recipe
    return recipe.model_copy(update={"model": recipe.model.model_copy(update={"pretrained": folder.name})})
