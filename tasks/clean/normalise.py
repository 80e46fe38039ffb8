"""Texts reduced to what makes them the same, for deduplication and decontamination.

Copies of a text differ in punctuation, spaces, case and character width far more often than in
words. Signs that carry the value of a number stay (`3.14`, `-5`, `50%`, `10:30`): without them
different sums would become one.
"""

from __future__ import annotations

import unicodedata

import regex

_NUMERIC = r"(?<=\d)[.:/](?=\d)|-(?=\d)|(?<=\d)%"
_NOISE = regex.compile(rf"(?!{_NUMERIC})[\p{{P}}\p{{Z}}\p{{C}}\s]")
_WORD = regex.compile(r"\p{Han}|[\p{L}\p{M}\p{N}]+")
_SPACES = regex.compile(r"[ \t]+")


def squeezed(text: str) -> str:
    """Prose without punctuation, spaces, case and width."""
    return _NOISE.sub("", unicodedata.normalize("NFKC", text).casefold())


def words(text: str) -> list[str]:
    """Words of prose in lower case; every Han character is a word of its own."""
    return _WORD.findall(unicodedata.normalize("NFKC", text).casefold())


def code_key(text: str) -> str:
    """A program without empty lines, trailing spaces and width of spacing; every sign counts."""
    lines = (_SPACES.sub(" ", line.rstrip()) for line in text.splitlines())
    return "\n".join(line for line in lines if line)
