"""The newest artifacts of a profile, found without a server.

A node's artifact is the newest one that was made from the artifacts found for its inputs, and with the
node's present settings if there is such a one: a recipe that has changed since must not hide what the
last run made. Where a profile begins (a download) only its own settings count. Code is not compared:
what is asked here is what there is, not what would run.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from tasks.stage.fingerprint import canonical
from tasks.stage.node import Artifact, Node
from tasks.stage.store import MANIFEST, Store, content_digest


def newest(store: Store, graph: Mapping[str, Node], other: set[str] | None = None) -> dict[str, Artifact]:
    """Node name -> its artifact; nodes that have none, or whose inputs have none, are left out.

    The names of nodes whose artifact was made with other settings are added to `other`.
    """
    found: dict[str, Artifact] = {}
    for name, node in graph.items():
        if not all(source.partition("#")[0] in found for source in node.inputs.values()):
            continue
        wanted = canonical(node.config)
        inputs = {role: _digest(found, source) for role, source in node.inputs.items()}
        fallback = None
        for path, manifest in _manifests(store, name):
            identity = manifest.get("identity", {})
            if identity.get("inputs") != inputs:
                continue
            artifact = Artifact(
                name, path, manifest["digest"], manifest["fingerprint"], manifest, manifest["run_id"], True
            )
            if identity.get("config") == wanted:
                found[name] = artifact
                break
            fallback = fallback or artifact
        else:
            if fallback and inputs:
                found[name] = fallback
                if other is not None:
                    other.add(name)
    return found


def _digest(found: Mapping[str, Artifact], source: str) -> str:
    name, _, below = source.partition("#")
    artifact = found[name]
    return content_digest(artifact.manifest["files"], below) if below else artifact.digest


def _manifests(store: Store, node: str) -> Iterator[tuple[Path, dict[str, Any]]]:
    """The finished artifacts of a node, newest first."""
    stage, _, unit = node.partition(":")
    name = re.compile(rf"{re.escape(unit or stage)}-[0-9a-f]{{16}}")
    folders = [path for path in (store.root / stage).glob("*") if name.fullmatch(path.name)]
    made = [path / MANIFEST for path in folders if (path / MANIFEST).is_file()]
    for path in sorted(made, key=lambda path: (path.stat().st_mtime_ns, path.parent.name), reverse=True):
        yield path.parent, json.loads(path.read_text("utf-8"))
