"""Which model `make chat` talks to: the last one that a profile's pipeline has trained, or the one asked for."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

from tasks.figures.history import exports
from tasks.settings.errors import NodeError
from tasks.stage.node import Artifact
from tasks.stage.store import Store

TRAININGS = ("pretrain", "sft", "dpo", "rl")


def last_run(store: Store, profile: str) -> dict[str, Artifact]:
    """The trainings of the profile's last flow run, whatever its settings were; {} before one has ended."""
    note = store.root / "latest" / profile / "run.json"
    if not note.is_file():
        return {}
    stages = json.loads(note.read_text("utf-8"))["stages"]
    runs = {
        node["name"]: node["run_id"]
        for stage in stages
        if stage["name"] in TRAININGS
        for node in stage.get("nodes", ())
        if node["run_id"]
    }
    artifacts = {
        name: next((one for one in store.artifacts(name) if one.run_id == run_id), None)
        for name, run_id in runs.items()
    }
    return {name: artifact for name, artifact in artifacts.items() if artifact}


def find(model: str, profile: str, nodes: Mapping[str, Artifact]) -> tuple[str, Path]:
    """(name, export folder). `model`: "" for the furthest one, `dpo`, `rl`, `sft` (the chosen variant), `sft:<variant>`,
    `base`, or a folder that holds a model. NodeError says what there is."""
    folders = exports(nodes)
    if not model:
        if not folders:
            raise NodeError(
                f"profile {profile!r} has no trained model here: `make run` trains one; MODEL=FOLDER takes another"
            )
        model = next(iter(folders))
    if model in folders:
        return model, folders[model]
    if (Path(model) / "config.json").is_file():
        return model, Path(model)
    choice = f"it has {', '.join(folders)}" if folders else "it has none yet"
    raise NodeError(
        f"no model {model!r}: neither a folder with a model nor one of profile {profile!r} ({choice})"
    )
