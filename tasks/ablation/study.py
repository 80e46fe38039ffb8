"""The trainings of a study, declared: each variant of the profile's recipe, with each seed.

    tokenize:manifest ─→ ablation:<variant>-s<seed>  (variants × seeds) ─→ ablation:<study>

A training leaves what pretrain leaves, and honest.json (see model/leak.py). All variants see the same data in the
same order for a seed, so that they can be compared seed by seed.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from tasks.ablation import train
from tasks.settings.config import Ablation, Model, SteelRun, Train
from tasks.stage.node import Node

STAGE = "ablation"


def trainings(
    config: SteelRun, models: Mapping[str, Model], recipe: Train, seeds: Sequence[int]
) -> list[Node]:
    """A node for each variant (its name and its model) and seed, all on the profile's shards."""
    honest = train.Honest(rows=config.ablation.honest_rows, positions=config.ablation.honest_positions)
    return [
        Node(
            name=f"{STAGE}:{unit(variant, seed)}",
            body=train.body,
            config=train.Recipe(model=model, train=recipe, seed=seed, honest=honest),
            inputs={
                "shards": "tokenize:manifest",
                "tokenizer": "tokenize:tokenizer",
                **{name: f"tokenize:{name}" for name in config.using("pretrain")},
            },
            resumable=True,
            trains=True,
            exclusive=config.runtime.parallel_trainings == 1,
        )
        for seed in seeds
        for variant, model in models.items()
    ]


def recipe_of(config: SteelRun, study: Ablation) -> Train:
    """Pretrain's recipe, with the study's number of steps if it has one."""
    recipe = config.pretrain.train
    if not study.steps:
        return recipe
    return Train.model_validate({**recipe.model_dump(), "steps": study.steps, "epochs": None})


def unit(variant: str, seed: int) -> str:
    """Name of a training within the stage, and its role as an input of the comparison."""
    return f"{variant}-s{seed}"
