"""Which trained models are registered in MLflow, and the one rule by which one of them becomes `champion`.

A registered model is one kind of one profile: `steel-demo-base`, `steel-demo-sft-exp4`, `steel-demo-dpo`. Each version is one
training, known by the digest of its artifact; the weights stay where they are, and MLflow gets their address.
`newest` is the version of the last run that had it.

The rule. A version's score is the mean accuracy over the rows of its evaluation that are no controls. A version that was
asked everything that the champion was asked, and nothing else, becomes champion when its score is higher. The first
version with a score becomes champion. A version that was asked other questions never does: move the alias by hand then.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from tasks.stage.names import NodeRef
from tasks.stage.node import Artifact
from tasks.stage.store import content_digest

CHAMPION, NEWEST = "champion", "newest"
"""Aliases. MLflow keeps `latest` for itself."""
EXPORT = "export"
_SCORE = "accuracy/"


@dataclass(frozen=True)
class Model:
    """What a version says of its model."""

    name: str
    run_id: str
    digest: str
    """Of the training's artifact."""
    uri: str
    """Of the export's folder."""
    tags: Mapping[str, str]
    scores: Mapping[str, float]


def of_run(profile: str, done: Mapping[str, Artifact]) -> Iterator[Model]:
    """The models among a run's artifacts by node, with the scores that their evaluations gave."""
    for node, artifact in done.items():
        unit = _unit(node)
        if not unit or not any(f["path"].startswith(f"{EXPORT}/") for f in artifact.manifest["files"]):
            continue
        asked = done.get(f"evaluate:{unit}")
        scores = scores_of(asked.manifest["metrics"]) if asked else {}
        manifest = artifact.manifest
        tags = {
            "steel.digest": artifact.digest,
            "steel.export_digest": content_digest(manifest["files"], EXPORT),
            "steel.data": _data(manifest),
            "steel.node": node,
            "steel.profile": profile,
            "steel.fingerprint": artifact.fingerprint,
        }
        uri = (artifact.path / EXPORT).as_uri()
        yield Model(f"steel-{profile}-{unit}", artifact.run_id, artifact.digest, uri, tags, scores)


def scores_of(metrics: Mapping[str, float]) -> dict[str, float]:
    """Row -> accuracy, without controls (`benchmark/control.protocol`)."""
    return {
        key: value
        for key, value in metrics.items()
        if key.startswith(_SCORE) and "." not in key.rpartition("/")[2]
    }


def promoted(scores: Mapping[str, float], champion: Mapping[str, float] | None) -> bool:
    """Whether a version with these scores takes the champion's place; None: there is no champion with scores."""
    if not scores:
        return False
    if not champion:
        return True
    return scores.keys() == champion.keys() and mean(scores) > mean(champion)


def mean(scores: Mapping[str, float]) -> float:
    return sum(scores.values()) / len(scores)


def _unit(node: str) -> str:
    """How evaluations call the model of a training; "" for what is none."""
    ref = NodeRef.parse(node)
    if node == "pretrain":
        return "base"
    if ref.stage == "sft" and ref.unit != "select":
        return f"sft-{ref.unit}"
    return {"dpo:train": "dpo", "rl:train": "rl"}.get(node, "")


def _data(manifest: Mapping[str, Any]) -> str:
    """What it was trained on: the digest of the shards' manifest, of the mixture, or of the pairs."""
    if mixture := manifest["extra"].get("mixture_digest"):
        return f"mixture {mixture}"
    inputs = manifest["inputs"]
    role = next((r for r in ("shards", "pairs", "prompts") if r in inputs), "")
    return f"{inputs[role]['node']} {inputs[role]['digest']}" if role else ""
