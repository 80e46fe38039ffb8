"""What a flow run is called: the profile and what it is for, as `smoke until dpo, dpo.beta=0.3`.

By Prefect's own rule runs have the names of animals, which say nothing in a list of fifty.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from typing import Any

from tasks.settings.config import STAGES

LONGEST = 80
"""Characters of a name."""


def run_name(parameters: Mapping[str, Any], purpose: str = "") -> str:
    """The name of a run with these parameters of its flow, which may lack some; `purpose`: of a study, its name."""
    words = " ".join([str(parameters.get("profile", "demo")), *([purpose] if purpose else [])])
    until, force = parameters.get("until", STAGES[-1]), list(parameters.get("force") or [])
    if until != STAGES[-1]:
        words += f" until {until}"
    parts = [words]
    if force:
        parts.append(f"{' and '.join(force)} again")
    if models := parameters.get("models"):
        parts.append(" ".join(models))
    overrides = parameters.get("overrides") or {}
    tree = overrides if isinstance(overrides, Mapping) else overrides.model_dump(mode="json")
    # where and how it runs changes nothing of what it makes
    parts += list(_leaves({key: value for key, value in tree.items() if key != "runtime"}))
    name = ", ".join(parts)
    return name if len(name) <= LONGEST else name[: LONGEST - 2] + " …"


def _leaves(tree: Mapping[str, Any], above: str = "") -> Iterator[str]:
    for key, value in tree.items():
        if isinstance(value, Mapping) and value:
            yield from _leaves(value, f"{above}{key}.")
        else:
            text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
            yield f"{above}{key}={text}"
