"""The FFN ablation: every kind of feed-forward layer at equal depth, width, tokens and data order.

    tokenize:manifest ─→ ablation:<kind>-s<seed>  (kinds × seeds) ─→ ablation:ffn

Each training node leaves what pretrain leaves, and honest.json (see model/leak.py). `ablation:ffn`
puts them side by side: a table, curves, and what the table cannot show.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from tasks.ablation import table, train
from tasks.figures.latest import link
from tasks.settings.config import LEAKY_KINDS, SteelRun, Train
from tasks.stage.node import Node

STAGE = "ablation"
TABLE = "ablation:ffn"
PAGE, FOLDER = "ffn-ablation.html", "ffn-ablation"


def nodes(config: SteelRun) -> list[Node]:
    """A training for each kind and seed, and the comparison of all."""
    study = config.ablation
    recipe = config.pretrain.model_dump(mode="json", include=set(Train.model_fields))
    if study.steps:
        recipe |= {"steps": study.steps, "epochs": None}
    trainings = [
        Node(
            name=f"{STAGE}:{kind}-s{seed}",
            body=train.body,
            config={
                "model": _model(config, kind),
                "train": recipe,
                "seed": seed,
                "honest": {"rows": study.honest_rows, "positions": study.honest_positions},
            },
            inputs={
                "shards": "tokenize:manifest",
                "tokenizer": "tokenize:tokenizer",
                **{name: f"tokenize:{name}" for name in config.using("pretrain")},
            },
            resumable=True,
            trains=True,
            exclusive=config.runtime.parallel_trainings == 1,
        )
        for seed in study.seeds
        for kind in study.kinds
    ]
    compare = Node(
        name=TABLE,
        body=table.body,
        config={"kinds": list(study.kinds), "seeds": list(study.seeds), "profile": config.profile},
        inputs={node.unit: node.name for node in trainings},
    )
    return [*trainings, compare]


def _model(config: SteelRun, kind: str) -> dict[str, Any]:
    model = config.model.model_dump(mode="json")
    if kind == "merge" and config.ablation.merge_segment:
        model["merge_segment"] = config.ablation.merge_segment
    # a study may train what no run should
    return model | {"ffn": kind, "allow_future_leakage": kind in LEAKY_KINDS}


def publish(folder: Path, artifact: Path, stages: Sequence[Mapping[str, Any]] = ()) -> None:
    """Link the newest comparison into artifacts/latest/<profile>/ffn-ablation/ (`stages` are in run.json there)."""
    for name in (PAGE, "ffn-ablation.json"):
        link(artifact / name, folder / name)
