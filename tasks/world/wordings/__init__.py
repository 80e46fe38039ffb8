"""How each relation is put into words.

`statements` and `questions` are trained on; `known` and `new` are asked only in the exam. In those two
a space separates the words of a Chinese wording (it is removed when the question is written), and a
word in [brackets] must occur in no training text at all. The first two wordings of `known` and `new`
belong to the splits val and test, the third to dev and select.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Wordings:
    """The wordings of one relation; {s} stands for the subject, {a} for the answer."""

    nouns: tuple[str, ...]
    """What the answer is called: "the {noun} of {s}" is good language."""
    statements: tuple[str, ...]
    questions: tuple[str, ...]
    known: tuple[str, ...]
    new: tuple[str, ...]


def wordings(nouns: str, statements: str, questions: str, known: str, new: str) -> Wordings:
    """Split blocks of text into wordings, one a line; nouns are separated by a slash."""

    def lines(block: str) -> tuple[str, ...]:
        return tuple(line.strip() for line in block.strip().splitlines() if line.strip())

    return Wordings(
        tuple(n.strip() for n in nouns.split("/")),
        lines(statements),
        lines(questions),
        lines(known),
        lines(new),
    )
