"""Clean: Data-Juicer recipes, the models they need, deduplication, decontamination, and who did what.

clean:assets          seeds.py and kneser_ney.py → assets.py (models)
clean:<source>        recipe.py (typed YAML) → operators.py (Data-Juicer, made safe) → chain.py (operators at
                      work, attributed) → job.py (a part) → join.py → source.py
clean:dedup           normalise.py → signatures.py (the job) → near.py, spill.py → dedup.py, dedup_account.py
clean:decontaminate   normalise.py → overlap.py → decontaminate.py (its job is search_part)
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial

from tasks.clean import assets, decontaminate, dedup, signatures, source
from tasks.clean.recipe import Recipe, load_set
from tasks.settings.config import SteelRun
from tasks.settings.errors import NodeError
from tasks.stage.node import Node

_SHARED = (
    "tasks.clean.recipe",
    "tasks.clean.shown",
    "tasks.records",
)


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
                config=source.Settings(
                    recipes={kind: recipe.steps for kind, recipe in recipes.items()},
                    trace_examples=config.clean.trace_examples,
                ),
                inputs={"records": f"convert:{name}", "assets": "clean:assets"},
                code=source.CODE,
            )
            for name in sources
        ),
        Node(
            name="clean:dedup",
            body=dedup.body,
            config=dedup.Settings(
                order=sources,
                min_chars=config.clean.dedup_min_chars,
                near_duplicates={kind: recipe.near_duplicates for kind, recipe in recipes.items()},
                examples=config.clean.trace_examples,
            ),
            inputs={name: f"clean:{name}" for name in sources},
            code=(
                "tasks.clean.signatures",
                "tasks.clean.dedup_account",
                "tasks.clean.near",
                "tasks.clean.spill",
                *signatures.JOB_CODE,
                *_SHARED,
            ),
        ),
        Node(
            name="clean:decontaminate",
            body=decontaminate.body,
            config=decontaminate.Settings(
                sources=sources,
                sets=sets,
                benchmarks=benchmarks,
                ngram=config.clean.ngram,
                action=config.clean.decontaminate,
                examples=config.clean.trace_examples,
            ),
            inputs={name: f"clean:{name}" for name in sources}
            | {"dedup": "clean:dedup"}
            | {name: f"convert:{name}" for name in (*sets, *benchmarks)},
            code=(
                "tasks.clean.overlap",
                "tasks.clean.normalise",
                "tasks.clean.language",
                *_SHARED,
            ),
        ),
    ]


def _assets_node(config: SteelRun, sources: list[str], recipes: Mapping[str, Recipe]) -> Node:
    settings = config.clean.assets
    if settings.models == "folder":
        return Node(
            name="clean:assets",
            body=assets.folder_body,
            config=assets.FolderSettings(),
            external=partial(assets.folder_digests, config.runtime.folders.models),
            code=("tasks.clean.operators",),
        )
    learnt = sources if settings.sources is None else settings.sources
    if unknown := sorted(set(learnt) - set(sources)):
        raise NodeError(f"clean.assets.sources names no pre-training source: {', '.join(unknown)}")
    # one recipe counts letters per token: that tokenizer learns from programs, whoever is named for the prose
    code_tokenizer = any(step.settings().get("tokenization") for step in recipes["code"].steps)
    if code_tokenizer:
        programs = [name for name in sources if config.sources[name].language == "code"]
        learnt = list(dict.fromkeys([*learnt, *programs]))
    return Node(
        name="clean:assets",
        body=assets.body,
        config=assets.Settings(
            assets=assets.Training(
                vocab_size=settings.vocab_size, order=settings.order, max_chars=settings.max_chars
            ),
            code_tokenizer=code_tokenizer,
        ),
        inputs={name: f"convert:{name}" for name in learnt},
        code=(
            "tasks.clean.seeds",
            "tasks.clean.kneser_ney",
            "tasks.clean.language",
            "tasks.clean.operators",
            "tasks.records",
        ),
    )
