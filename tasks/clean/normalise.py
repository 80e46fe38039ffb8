"""Texts reduced to what makes them the same, for deduplication and decontamination.

Copies of a text differ in punctuation, spaces, case and character width far more often than in
words. Signs that carry the value of a number stay (`3.14`, `-5`, `50%`, `10:30`): without them
different sums would become one.
"""

from __future__ import annotations

import re
import unicodedata
from functools import cache

_HAN = "\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\U00020000-\U0003ffff"
# `.`, `/`, `:` without a digit on both sides, `-` without one after it, `%` without one before it
_NOT_NUMERIC = re.compile(r"[-./:%](?:(?<!\d[./:%])(?<!-)|(?<!%)(?!\d))")
_WORD = re.compile(rf"[^\W_{_HAN}]+|[{_HAN}]+")
_SPACES = re.compile(r"[ \t]+")


def squeezed(text: str) -> str:
    """Prose without punctuation, spaces, case and width."""
    folded = unicodedata.normalize("NFKC", text).casefold()
    return _noise().sub("", _NOT_NUMERIC.sub("", folded))


def words(text: str) -> list[str]:
    """Words of prose in lower case; a run of Han characters counts as one."""
    return _WORD.findall(unicodedata.normalize("NFKC", text).casefold())


def code_key(text: str) -> str:
    """A program without empty lines, trailing spaces and width of spacing; every sign counts."""
    lines = (_SPACES.sub(" ", line.rstrip()) for line in text.splitlines())
    return "\n".join(line for line in lines if line)


@cache
def _noise() -> re.Pattern[str]:
    """Every punctuation, separator and control character but those that numbers use."""
    noise = [
        chr(c)
        for c in range(0x10000)
        if unicodedata.category(chr(c))[0] in "PZC"
        and unicodedata.category(chr(c)) not in ("Cn", "Co", "Cs")
        and chr(c) not in "-./:%"
    ]
    return re.compile(f"[{''.join(map(re.escape, noise))}]+")
