"""The nodes of steel-compare/models: each model by path is asked, then all stand side by side.

download, convert (of what is asked and searched) ─→ compare:<model>     ─┐
                                                  └→ compare:texts   ┴→ compare:table
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from tasks.compare import answer, contamination, table
from tasks.convert import node as convert
from tasks.download import node as download
from tasks.evaluate import protocols
from tasks.evaluate.benchmarks import reported_split
from tasks.figures.latest import link
from tasks.settings import names
from tasks.settings.config import SteelRun
from tasks.settings.errors import NodeError
from tasks.stage.node import Node

STAGE = "compare"
SEARCH, TABLE = f"{STAGE}:texts", f"{STAGE}:table"
STAGES = ("download", "convert", STAGE)
FOLDER, PAGE = "compare", table.PAGE


def nodes(config: SteelRun) -> list[Node]:
    """The nodes of all three stages, of those sources alone that are asked or searched."""
    settings = config.compare
    known = config.using("benchmark")
    asked = settings.benchmarks or list(known)
    for name in asked:
        if name not in known:
            raise NodeError(f"compare.benchmarks names {name!r}, which is no source with use: benchmark")
    for name in settings.contamination:
        if name not in config.sources or name in known:
            raise NodeError(f"compare.contamination names {name!r}, which is no source of training text")
    for name in settings.chat:
        if name not in config.runtime.models:
            raise NodeError(f"compare.chat names {name!r}, which is no model")
    wanted = {*asked, *settings.contamination}
    found = [node for room in (download, convert) for node in room.nodes(config) if node.unit in wanted]
    models = [_model(config, name, config.runtime.model(name), asked) for name in config.runtime.models]
    inputs = {f"model:{node.unit}": node.name for node in models}
    if settings.contamination:
        found.append(_search(config, asked))
        inputs["texts"] = SEARCH
    recipe = table.Recipe(models=list(config.runtime.models), benchmarks=asked, profile=config.profile)
    benchmarks = {f"questions:{name}": f"convert:{name}" for name in asked}
    last = Node(name=TABLE, body=table.body, config=recipe, inputs={**inputs, **benchmarks})
    return [*found, *models, last]


def publish(folder: Path, artifact: Path, stages: Sequence[Mapping[str, Any]] = ()) -> None:
    """Link the newest comparison into artifacts/latest/<profile>/compare/ (`stages` are in run.json there)."""
    for name in (table.PAGE, table.NUMBERS):
        link(artifact / name, folder / name)


def _model(config: SteelRun, name: str, path: Path, asked: Sequence[str]) -> Node:
    if reason := names.complaint(name, "model"):
        raise NodeError(reason)
    settings = config.compare
    recipe = answer.Recipe(
        model=name,
        form="chat" if name in settings.chat else "plain",
        benchmarks={each: reported_split(config.sources[each]) for each in asked},
        families={each: config.sources[each].reader for each in asked},
        protocols={each: protocols.of(each).digest for each in settings.protocols},
        controls=settings.controls,
        shuffles=settings.shuffles,
        max_questions=settings.max_questions,
        batch_tokens=settings.batch_tokens,
    )
    return Node(
        name=f"{STAGE}:{name}",
        body=answer.body,
        config=recipe,
        inputs={each: f"convert:{each}" for each in asked},
        external=_digests(path),
    )


def _search(config: SteelRun, asked: Sequence[str]) -> Node:
    settings = config.compare
    return Node(
        name=SEARCH,
        body=contamination.body,
        config=contamination.Recipe(
            texts=settings.contamination, benchmarks=list(asked), ngram=config.clean.ngram
        ),
        inputs={name: f"convert:{name}" for name in (*settings.contamination, *asked)},
    )


def _digests(path: Path) -> Callable[[], Mapping[str, str]]:
    def digests() -> Mapping[str, str]:
        return answer.identity(path)

    return digests


__all__ = ["FOLDER", "PAGE", "STAGE", "STAGES", "TABLE", "nodes", "publish"]
