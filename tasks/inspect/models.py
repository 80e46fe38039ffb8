"""Which model `make chat` talks to: the last one that a profile's pipeline has trained, or the one asked for."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

from tasks.settings.errors import NodeError
from tasks.stage.node import Artifact
from tasks.stage.store import MANIFEST, Store


def last_run(store: Store, profile: str) -> dict[str, Artifact]:
    """The trainings of the profile's last flow run, whatever its settings were; {} before one has ended."""
    note = store.root / "latest" / profile / "run.json"
    if not note.is_file():
        return {}
    found = {}
    for stage in json.loads(note.read_text("utf-8"))["stages"]:
        if stage["name"] not in ("pretrain", "sft", "dpo"):
            continue
        made = {
            path.parent: json.loads(path.read_text("utf-8"))
            for path in store.root.glob(f"{stage['name']}/*/{MANIFEST}")
        }
        for node in stage.get("nodes", ()):
            for folder, manifest in made.items():
                if node["run_id"] and manifest["run_id"] == node["run_id"]:
                    about = (manifest["digest"], manifest["fingerprint"], manifest, manifest["run_id"], True)
                    found[node["name"]] = Artifact(node["name"], folder, *about)
    return found


def find(wanted: str, profile: str, nodes: Mapping[str, Artifact]) -> tuple[str, Path]:
    """(name, export folder). `wanted`: "" for the furthest one, `dpo`, `sft` (the chosen variant), `sft:<variant>`,
    `base`, or a folder that holds a model. NodeError says what there is."""
    there = _models(nodes)
    if not wanted:
        if not there:
            raise NodeError(
                f"profile {profile!r} has no trained model here: `make run` trains one; MODEL=FOLDER takes another"
            )
        wanted = next(iter(there))
    if wanted in there:
        return wanted, there[wanted]
    if (Path(wanted) / "config.json").is_file():
        return wanted, Path(wanted)
    known = f"it has {', '.join(there)}" if there else "it has none yet"
    raise NodeError(
        f"no model {wanted!r}: neither a folder with a model nor one of profile {profile!r} ({known})"
    )


def _models(nodes: Mapping[str, Artifact]) -> dict[str, Path]:
    """The trained models of a run, furthest first."""
    found = {}
    if "dpo:train" in nodes:
        found["dpo"] = nodes["dpo:train"]
    if "sft:select" in nodes:
        variant = nodes["sft:select"].read_json("choice.json")["variant"]
        found["sft"] = nodes[f"sft:{variant}"]
    for name, artifact in nodes.items():
        if name.startswith("sft:") and name != "sft:select":
            found[name] = artifact
    if "pretrain" in nodes:
        found["base"] = nodes["pretrain"]
    return {name: artifact.path / "export" for name, artifact in found.items()}
