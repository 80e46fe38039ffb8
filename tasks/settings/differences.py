"""What a run's settings have that its profile has not: the SET=… of the command that makes it again."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from typing import Any

from tasks.settings import profiles
from tasks.settings.config import PipelineRecipe
from tasks.settings.errors import NodeError

_PLACES = ("model.pretrained", "export")
"""Not told: where files lay on a machine, and the forms that were written beside."""

_PLACE = re.compile(r'"(/|~|file:|[A-Za-z]:\\)')


def assignments(config: PipelineRecipe) -> list[str]:
    """`pretrain.steps=200`, one for each value that differs; [] where the profile is unknown here or was not read."""
    try:
        stated = profiles.load(config.profile)
    except NodeError:
        return []
    before, after = (tree.model_dump(mode="json") for tree in (stated.recipe, config))
    return [f"{place}={_written(value)}" for place, value in _changed(before, after, "")]


def _changed(before: Any, after: Any, place: str) -> Iterator[tuple[str, Any]]:
    if before == after or place in _PLACES:
        return
    if isinstance(before, dict) and isinstance(after, dict) and before.keys() <= after.keys():
        for name, value in after.items():
            yield from _changed(before.get(name), value, f"{place}.{name}".lstrip("."))
    else:
        yield place, after


def _written(value: Any) -> str:
    """As `make run SET=…` takes it, YAML without blanks; a value that names a place on the machine is not told."""
    text = json.dumps(value, ensure_ascii=False, separators=(",", ":"))
    if _PLACE.search(text):
        return "…"
    return value if isinstance(value, str) else text
