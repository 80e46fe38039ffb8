"""The language-ratio study: fine-tunings of the profile's base model that differ in their share of Chinese.

    pretrain ─→ ratio:<arm>-<share>-s<seed>  (arms × shares × seeds) ─→ ratio:table

`total`: the supervised tokens of both languages together are constant. `chinese`: the Chinese ones are constant, and
English ones are added, so there is no share of 0. With the smallest positive share both arms train on as much.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from tasks.ablation.language_ratio import table, train
from tasks.evaluate.benchmarks import OPEN_READERS, reported_split
from tasks.figures.latest import link
from tasks.settings.config import LanguageRatio, SteelRun, Train
from tasks.settings.errors import NodeError
from tasks.stage.node import Node

STAGE = "ratio"
NEEDS = ("pretrain",)
"""Stages of the pipeline that come before, beside those of the data."""
TABLE = f"{STAGE}:table"
PAGE, FOLDER = table.PAGE, "language-ratio"


def nodes(config: SteelRun) -> list[Node]:
    """A fine-tuning for each arm, share and seed, and the comparison of all."""
    settings = config.language_ratio
    languages = _languages(config, settings)
    benchmarks = {
        name: reported_split(config.sources[name])
        for name in config.evaluate.benchmarks
        if config.sources[name].reader not in OPEN_READERS
    }
    if not benchmarks:
        raise NodeError("the language-ratio study needs a benchmark with options in evaluate.benchmarks")
    cells = train.cells(settings)
    trainings = [
        _training(config, languages, benchmarks, cell, seed) for cell in cells for seed in settings.seeds
    ]
    compare = Node(
        name=TABLE,
        body=table.body,
        config=table.Recipe(
            arms=settings.arms,
            shares={arm: [c.share for c in cells if c.arm == arm] for arm in settings.arms},
            seeds=settings.seeds,
            margin=settings.flat_margin,
            profile=config.profile,
        ),
        inputs={node.unit: node.name for node in trainings},
    )
    return [*trainings, compare]


def _languages(config: SteelRun, settings: LanguageRatio) -> dict[str, str]:
    """Set -> zh or en: those named, else every source with use: sft of that language."""
    sets = config.using("sft")
    found: dict[str, str] = {}
    for language, given in (("zh", settings.zh), ("en", settings.en)):
        names = given or [name for name, source in sets.items() if source.language == language]
        if unknown := sorted(set(names) - set(sets)):
            raise NodeError(f"language_ratio.{language}: {', '.join(unknown)} is no source with use: sft")
        if not names:
            raise NodeError(
                f"language_ratio.{language}: no source with use: sft has language: {language}; name some"
            )
        if twice := sorted(set(names) & set(found)):
            raise NodeError(f"language_ratio: {', '.join(twice)} cannot be both Chinese and English")
        found |= dict.fromkeys(names, language)
    return found


def _training(
    config: SteelRun, languages: Mapping[str, str], benchmarks: Mapping[str, str], cell: train.Cell, seed: int
) -> Node:
    settings, noise = config.language_ratio, config.sft.neftune_alpha
    inputs = {"base": "pretrain", "tokenizer": "tokenize:tokenizer"}
    for source in languages:
        inputs[source] = f"convert:{source}"
        inputs[f"{source}.drops"] = f"clean:decontaminate#{source}"
    return Node(
        name=f"{STAGE}:{cell.unit(seed)}",
        body=train.body,
        config=(partial(train.Noisy, neftune_alpha=noise) if noise else train.Recipe)(
            cell=cell,
            smallest=min(share for share in settings.shares if share),
            seed=seed,
            languages=dict(languages),
            tokens=settings.tokens,
            max_tokens=config.sft.max_tokens,
            packed_tokens=config.sft.packed_tokens,
            loss_on=config.sft.loss_on,
            too_long=config.sft.too_long,
            train=_recipe(config, settings),
            protocol=settings.protocol,
            form="chat" if config.evaluate.chat else "plain",
            benchmarks=dict(benchmarks),
            families={name: config.sources[name].reader for name in benchmarks},
            max_questions=config.evaluate.max_questions,
            batch_tokens=config.evaluate.batch_tokens,
        ),
        inputs={**inputs, **{name: f"convert:{name}" for name in benchmarks}},
        resumable=True,
        trains=True,
        exclusive=config.runtime.parallel_trainings == 1,
    )


def _recipe(config: SteelRun, settings: LanguageRatio) -> Train:
    recipe = config.sft.train
    if not settings.steps:
        return recipe
    return Train.model_validate({**recipe.model_dump(), "steps": settings.steps, "epochs": None})


def publish(folder: Path, artifact: Path, stages: Sequence[Mapping[str, Any]] = ()) -> None:
    """Link the newest comparison into artifacts/latest/<profile>/language-ratio/."""
    for name in (table.PAGE, table.NUMBERS, table.FIGURE):
        link(artifact / name, folder / name)
