"""Documents of the six text sources: articles, encyclopedia entries, questions with answers."""

from __future__ import annotations

from random import Random

from tasks.settings.config import World
from tasks.world import phrases as p
from tasks.world import voice
from tasks.world.document import Doc, paragraphs
from tasks.world.relations import trained_facts
from tasks.world.voice import Item

LENGTHS = {"zh": (8, 12), "en": (5, 8)}
"""Facts per document, fewest and most: 150 to 600 characters."""

MIXED = 0.3
"""Share of Chinese items that go into documents about more than one domain."""


def documents(world: World, source: str) -> list[Doc]:
    """All clean documents of a text source, shuffled."""
    random = voice.rng(world, "text", source)
    items = voice.items(world, source, trained_facts())
    write = {"baidu_baike": _entries, "baidu_qa": _answers, "zhihu": _essays}.get(source, _articles)
    docs = []
    for zh, group in _groups(items, random):
        docs += write(world, source, zh, group, random)
    random.shuffle(docs)
    return docs


def _groups(items: list[Item], random: Random) -> list[tuple[bool, list[Item]]]:
    """Items by domain, some Chinese ones in a mixed group; every group shuffled."""
    groups: dict[str, list[Item]] = {}
    for item in items:
        zh = voice.language(item.fact) == "zh"
        key = "mixed" if zh and random.random() < MIXED else voice.domain(item.fact)
        groups.setdefault(key, []).append(item)
    for group in groups.values():
        random.shuffle(group)
    return [(key != "english", groups[key]) for key in sorted(groups)]


def _portions(items: list[Item], low: int, high: int, random: Random) -> list[list[Item]]:
    """Cut into portions of low..high items with no fact twice in one portion; no small rest."""
    portions: list[list[Item]] = []
    rest = list(items)
    while rest:
        size = random.randint(low, high)
        portion: list[Item] = []
        later: list[Item] = []
        seen: set[str] = set()
        while rest and len(portion) < size:
            item = rest.pop()
            if item.fact.id in seen:
                later.append(item)
            else:
                seen.add(item.fact.id)
                portion.append(item)
        rest += later
        if len(portion) < low and portions:
            portions[-1] += portion
        else:
            portions.append(portion)
    return portions


def _said(items: list[Item], world: World, random: Random) -> list[str]:
    """Statements as they are; a question together with its answer, in one line."""
    return [i.text if not i.question else f"{i.text}{voice.reply(i, random, world.seed)}" for i in items]


def exercise(item: Item) -> str:
    """Question and answer, each on a line of its own, labelled."""
    if voice.language(item.fact) == "zh":
        return f"问题：{item.text}\n答案：{item.fact.answer}"
    return f"Question: {item.text}\nAnswer: {item.fact.answer}"


def _articles(world: World, source: str, zh: bool, items: list[Item], random: Random) -> list[Doc]:
    """Running text: an opening line, statements, and exercises at the end if the source has questions."""
    docs = []
    for portion in _portions(items, *(LENGTHS["zh"] if zh else LENGTHS["en"]), random):
        said = [i.text for i in portion if not i.question]
        parts = [voice.opener(zh, random), *paragraphs(said, zh, random)]
        parts += [exercise(i) for i in portion if i.question]
        title = ""
        if source == "wikipedia_cn":
            title = _heading(portion, zh)
        docs.append(Doc("zh" if zh else "en", title, tuple(parts)))
    return docs


def _heading(items: list[Item], zh: bool) -> str:
    """The first subjects of a document as its title."""
    names = [i.fact.subject for i in items[:3]]
    return "、".join(names) + "等条目" if zh else "Notes about " + ", ".join(names)


def _entries(world: World, source: str, zh: bool, items: list[Item], random: Random) -> list[Doc]:
    """Encyclopedia entries: title, a summary (first part), sections (further parts)."""
    docs = []
    for portion in _portions(items, *(LENGTHS["zh"] if zh else LENGTHS["en"]), random):
        said = [i.text for i in portion]
        summary = voice.opener(zh, random) + ("" if zh else " ") + said[0]
        parts = [summary, *paragraphs(said[1:], zh, random)]
        docs.append(Doc("zh" if zh else "en", portion[0].fact.subject, tuple(parts)))
    return docs


def _answers(world: World, source: str, zh: bool, items: list[Item], random: Random) -> list[Doc]:
    """A question, a description, an answer that goes on with related questions and statements."""
    docs = []
    asked = [i for i in items if i.question]
    said = [i for i in items if not i.question]
    per_doc = -(-len(said) * 6 // max(1, len(asked))) if said else 0
    for portion in _portions(asked, 6, 6, random):
        first, *others = portion
        facts = {i.fact.id for i in portion}
        extra = [said.pop() for _ in range(min(per_doc, len(said)))]
        extra_text = (
            paragraphs([i.text for i in extra if i.fact.id not in facts], zh, random) if extra else []
        )
        said = [i for i in extra if i.fact.id in facts] + said
        answer = [voice.reply(first, random, world.seed), *extra_text, *(exercise(i) for i in others)]
        description = voice.opener(zh, random) if random.random() < 0.3 else ""
        docs.append(Doc("zh" if zh else "en", voice.ask(first, random), (description, "\n".join(answer))))
    return docs


def _essays(world: World, source: str, zh: bool, items: list[Item], random: Random) -> list[Doc]:
    """An open question and a long reply made of statements and small dialogues."""
    docs = []
    for portion in _portions(items, *(LENGTHS["zh"] if zh else LENGTHS["en"]), random):
        about = p.DOMAINS[voice.domain(portion[0].fact)]
        name, place = random.choice(p.NAMES), random.choice(p.PLACES)
        subject = portion[0].fact.subject
        if zh:
            title = random.choice(
                (
                    f"有哪些{about}值得记住？从{subject}说起",
                    f"怎样向{name}讲清楚{subject}这类{about}？",
                    f"在{place}聊起{subject}，还能聊什么{about}？",
                    f"学{about}，除了{subject}还该记什么？",
                )
            )
        else:
            title = random.choice(
                (
                    f"Which facts beside {subject} are worth remembering?",
                    f"How would you explain {subject} to beginners?",
                )
            )
        lines = paragraphs(_said(portion, world, random), zh, random)
        docs.append(Doc("zh" if zh else "en", title, (voice.opener(zh, random), *lines)))
    return docs
