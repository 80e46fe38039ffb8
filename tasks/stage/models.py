"""Which trained models are registered in MLflow, and the one rule by which one of them becomes `champion`.

A registered model is one kind of one profile: `steel-demo-base`, `steel-demo-sft-exp4`, `steel-demo-dpo`. Each version is one
training, known by the digest of its artifact; the weights stay where they are, and MLflow gets their address.
`newest` is the version of the last run that had it.

The rule. A version's score is the mean accuracy over the rows of its evaluation that are no controls. A version that was
asked exactly what the champion was asked becomes champion when its score is higher: the same questions (`steel.asked`: the
benchmarks by digest, how many of them, the protocols' digests, the form) and the same rows. The first version with a
score becomes champion. A version that was asked anything else never does: move the alias by hand then.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from tasks.stage.fingerprint import digest
from tasks.stage.names import NodeRef
from tasks.stage.node import Artifact
from tasks.stage.store import content_digest

CHAMPION, NEWEST = "champion", "newest"
"""Aliases. MLflow keeps `latest` for itself."""
ASKED = "steel.asked"
"""Tag: a digest of what a version's evaluation asked."""
EXPORT = "export"
SCORE = "accuracy/"
"""What the tags with scores begin with."""
_CONTROL_ROWS = ("demo-held-out-facts",)
"""Rows of questions that no training answers: every model guesses them (tasks/evaluate/results.py)."""
_BESIDE = ("model", "controls", "shuffles", "submissions", "batch_tokens")
"""Of an evaluation's recipe, what changes no accuracy outside controls."""


@dataclass(frozen=True)
class Evaluation:
    """What a version was asked, and how it answered."""

    asked: str
    """Digest of the questions and of how they were asked."""
    scores: Mapping[str, float]
    """`accuracy/row/protocol` -> share of right answers, without controls."""

    @property
    def score(self) -> float:
        return sum(self.scores.values()) / len(self.scores)


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
    evaluation: Evaluation | None


def of_run(profile: str, done: Mapping[str, Artifact]) -> Iterator[Model]:
    """The models among a run's artifacts by node, with their evaluations."""
    for node, artifact in done.items():
        unit = _unit(node)
        if not unit or not any(f["path"].startswith(f"{EXPORT}/") for f in artifact.manifest["files"]):
            continue
        asked = done.get(f"evaluate:{unit}")
        evaluation = evaluation_of(asked.manifest) if asked else None
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
        yield Model(f"steel-{profile}-{unit}", artifact.run_id, artifact.digest, uri, tags, evaluation)


def evaluation_of(manifest: Mapping[str, Any]) -> Evaluation | None:
    """What an evaluation's manifest says; None where it has no row that counts."""
    recipe = {name: value for name, value in manifest["identity"]["config"].items() if name not in _BESIDE}
    benchmarks = {name: manifest["inputs"][name]["digest"] for name in recipe["benchmarks"]}
    asked = digest({"recipe": recipe, "benchmarks": benchmarks, "questions": manifest["counts"]["questions"]})
    scores = scores_of(manifest["metrics"])
    return Evaluation(asked, scores) if scores else None


def scores_of(metrics: Mapping[str, float]) -> dict[str, float]:
    """The accuracies among metrics or tags, without controls (`benchmark/control.protocol`, and rows that are guessed)."""
    return {
        key: float(value)
        for key, value in metrics.items()
        if key.startswith(SCORE)
        and "." not in key.rpartition("/")[2]
        and key.split("/")[1] not in _CONTROL_ROWS
    }


def promoted(version: Evaluation | None, champion: Evaluation | None) -> bool:
    """Whether a version takes the champion's place; None: it was asked nothing, or there is no champion."""
    if version is None or champion is None:
        return version is not None
    same = version.asked == champion.asked and version.scores.keys() == champion.scores.keys()
    return same and version.score > champion.score


def _unit(node: str) -> str:
    """How evaluations call the model of a training; "" for what is none."""
    ref = NodeRef.parse(node)
    if node == "pretrain":
        return "base"
    if ref.stage == "sft" and ref.unit != "select":
        return f"sft-{ref.unit}"
    return {"dpo:train": "dpo", "rl:train": "rl"}.get(node, "")


def _data(manifest: Mapping[str, Any]) -> str:
    """What it was trained on: the digest of the shards' manifest, of the mixture, of the pairs or of the prompts."""
    if mixture := manifest["extra"].get("mixture_digest"):
        return f"mixture {mixture}"
    inputs = manifest["inputs"]
    role = next((r for r in ("shards", "reference", "prompts") if r in inputs), "")
    return f"{inputs[role]['node']} {inputs[role]['digest']}" if role else ""
