"""The benchmark `demo_exam`: multiple-choice questions in wordings that no training text has.

Every relation is a subject of the exam. A trained fact is asked twice in `val`, once in a wording whose
words all occur in training (known-words) and once in one with words that occur nowhere in it
(new-words); once more, in the other val wordings, in the unlabelled `test`; and in part, in wordings of
their own, in `dev` and `select`. Held-out facts are asked in `val` only.

Options. Every answer of a relation is drawn as a wrong option as often as it is right, so that the
options alone do not give the answer away. If the subject has a trained answer in the partner relation,
that is one of the wrong options; the partner asks the reverse, which balances the types. Held-out facts
have the held-out answers of their relation as options: all of them equally unheard of.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from random import Random

from tasks.settings.config import World
from tasks.world import voice
from tasks.world.relations import Fact, Relation, partner_answer, relations

HALVES = ("known-words", "new-words")
DEV, SELECT_SHARE = 5, 0.5


@dataclass(frozen=True)
class ExamQuestion:
    split: str
    relation: str
    half: str
    wording: int
    fact: Fact
    question: str
    choices: tuple[str, ...]
    answer: int
    explanation: str = ""

    @property
    def language(self) -> str:
        return voice.language(self.fact)


def words(wording: str, language: str) -> list[tuple[str, bool]]:
    """The words of a held-out wording and whether each is marked as new; slots and signs are left out."""
    found = []
    for piece in wording.split():
        marked = piece.startswith("[")
        core = piece.replace("{s}", " ").strip("[]“”《》，。？、：,.?:;! ")
        if language == "en":
            core = core.replace("[", "").replace("]", "").removesuffix("'s").strip(",.?:;! ")
        if core:
            found.append((core, marked))
    return found


def render(wording: str, fact: Fact) -> str:
    """The question as it is asked: marks taken off, and in Chinese the spaces between words."""
    plain = re.sub(r"[\[\]]", "", wording)
    if voice.language(fact) == "zh":
        plain = plain.replace(" ", "")
    return plain.format(s=fact.subject)


@cache
def questions(world: World) -> tuple[ExamQuestion, ...]:
    """All questions of the exam, by subject and split, in a fixed order."""
    found: list[ExamQuestion] = []
    for relation in relations().values():
        found += _of_relation(world, relation)
    return tuple(found)


def _of_relation(world: World, relation: Relation) -> list[ExamQuestion]:
    found: list[ExamQuestion] = []
    for half, wordings in zip(HALVES, (relation.wordings.known, relation.wordings.new), strict=True):
        random = voice.rng(world, "exam", relation.key, half)
        facts = list(relation.trained)
        random.shuffle(facts)
        for split, shift in (("val", 0), ("test", 1)):
            options = _options(relation, facts, random)
            for k, fact in enumerate(facts):
                number = (k + shift) % 2
                found.append(_ask(split, half, number, wordings[number], fact, options[k], random))
        few = facts[: max(4, int(len(facts) * SELECT_SHARE))]
        options = _options(relation, few, random)
        for k, fact in enumerate(few):
            found.append(_ask("select", half, 2, wordings[2], fact, options[k], random))
        if half == HALVES[0]:
            last = facts[-DEV:]
            options = _options(relation, last, random)
            found += [
                _ask("dev", half, 2, wordings[2], fact, options[k], random) for k, fact in enumerate(last)
            ]
        if relation.held_out:
            hidden = relation.held_out
            options = _options(relation, hidden, random, partners=False)
            for k, fact in enumerate(hidden):
                found.append(_ask("val", half, k % 2, wordings[k % 2], fact, options[k], random))
    order = {split: n for n, split in enumerate(("dev", "val", "select", "test"))}
    return sorted(found, key=lambda q: order[q.split])


def _ask(
    split: str, half: str, number: int, wording: str, fact: Fact, wrong: Sequence[str], random: Random
) -> ExamQuestion:
    choices = [fact.answer, *wrong]
    random.shuffle(choices)
    said = voice.statements(fact, 0)[0] if split == "dev" else ""
    return ExamQuestion(
        split,
        fact.relation,
        half,
        number,
        fact,
        render(wording, fact),
        tuple(choices),
        choices.index(fact.answer),
        said,
    )


def _options(relation: Relation, facts: list[Fact], random: Random, partners: bool = True) -> list[list[str]]:
    """Three wrong options for each fact, every answer of the relation about equally often."""
    if relation.shared_answers:
        return [_other_classes(relation, fact, random) for fact in facts]
    misleading = [partner_answer(fact) if partners else None for fact in facts]
    used = {fact.answer: 0 for fact in facts}
    found = []
    for fact, partner in zip(facts, misleading, strict=True):
        wrong = [partner] if partner else []
        others = [f.answer for f in facts if f is not fact]
        random.shuffle(others)
        others.sort(key=used.__getitem__)
        for answer in others[: 3 - len(wrong)]:
            used[answer] += 1
            wrong.append(answer)
        found.append(wrong)
    return found


def _other_classes(relation: Relation, fact: Fact, random: Random) -> list[str]:
    classes = sorted({f.answer for f in relation.facts} - {fact.answer})
    return random.sample(classes, 3)
