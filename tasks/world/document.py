"""A record of a source before it is written in that source's format, and the limits all texts keep."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from random import Random
from typing import Any

from tasks.world import phrases as p

MAX_ALNUM = 0.87
"""Letters, digits and Chinese characters: above 0.9 cleaning takes a text for one without punctuation."""


@dataclass(frozen=True)
class Doc:
    """One record. Texts use `title` and `parts` (paragraph blocks); dialogues use `turns`."""

    language: str
    title: str = ""
    parts: tuple[str, ...] = ()
    turns: tuple[tuple[str, str], ...] = ()
    kind: str = ""
    dirt: frozenset[str] = field(default_factory=frozenset)
    """What was planted in it: see tasks.world.dirt."""

    @property
    def text(self) -> str:
        """Everything readable in it, as lines."""
        lines = [self.title] if self.title else []
        lines += list(self.parts)
        for question, answer in self.turns:
            lines += [question, answer]
        return "\n".join(lines)

    def dirty(self, kind: str, **changes: Any) -> Doc:
        return replace(self, dirt=self.dirt | {kind}, **changes)


def alnum_share(text: str) -> float:
    return sum(c.isalnum() for c in text) / max(1, len(text))


def paragraphs(sentences: list[str], zh: bool, random: Random) -> list[str]:
    """Sentences in lines of two or three; connectors are put in until there is enough punctuation."""
    sentences = list(sentences)
    connectors = list(p.CONNECTORS_ZH if zh else p.CONNECTORS_EN)
    random.shuffle(connectors)
    order = list(range(1, len(sentences)))
    random.shuffle(order)
    wanted = max(1, len(sentences) // 4)
    joined = "".join(sentences)
    while order and connectors and (wanted > 0 or (zh and alnum_share(joined) > MAX_ALNUM)):
        k = order.pop()
        sentences[k] = connectors.pop() + sentences[k]
        joined = "".join(sentences)
        wanted -= 1
    lines, glue = [], "" if zh else " "
    while sentences:
        take = random.choice((2, 2, 3)) if zh else 2
        line = glue.join(sentences[:take])
        if len(line) > 140 and take > 1:
            take = 1
            line = sentences[0]
        lines.append(line)
        sentences = sentences[take:]
    return lines
