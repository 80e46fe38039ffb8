"""Clean: Data-Juicer recipes, the models they need, deduplication, decontamination, and who did what.

Rooms: recipe.py (typed YAML) → operators.py (Data-Juicer, made safe) → chain.py (operators at work,
attributed) → partition.py (a source) ; seeds.py + kneser_ney.py → assets.py (models) ; normalise.py →
dedup.py and overlap.py → decontaminate.py.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial

from tasks.clean import assets, decontaminate, dedup, source
from tasks.clean.recipe import Recipe, load_set
from tasks.settings.config import SteelRun
from tasks.settings.errors import NodeError
from tasks.stage.node import Node


def nodes(config: SteelRun) -> list[Node]:
    """clean:assets, clean:<source>…, clean:dedup, clean:decontaminate."""
    sources = list(config.using("pretrain"))
    sets = list(config.using("sft", "preference"))
    benchmarks = list(config.using("benchmark"))
    recipes = load_set(config.clean.recipe)
    return [
        _assets_node(config, sources, recipes),
        *(
            Node(
                name=f"clean:{name}",
                body=source.body,
                config={
                    "recipes": {
                        kind: [step.model_dump() for step in recipe.steps] for kind, recipe in recipes.items()
                    },
                    "trace_examples": config.clean.trace_examples,
                },
                inputs={"records": f"convert:{name}", "assets": "clean:assets"},
            )
            for name in sources
        ),
        Node(
            name="clean:dedup",
            body=dedup.body,
            config={
                "order": sources,
                "min_chars": config.clean.dedup_min_chars,
                "near_duplicates": {
                    kind: recipe.near_duplicates.model_dump() for kind, recipe in recipes.items()
                },
                "examples": config.clean.trace_examples,
            },
            inputs={name: f"clean:{name}" for name in sources},
        ),
        Node(
            name="clean:decontaminate",
            body=decontaminate.body,
            config={
                "sources": sources,
                "sets": sets,
                "benchmarks": benchmarks,
                "ngram": config.clean.ngram,
                "action": config.clean.decontaminate,
                "examples": config.clean.trace_examples,
            },
            inputs={name: f"clean:{name}" for name in sources}
            | {"dedup": "clean:dedup"}
            | {name: f"convert:{name}" for name in (*sets, *benchmarks)},
        ),
    ]


def _assets_node(config: SteelRun, sources: list[str], recipes: Mapping[str, Recipe]) -> Node:
    settings = config.clean.assets
    if settings.models == "folder":
        return Node(
            name="clean:assets",
            body=assets.folder_body,
            config={"models": "folder"},
            external=partial(assets.folder_digests, config.runtime.folders.models),
        )
    wanted = sources if settings.sources is None else settings.sources
    if unknown := sorted(set(wanted) - set(sources)):
        raise NodeError(f"clean.assets.sources names no pre-training source: {', '.join(unknown)}")
    # one recipe counts letters per token: that tokenizer learns from programs, whoever is named for the prose
    code_tokenizer = any(step.settings().get("tokenization") for step in recipes["code"].steps)
    if code_tokenizer:
        programs = [name for name in sources if config.sources[name].language == "code"]
        wanted = list(dict.fromkeys([*wanted, *programs]))
    return Node(
        name="clean:assets",
        body=assets.body,
        config={
            "assets": settings.model_dump(include={"vocab_size", "order", "max_chars"}),
            "code_tokenizer": code_tokenizer,
        },
        inputs={name: f"convert:{name}" for name in wanted},
    )
