"""Planted dirt: of which kind and how much each source gets, so that cleaning can be counted exactly.

A document carries one kind of dirt at most. Kinds:

broken_json (a line cut short), null_fields (the field that matters is null), gibberish (a soup of signs)
    records that must not survive;
html, email, link, ip, traditional
    records that survive, changed by exactly one operator;
exact_duplicate, near_duplicate (one sign differs), cross_duplicate (a near-duplicate of a document of
another source)
    further copies, so that as many records go as copies were planted;
contaminated (a question of the exam's `val` split stands in it)
    for decontamination; low_votes and null_summary for the readers of zhihu and baidu_baike.
"""

from __future__ import annotations

from collections.abc import Callable
from random import Random

from tasks.settings.config import World
from tasks.world import exam, spoil, voice
from tasks.world.document import Doc

_TEXT = {
    "null_fields": 4, "gibberish": 6, "html": 8, "email": 5, "link": 6, "ip": 4, "traditional": 8,
    "exact_duplicate": 4, "near_duplicate": 4, "contaminated": 4,
}  # fmt: skip
_DIALOGUE = {
    "broken_json": 4, "null_fields": 4, "gibberish": 4, "html": 4, "email": 4, "link": 4, "traditional": 6,
    "exact_duplicate": 4, "contaminated": 3,
}  # fmt: skip

AMOUNTS: dict[str, dict[str, int]] = {
    "skypile": {"broken_json": 5, **_TEXT},
    "wanjuan": {"broken_json": 5, **_TEXT, "cross_duplicate": 5},
    "wikipedia_cn": {**_TEXT, "cross_duplicate": 4},
    "baidu_baike": {"broken_json": 5, **_TEXT, "null_summary": 10},
    "baidu_qa": {"broken_json": 5, **_TEXT},
    "zhihu": {**_TEXT, "low_votes": 12},
    "belle_2m": _DIALOGUE,
    "belle_3_5m": _DIALOGUE,
    "moss": _DIALOGUE,
    "firefly": _DIALOGUE,
    "starcoder": {"null_fields": 3, "gibberish": 3, "exact_duplicate": 3},
}
"""Source -> kind -> number of records, at full size; the small world has half, rounded up."""

KINDS = tuple(dict.fromkeys(kind for amounts in AMOUNTS.values() for kind in amounts))
CROSS_FROM = "skypile"
"""The source whose documents the cross-duplicates repeat."""

_CHANGES: dict[str, Callable[[Doc, Random], Doc]] = {
    "html": spoil.html,
    "email": spoil.email,
    "link": spoil.link,
    "ip": spoil.ip,
    "traditional": spoil.traditional,
    "null_summary": lambda doc, random: doc,
}
_COPIES: dict[str, Callable[[Doc], Doc]] = {
    "broken_json": lambda doc: doc,
    "null_fields": lambda doc: doc,
    "low_votes": lambda doc: doc,
    "exact_duplicate": lambda doc: doc,
    "near_duplicate": spoil.slightly_changed,
}
_NEEDS: dict[str, Callable[[Doc], bool]] = {
    "traditional": spoil.reversible,
    "exact_duplicate": spoil.medium,
    "near_duplicate": spoil.long,
    "html": spoil.chinese,
    "email": spoil.chinese,
    "link": spoil.chinese,
    "ip": spoil.chinese,
    "contaminated": spoil.chinese,
}


def amounts(world: World, source: str) -> dict[str, int]:
    """How much of which dirt the source gets."""
    share = 1 if world.size == "full" else 2
    return {kind: -(-n // share) for kind, n in AMOUNTS[source].items()}


def plant(world: World, source: str, docs: list[Doc], elsewhere: list[Doc]) -> list[Doc]:
    """The source's documents with its dirt; `elsewhere`: the finished documents of CROSS_FROM."""
    random = voice.rng(world, "dirt", source)
    found = list(docs)
    free = list(range(len(found)))
    random.shuffle(free)
    copies: list[Doc] = []

    def take(kind: str) -> int:
        """A document that carries no dirt yet and can carry this kind."""
        suits = _NEEDS.get(kind, lambda doc: True)
        for position in free:
            if suits(found[position]):
                free.remove(position)
                return position
        raise ValueError(f"{source}: no document is left that can carry the dirt {kind!r}")

    for kind, number in amounts(world, source).items():
        if kind == "cross_duplicate":
            copies += [
                spoil.slightly_changed(d).dirty(kind) for d in _untouched(world, source, elsewhere, number)
            ]
            continue
        for k in range(number):
            position = take(kind)
            doc = found[position]
            if kind == "gibberish":
                copies.append(spoil.gibberish(doc, k, random).dirty(kind))
            elif kind == "contaminated":
                found[position] = spoil.append(doc, leaked(world, source, k)).dirty(kind)
            elif kind in _COPIES:
                copies.append(_COPIES[kind](doc).dirty(kind))
                found[position] = doc.dirty("original")
            else:
                found[position] = _CHANGES[kind](doc, random).dirty(kind)
    found += copies
    random.shuffle(found)
    return found


def _untouched(world: World, source: str, elsewhere: list[Doc], number: int) -> list[Doc]:
    """Long documents of the other source without dirt; each source that asks gets different ones."""
    clean = [d for d in elsewhere if not d.dirt and spoil.long(d)]
    asking = [name for name, kinds in AMOUNTS.items() if "cross_duplicate" in kinds]
    first = sum(amounts(world, name)["cross_duplicate"] for name in asking[: asking.index(source)])
    return clean[first : first + number]


def leaked(world: World, source: str, number: int) -> str:
    """A Chinese val question of at least 18 characters, for the documents that cheat."""
    long = [
        q.question
        for q in exam.questions(world)
        if q.split == "val" and q.language == "zh" and len(q.question) >= 18 and not q.fact.held_out
    ]
    return voice.rng(world, "leak", source, number).choice(long)
