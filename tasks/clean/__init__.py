"""Clean: Data-Juicer recipes, the models they need, deduplication, decontamination, and who did what.

Rooms: recipe.py (typed YAML) → operators.py (Data-Juicer, made safe) → chain.py (operators at work,
attributed) → partition.py (a source) ; seeds.py + kneser_ney.py → assets.py (models) ; normalise.py →
dedup.py and overlap.py → decontaminate.py.
"""

from __future__ import annotations

from tasks.clean import assets, decontaminate, dedup, partition
from tasks.clean.recipe import load_set
from tasks.config import SteelRun
from tasks.node import Node

_SHARED = ("tasks.clean.recipe", "tasks.clean.records", "tasks.clean.accounting")


def nodes(config: SteelRun) -> list[Node]:
    """clean:assets, clean:<source>…, clean:dedup, clean:decontaminate."""
    sources = list(config.using("pretrain"))
    sets = list(config.using("sft", "preference"))
    benchmarks = list(config.using("benchmark"))
    recipes = load_set(config.clean.recipe)
    return [
        Node(
            name="clean:assets",
            body=assets.body,
            config={
                "assets": config.clean.assets.model_dump(),
                # one recipe counts letters per token
                "code_tokenizer": any(step.settings().get("tokenization") for step in recipes["code"].steps),
            },
            inputs={name: f"convert:{name}" for name in sources},
            code=(
                "tasks.clean.assets",
                "tasks.clean.seeds",
                "tasks.clean.kneser_ney",
                "tasks.clean.language",
                "tasks.clean.operators",
                "tasks.clean.records",
            ),
        ),
        *(
            Node(
                name=f"clean:{name}",
                body=partition.body,
                config={
                    "recipes": {
                        kind: [step.model_dump() for step in recipe.steps] for kind, recipe in recipes.items()
                    },
                    "trace_examples": config.clean.trace_examples,
                },
                inputs={"records": f"convert:{name}", "assets": "clean:assets"},
                code=(
                    "tasks.clean.partition",
                    "tasks.clean.chain",
                    "tasks.clean.language",
                    "tasks.clean.operators",
                    "tasks.clean.own_operators",
                    *_SHARED,
                ),
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
            },
            inputs={name: f"clean:{name}" for name in sources},
            code=("tasks.clean.dedup", "tasks.clean.normalise", "tasks.clean.operators", *_SHARED),
        ),
        Node(
            name="clean:decontaminate",
            body=decontaminate.body,
            config={
                "sources": sources,
                "sets": sets,
                "benchmarks": benchmarks,
                "ngram": config.clean.ngram,
            },
            inputs={name: f"clean:{name}" for name in sources}
            | {"dedup": "clean:dedup"}
            | {name: f"convert:{name}" for name in (*sets, *benchmarks)},
            code=(
                "tasks.clean.decontaminate",
                "tasks.clean.overlap",
                "tasks.clean.normalise",
                "tasks.clean.language",
                *_SHARED,
            ),
        ),
    ]
