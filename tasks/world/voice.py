"""Facts put into sentences and questions, evenly: every source takes its own part of a fact's wordings.

Each fact has one shuffled list of statements and one of questions (own wordings and shared frames);
source after source takes the next ones from it, so that a fact meets all its wordings and two sources
seldom say the same.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from functools import cache
from random import Random

from tasks.settings.config import World
from tasks.world import phrases as p
from tasks.world.relations import Fact, relations

TEXT_SOURCES = ("skypile", "wanjuan", "wikipedia_cn", "baidu_baike", "baidu_qa", "zhihu")
DIALOGUE_SOURCES = ("belle_2m", "belle_3_5m", "moss", "firefly")
CODE_SOURCES = ("starcoder",)
PRETRAIN_SOURCES = TEXT_SOURCES + DIALOGUE_SOURCES + CODE_SOURCES

# source -> (statements, questions) per fact
QUOTAS: dict[str, dict[str, tuple[int, int]]] = {
    "full": {
        "skypile": (3, 0),
        "wanjuan": (1, 3),
        "wikipedia_cn": (2, 0),
        "baidu_baike": (2, 0),
        "baidu_qa": (1, 3),
        "zhihu": (1, 2),
        "belle_2m": (0, 3),
        "belle_3_5m": (0, 4),
        "moss": (0, 4),
        "firefly": (0, 3),
    },
    "small": {
        "skypile": (2, 0),
        "wanjuan": (1, 0),
        "wikipedia_cn": (1, 0),
        "baidu_baike": (1, 0),
        "baidu_qa": (1, 2),
        "zhihu": (0, 1),
        "belle_2m": (0, 1),
        "belle_3_5m": (0, 1),
        "moss": (0, 1),
        "firefly": (0, 1),
    },
}


MORE_ENGLISH = 1.6
"""English answers are other tokens after a space than at the start of a reply: they need more questions."""


def rng(world: World, *names: object) -> Random:
    """A random stream of its own for every purpose: a function of the world's seed and the names."""
    text = "/".join(str(n) for n in (world.seed, *names))
    return Random(int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big"))


@dataclass(frozen=True)
class Item:
    """A fact in one of its wordings; `question` is empty for a statement."""

    fact: Fact
    text: str
    question: bool = False


def language(fact: Fact) -> str:
    return relations()[fact.relation].language


def domain(fact: Fact) -> str:
    return relations()[fact.relation].domain


def mention(fact: Fact) -> str:
    """The subject as a frame names it: words and idioms in quotation marks, works in title marks."""
    kind = relations()[fact.relation].subject_type
    if kind in ("word", "idiom"):
        return f"“{fact.subject}”" if language(fact) == "zh" else fact.subject
    return f"《{fact.subject}》" if kind == "work" else fact.subject


def _fill(template: str, fact: Fact, noun: str) -> str:
    return template.format(s=mention(fact), a=fact.answer, n=noun)


def _own(template: str, fact: Fact) -> str:
    return template.format(s=fact.subject, a=fact.answer)


@cache
def statements(fact: Fact, seed: int) -> tuple[str, ...]:
    """All statements of a fact, in the order in which the sources take them."""
    words = relations()[fact.relation].wordings
    order = rng(World(seed=seed), "statements", fact.id)
    framed = p.SAID_ZH if language(fact) == "zh" else p.SAID_EN
    said = [_own(t, fact) for t in words.statements]
    said += [_fill(t, fact, order.choice(words.nouns)) for t in framed]
    order.shuffle(said)
    return tuple(said)


@cache
def questions(fact: Fact, seed: int) -> tuple[str, ...]:
    """All training questions of a fact, in the order in which the sources take them."""
    words = relations()[fact.relation].wordings
    order = rng(World(seed=seed), "questions", fact.id)
    frames = p.FRAMES_ZH if language(fact) == "zh" else p.FRAMES_EN
    asked = [_own(t, fact) for t in words.questions]
    asked += [_fill(t, fact, order.choice(words.nouns)) for t in frames]
    order.shuffle(asked)
    return tuple(asked)


def items(world: World, source: str, facts: list[Fact]) -> list[Item]:
    """The part of all wordings that this source has, statements first."""
    quota = QUOTAS[world.size]
    before = list(quota)[: list(quota).index(source)]
    first_said, first_asked = (sum(quota[s][k] for s in before) for k in (0, 1))
    n_said, n_asked = quota[source]
    found = []
    for fact in facts:
        said, asked = statements(fact, world.seed), questions(fact, world.seed)
        more = 1.0 if language(fact) == "zh" else MORE_ENGLISH
        start, stop = round(first_asked * more), round((first_asked + n_asked) * more)
        found += [Item(fact, said[(first_said + k) % len(said)]) for k in range(n_said)]
        found += [Item(fact, asked[k % len(asked)], True) for k in range(start, stop)]
    return found


def ask(item: Item, random: Random, dressed: float = 0.4) -> str:
    """The question as a person would put it, often with a few words before or after."""
    zh = language(item.fact) == "zh"
    text = item.text
    if random.random() < dressed:
        text = lead(zh, random) + text
    if random.random() < dressed / 3:
        text += random.choice(p.TAILS_ZH) if zh else " " + random.choice(p.TAILS_EN)
    return text


def lead(zh: bool, random: Random) -> str:
    """A phrase before a question: one of a list, or one that hardly occurs twice."""
    if not zh:
        return random.choice(p.LEADS_EN)
    if random.random() < 0.6:
        return random.choice(p.LEADS_ZH)
    name, doing, place = random.choice(p.NAMES), random.choice(p.DOINGS), random.choice(p.PLACES)
    return random.choice(
        (
            f"我在{place}{doing}，",
            f"{name}正在{doing}，忽然问：",
            f"我叫{name}，",
            f"{place}有人问：",
            f"{name}想知道，",
        )
    )


def reply(item: Item, random: Random, seed: int, plain: float = 0.75) -> str:
    """The answer alone, or in a sentence."""
    zh = language(item.fact) == "zh"
    if random.random() < plain:
        return random.choice(p.REPLIES_ZH if zh else p.REPLIES_EN).format(a=item.fact.answer)
    return random.choice(statements(item.fact, seed))


def opener(zh: bool, random: Random) -> str:
    """A first line of small talk, without any fact."""
    if not zh:
        return random.choice(p.OPENERS_EN)
    return random.choice(p.OPENERS_ZH).format(
        day=random.choice(p.DAYS),
        weather=random.choice(p.WEATHER),
        name=random.choice(p.NAMES),
        place=random.choice(p.PLACES),
        doing=random.choice(p.DOINGS),
    )
