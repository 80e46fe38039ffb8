"""Which model `make chat` talks to: the last one that a profile's pipeline has trained, or the one asked for."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from tasks.node import Artifact, NodeError


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
