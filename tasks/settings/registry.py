"""The registry: known data sets by name, as `Source`s to be taken or changed by a profile.

registry.yaml is read, never written; a profile's source with `entry: <name>` has every field of the
entry that it does not set itself.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any

import yaml
from pydantic import ValidationError

from tasks.settings.config import Source
from tasks.settings.errors import NodeError, complaint

PATH = Path(__file__).with_name("registry.yaml")


def entries() -> dict[str, Source]:
    """Every entry, validated. NodeError names the entry and the field that are wrong."""
    sources = {}
    for name, fields in _raw().items():
        try:
            sources[name] = Source.model_validate({**fields, "entry": name})
        except ValidationError as error:
            raise NodeError(f"registry.yaml, {name}: {complaint(error)}") from error
    return sources


def filled(name: str, source: Mapping[str, Any]) -> Mapping[str, Any]:
    """The fields of a profile's source `name`, those of its registry entry included."""
    entry = source.get("entry") if isinstance(source, Mapping) else None
    if not entry:
        return source  # whatever else is wrong with it, the tree says
    if entry not in _raw():
        raise NodeError(f"source {name}: there is no entry {entry!r} in registry.yaml")
    known = dict(_raw()[entry])
    hub = source.get("hub", known.get("hub"))
    if hub != known.get("hub"):  # what the entry says of the other hub means nothing on this one
        for field in ("dataset", "revision", "urls", "gated", "manual", "unpack"):
            known.pop(field, None)
    options = {**known.get("options", {}), **source.get("options", {})}
    return {**known, **source, "options": options}


@cache
def _raw() -> dict[str, dict[str, Any]]:
    return yaml.safe_load(PATH.read_text("utf-8"))
