"""compare:texts: which benchmark questions stand in training text, by the index of clean:decontaminate."""

from __future__ import annotations

from typing import Any

import orjson

from tasks.clean import decontaminate
from tasks.clean.decontaminate import Searched
from tasks.records import parts
from tasks.settings.config import Section
from tasks.stage.node import Context, Outcome
from tasks.work import partitions

FILE = "contamination.json"


class Recipe(Section):
    """What is searched for what."""

    texts: list[str]
    """Sources of training text."""
    benchmarks: list[str]
    ngram: int
    """Units of overlap with a question, as in clean.ngram."""


def body(ctx: Context) -> Outcome:
    """contamination.json: benchmark -> {question id: names of the sources that hold it}, and records searched."""
    recipe: Recipe = ctx.config
    asked = {name: parts.digested(ctx.inputs[name], "questions")[0] for name in recipe.benchmarks}
    benchmarks = {name: str(path) for name, (path, _) in asked.items()}
    digests = [[name, digest] for name, (_, digest) in asked.items()]
    read = [(name, *part) for name in recipe.texts for part in parts.digested(ctx.inputs[name])]
    jobs = [
        partitions.Job(
            partitions.key(decontaminate.search_part, digests, recipe.ngram, digest),
            decontaminate.search_part,
            (path, benchmarks, recipe.ngram),
        )
        for _, path, digest in read
    ]
    searched: dict[str, list[Searched]] = {name: [] for name in recipe.texts}
    for (name, path, _), folder in zip(read, partitions.run(ctx, jobs), strict=True):
        searched[name].append(Searched(path, folder))
    index = decontaminate.index_of(tuple(benchmarks.items()), recipe.ngram)
    hits, _ = decontaminate.decide(index, searched, {})
    held: dict[str, dict[str, list[str]]] = {name: {} for name in recipe.benchmarks}
    for source, by_record in hits.items():
        for hit in by_record.values():
            for number in hit.questions:
                question = index.questions[number]
                names = held[question.benchmark].setdefault(question.id, [])
                if source not in names:
                    names.append(source)
    totals = {name: decontaminate.totals_of(name, some, None) for name, some in searched.items()}
    found: dict[str, Any] = {
        "questions": {name: dict(sorted(ids.items())) for name, ids in held.items()},
        "searched": {name: {"records": t["records"], "chars": t["chars"]} for name, t in totals.items()},
        "ngram": recipe.ngram,
    }
    (ctx.out / FILE).write_bytes(orjson.dumps(found, option=orjson.OPT_INDENT_2) + b"\n")
    count = sum(map(len, held.values()))
    return Outcome(
        headline=f"{count:,} questions stand in the texts", counts={"questions_held": count}, files=[FILE]
    )
