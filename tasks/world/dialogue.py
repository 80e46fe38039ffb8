"""Documents of the four dialogue sources: single questions, lists of questions, conversations."""

from __future__ import annotations

from random import Random

from tasks.settings.config import World
from tasks.world import phrases as p
from tasks.world import voice
from tasks.world.document import Doc
from tasks.world.relations import relations, trained_facts
from tasks.world.voice import Item

MIN_MEAN_LINE = 11
"""Cleaning drops texts whose lines are shorter than 10 characters on average."""

SINGLE = {"belle_2m": 0.0, "firefly": 1.0}
"""How often a single question is led into: bare in one source, never in the other, so that a question
which both ask does not make two equal records."""

KINDS = ("OpenQA", "KeywordRecognition", "Dictionary", "MRC", "Cot")
"""Some of Firefly's task names."""


def documents(world: World, source: str) -> list[Doc]:
    """All clean documents of a dialogue source, shuffled."""
    random = voice.rng(world, "dialogue", source)
    items = voice.items(world, source, trained_facts())
    groups: dict[bool, list[Item]] = {True: [], False: []}
    for item in items:
        groups[voice.language(item.fact) == "zh"].append(item)
    docs: list[Doc] = []
    for zh, group in groups.items():
        random.shuffle(group)
        docs += _conversations(world, source, zh, group, random)
    random.shuffle(docs)
    return docs


def _conversations(world: World, source: str, zh: bool, items: list[Item], random: Random) -> list[Doc]:
    sizes = {"belle_2m": (1, 1, 4, 5), "belle_3_5m": (3, 4, 5), "moss": (4, 5, 6), "firefly": (1, 1, 2, 3)}[
        source
    ]
    language = "zh" if zh else "en"
    rest, docs = list(items), []
    while rest:
        portion = [rest.pop() for _ in range(min(random.choice(sizes), len(rest)))]
        if source in ("belle_2m", "firefly") and len(portion) > 1:
            turns: tuple[tuple[str, str], ...] = (_list(portion, zh, random),)
        else:
            dressed = SINGLE.get(source, 0.4)
            turns = tuple(
                (voice.ask(i, random, dressed), voice.reply(i, random, world.seed)) for i in portion
            )
        kind = random.choice(KINDS) if source == "firefly" else ""
        docs.append(_long_enough(Doc(language, turns=turns, kind=kind), zh, random))
    return docs


def _list(items: list[Item], zh: bool, random: Random) -> tuple[str, str]:
    """Several questions in one message, answered one a line."""
    heading = "请依次回答下面的问题：" if zh else "Please answer these questions one after another:"
    asked = [f"（{k}）{i.text}" if zh else f"({k}) {i.text}" for k, i in enumerate(items, 1)]
    said = []
    for k, item in enumerate(items, 1):
        noun = relations()[item.fact.relation].wordings.nouns[0]
        name, answer = voice.mention(item.fact), item.fact.answer
        said.append(f"（{k}）{name}的{noun}：{answer}。" if zh else f"({k}) {noun} of {name}: {answer}.")
    return "\n".join([heading, *asked]), "\n".join(said)


def _long_enough(doc: Doc, zh: bool, random: Random) -> Doc:
    """Lead into the first question with more words while the lines are too short on average."""
    while len(doc.text) / (doc.text.count("\n") + 1) < MIN_MEAN_LINE:
        question, answer = doc.turns[0]
        first = (voice.opener(zh, random) if zh else random.choice(p.OPENERS_EN) + " ") + question
        doc = Doc(doc.language, doc.title, doc.parts, ((first, answer), *doc.turns[1:]), doc.kind)
    return doc
