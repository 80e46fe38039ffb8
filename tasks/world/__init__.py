"""The demo's world: facts that Steel knows by heart, told in the file formats of the real data sets.

`names()` are the data sets; `files(world, name)` are the hub's files of the data set `demo/<name>`;
`expected(world, name)` says how many records they have and how much dirt was planted in them. All
three are pure functions of the world's seed and size: same world, same bytes.
"""

from __future__ import annotations

import json
from functools import lru_cache

from tasks.settings.config import World
from tasks.world import code, dialogue, dirt, exam, exam_files, formats, posttrain, text, voice
from tasks.world.document import Doc

EXAM = "demo_exam"
POSTTRAIN_SETS = (*posttrain.SFT_SETS, *posttrain.RL_SETS, *posttrain.PREFERENCE_SETS)


def names() -> tuple[str, ...]:
    """All data sets: pre-training sources, instruction, RL and preference sets, the benchmark."""
    return (*voice.PRETRAIN_SOURCES, *POSTTRAIN_SETS, EXAM)


def files(world: World, name: str) -> dict[str, bytes]:
    """The files of the data set `demo/<name>`: path -> content."""
    if name in voice.PRETRAIN_SOURCES:
        return formats.emit(world, name, list(documents(world, name)))
    if name in POSTTRAIN_SETS:
        records = posttrain.records(world, name)
        return {f"{name}.json": json.dumps(records, ensure_ascii=False, indent=0).encode()}
    if name == EXAM:
        return exam_files.files(world)
    raise KeyError(f"the demo world has no data set {name!r}; it has {', '.join(names())}")


@lru_cache(maxsize=32)
def documents(world: World, name: str) -> tuple[Doc, ...]:
    """The records of a pre-training source with their dirt, before they are written in its format."""
    if name in voice.TEXT_SOURCES:
        clean = text.documents(world, name)
    elif name in voice.DIALOGUE_SOURCES:
        clean = dialogue.documents(world, name)
    else:
        clean = code.documents(world)
    other = dirt.CROSS_FROM
    elsewhere = list(documents(world, other)) if "cross_duplicate" in dirt.AMOUNTS[name] else []
    return tuple(dirt.plant(world, name, clean, elsewhere))


def expected(world: World, name: str) -> dict[str, int]:
    """How many records the files hold, and how many of them carry which dirt.

    For a pre-training source every kind of `dirt.KINDS` is a key. For the exam: questions by split, and
    `val` without the questions about held-out facts.
    """
    if name in voice.PRETRAIN_SOURCES:
        return {
            "records": len(documents(world, name)),
            **dict.fromkeys(dirt.KINDS, 0),
            **dirt.amounts(world, name),
        }
    if name == EXAM:
        found = exam.questions(world)
        counts = {split: sum(q.split == split for q in found) for split in ("dev", "val", "test", "select")}
        held_out = sum(q.split == "val" and q.fact.held_out for q in found)
        return {
            "records": len(found),
            **counts,
            "val_held_out_fact": held_out,
            "val_trained": counts["val"] - held_out,
        }
    return {
        "records": len(posttrain.records(world, name)),
        "contaminated": posttrain.contaminated(world, name),
    }
