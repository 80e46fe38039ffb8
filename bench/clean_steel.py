"""Steel's side of bench.clean, in a process of its own: `python -m bench.clean_steel OUT MODELS FOLDER…`.

What clean:<source> does to a part, then the SimHash of clean:dedup with the rule of the set `paper`.
clean:dedup's other passes (exact duplicates, other sources) have no counterpart in Data-Juicer's recipe.
"""

from __future__ import annotations

import json
import sys
from collections import defaultdict
from itertools import islice
from pathlib import Path

import orjson

from bench.common import cpu_seconds, emptied

SET, KIND = "paper", "text"


def main() -> None:
    out, models, *folders = map(Path, sys.argv[1:])
    few = emptied(out, "few.jsonl") / "few.jsonl"
    started = cpu_seconds()
    from tasks.clean import operators
    from tasks.clean.recipe import load_set
    from tasks.work.pool import few_collections

    few_collections()

    recipe = load_set(SET)[KIND]
    near = recipe.near_duplicates.model_dump(exclude={"min_similarity", "every_length"})
    hasher = operators.load("document_simhash_deduplicator", {"lowercase": True, **near}, None)
    with (folders[0] / "records.jsonl").open("rb") as lines:
        few.write_bytes(b"".join(islice(lines, 50)))
    clean(few, out / "warm", models, recipe, hasher)
    startup = cpu_seconds() - started
    seconds = []
    for i, folder in enumerate(folders):
        started = cpu_seconds()
        clean(folder / "records.jsonl", out / str(i), models, recipe, hasher)
        seconds.append(cpu_seconds() - started)
    print(json.dumps({"startup": startup, "seconds": seconds}))


def clean(records: Path, out: Path, models: Path, recipe, hasher) -> None:
    from tasks.clean.job import clean_part

    aside = out.with_name(out.name + "-with-duplicates")
    aside.mkdir(parents=True)
    clean_part(aside, records, models, {KIND: recipe.steps}, 10, "bench")
    deduplicate(aside / "records.jsonl", out, recipe.near_duplicates, hasher)


def deduplicate(records: Path, out: Path, near, hasher) -> None:
    """Of every chain of close hashes the first document."""
    import simhash
    from data_juicer.utils.constant import HashKeys

    key = HashKeys.simhash
    with records.open("rb") as lines:
        hashes = [int(hasher.compute_hash({"text": orjson.loads(line)["text"]})[key]) for line in lines]
    neighbours: dict[int, list[int]] = defaultdict(list)
    for a, b in simhash.find_all(set(hashes), near.num_blocks, near.hamming_distance):
        neighbours[a].append(b)
        neighbours[b].append(a)
    seen: set[int] = set()
    out.mkdir(parents=True)
    with records.open("rb") as lines, (out / "records.jsonl").open("wb") as kept:
        for line, value in zip(lines, hashes, strict=True):
            if value in seen:
                continue
            kept.write(line)
            reached = [value]
            seen.add(value)
            while reached:
                new = [other for other in neighbours.get(reached.pop(), ()) if other not in seen]
                seen.update(new)
                reached += new


if __name__ == "__main__":
    main()
