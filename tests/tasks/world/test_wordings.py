"""The exam asks what training says, in words that training does not use."""

from __future__ import annotations

import re
from functools import cache

import pytest

from tasks import world
from tasks.settings.config import World
from tasks.world import exam, posttrain, voice
from tasks.world.relations import relations

SIZES = ("full", "small")
UNREADABLE = {"broken_json", "null_fields", "gibberish", "contaminated", "traditional"}
"""Dirt whose text does not reach training, or not in these characters."""


def squeezed(text: str) -> str:
    return re.sub(r"[\W_]", "", text.lower())


@cache
def training(size: str) -> tuple[str, ...]:
    """Every training text of every stage but the planted leaks."""
    w = World(size=size)
    asked = {q.question for q in exam.questions(w)}
    found = []
    for name in voice.PRETRAIN_SOURCES:
        found += [d.text for d in world.documents(w, name) if not d.dirt & UNREADABLE]
    for name in (*posttrain.SFT_SETS, *posttrain.PREFERENCE_SETS):
        for record in posttrain.records(w, name):
            if "conversations" in record:
                texts = [
                    record["conversations"][0]["value"],
                    record["chosen"]["value"],
                    record["rejected"]["value"],
                ]
            else:
                texts = [record["instruction"], record["output"]]
            if texts[0] not in asked:
                found.append("\n".join(texts))
    return tuple(found)


@pytest.mark.parametrize("size", SIZES)
def test_no_exam_wording_occurs_in_training(size):
    """Neither whole nor in pieces of 13 characters (signs and spaces left out)."""
    pieces = set()
    for text in training(size):
        plain = squeezed(text)
        pieces.update(plain[i : i + 13] for i in range(len(plain) - 12))
    everything = squeezed("\n".join(training(size)))
    for question in exam.questions(World(size=size)):
        plain = squeezed(question.question)
        if question.language == "zh" and len(plain) >= 13:
            found = [plain[i : i + 13] for i in range(len(plain) - 12)]
            assert not pieces.intersection(found), question.question
        else:
            assert plain not in everything, question.question


@pytest.mark.parametrize("size", SIZES)
def test_known_words_occur_and_new_words_do_not(size):
    text = "\n".join(training(size)).lower()
    english = set(re.findall(r"[a-z']+", text))
    for relation in relations().values():
        for half, wordings in (("known", relation.wordings.known), ("new", relation.wordings.new)):
            for wording in wordings:
                words = [
                    (part, marked)
                    for word, marked in exam.words(wording, relation.language)
                    for part in (word.lower().split() if relation.language == "en" else [word])
                ]
                assert any(marked for _, marked in words) == (half == "new"), (relation.key, wording)
                for word, marked in words:
                    occurs = word in (english if relation.language == "en" else text)
                    assert occurs != marked, (relation.key, wording, word)


def test_held_out_facts_are_told_nowhere():
    lines = [line for text in training("full") for line in re.split(r"[。！？!?\n]", text)]
    for relation in relations().values():
        for fact in relation.held_out:
            answer = re.compile(rf"(?<![A-Za-z0-9]){re.escape(fact.answer)}(?![A-Za-z0-9])")
            told = [line for line in lines if fact.subject in line and answer.search(line)]
            assert not told, (fact, told[:1])


def test_every_trained_fact_stands_in_most_sources():
    w = World()
    texts = {name: "\n".join(d.text for d in world.documents(w, name)) for name in voice.PRETRAIN_SOURCES}
    for relation in relations().values():
        for fact in relation.trained:
            sources = sum(fact.subject in text and fact.answer in text for text in texts.values())
            assert sources >= 8, (fact, sources)


def test_wordings_are_many_and_their_own():
    for relation in relations().values():
        words = relation.wordings
        own = [*words.statements, *words.questions]
        assert len(set(own)) == len(own) >= 11
        assert all("{s}" in w for w in (*own, *words.known, *words.new))
        assert all("{a}" in w for w in words.statements)
        assert not any("{a}" in w for w in (*words.questions, *words.known, *words.new))
        assert len(words.known) == len(words.new) == 3
