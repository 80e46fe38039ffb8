"""The report stage: one node that reads every other node of the run."""

from __future__ import annotations

from collections.abc import Iterable

from tasks.report.body import report
from tasks.settings.config import SteelRun
from tasks.stage.node import Node


def nodes(config: SteelRun, names: Iterable[str]) -> list[Node]:
    """The one node; `names` are all other nodes of the run, each an input under its own name."""
    return [
        Node(
            name="report",
            body=report,
            config=config.recipe,
            inputs={name: name for name in names},
            seeded=True,
        )
    ]
