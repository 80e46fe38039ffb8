"""The newest artifacts of a profile, found without a server.

A node's artifact is the newest one that was made from the artifacts found for its inputs, and with the
node's present settings if there is such a one: a recipe that has changed since must not hide what the
last run made. Where a profile begins (a download) only its own settings count. Code is not compared:
what is asked here is what there is, not what would run.
"""

from __future__ import annotations

from collections.abc import Mapping

from tasks.stage.fingerprint import canonical
from tasks.stage.names import NodeRef
from tasks.stage.node import Artifact, Node
from tasks.stage.store import Store, content_digest


def newest(store: Store, graph: Mapping[str, Node], other: set[str] | None = None) -> dict[str, Artifact]:
    """Node name -> its artifact; nodes that have none, or whose inputs have none, are left out.

    The names of nodes whose artifact was made with other settings are added to `other`.
    """
    artifacts: dict[str, Artifact] = {}
    for name, node in graph.items():
        if not all(ref.node in artifacts for ref in node.sources.values()):
            continue
        config = canonical(node.config)
        inputs = {role: _digest(artifacts, ref) for role, ref in node.sources.items()}
        fallback = None
        for artifact in store.artifacts(name):
            identity = artifact.manifest.get("identity", {})
            if identity.get("inputs") != inputs:
                continue
            if identity.get("config") == config:
                artifacts[name] = artifact
                break
            fallback = fallback or artifact
        else:
            if fallback and inputs:
                artifacts[name] = fallback
                if other is not None:
                    other.add(name)
    return artifacts


def _digest(artifacts: Mapping[str, Artifact], ref: NodeRef) -> str:
    artifact = artifacts[ref.node]
    return content_digest(artifact.manifest["files"], ref.folder) if ref.folder else artifact.digest
