"""Does a text contain a benchmark question? The index behind clean:decontaminate.

A question is reduced to its stem: choices alone ("1; 2; 3; 4") are in half the corpus. What is
looked for:
- a stem of at least `n` units (characters for Chinese, words for English, after normalisation): its
  n-grams, and the text must hold at least half of those that are its own;
- a shorter stem: the whole of it;
- a stem so short that ordinary sentences hold it (below MIN_ZH characters or MIN_EN words): the whole
  of it and every choice.
n-grams held by many records ("the following statement about … is correct") are no evidence; the
caller counts and discards them (`GENERIC`).
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

import regex

from tasks.clean import normalise
from tasks.clean.language import language_of

MIN_ZH, MIN_EN = 8, 6
SHARE = 0.5
"""Of a question's own n-grams that a record must hold. One shared phrase (a quoted fact) is not a leak."""
KEY_ZH, KEY_EN = 4, 2

_BLANK = regex.compile(r"[（(]\s*[)）]|_{2,}")


@dataclass
class Question:
    """One benchmark question, reduced."""

    benchmark: str
    id: str
    language: str
    grams: frozenset[str]
    """Its n-grams, or its whole stem if that is shorter."""
    choices: tuple[str, ...] = ()
    """Only for a stem too short to be evidence: what must be there besides."""


@dataclass
class Index:
    """The questions of all benchmarks, searchable by text."""

    ngram: int
    questions: list[Question] = field(default_factory=list)
    long: dict[str, dict[str, list[int]]] = field(default_factory=lambda: {"zh": {}, "en": {}})
    """language -> n-gram -> questions."""
    short: dict[str, dict[str, list[tuple[str, int]]]] = field(default_factory=lambda: {"zh": {}, "en": {}})
    """language -> first units of a short stem -> (stem, question)."""
    sizes: dict[str, set[int]] = field(default_factory=lambda: {"zh": set(), "en": set()})
    """language -> how many units such first units are."""

    def add(self, benchmark: str, question: dict[str, Any]) -> None:
        """Index one question of the unified form."""
        stem = _BLANK.sub(" ", question["question"])
        language = language_of(stem)
        units = _units(stem, language)
        if not units:
            return
        number = len(self.questions)
        choices: tuple[str, ...] = ()
        if len(units) >= self.ngram:
            grams = frozenset(_grams(units, self.ngram, language))
            for gram in grams:
                self.long[language].setdefault(gram, []).append(number)
        else:
            whole = _join(units, language)
            grams = frozenset([whole])
            first = units[: KEY_ZH if language == "zh" else KEY_EN]
            self.sizes[language].add(len(first))
            key = _join(first, language)
            self.short[language].setdefault(key, []).append((whole, number))
            if len(units) < (MIN_ZH if language == "zh" else MIN_EN):
                choices = tuple(normalise.squeezed(choice) for choice in question["choices"])
        self.questions.append(Question(benchmark, question["id"], language, grams, choices))

    def search(self, text: str) -> dict[int, set[str]]:
        """Question -> which of its grams the text holds; only questions with at least one."""
        found: dict[int, set[str]] = defaultdict(set)
        squeezed = ""
        for language in ("zh", "en"):
            if not self.long[language] and not self.short[language]:
                continue
            units = _units(text, language)
            if language == "zh":
                squeezed = "".join(units)
            self._search_long(units, language, found)
            self._search_short(units, language, found)
        for number in [n for n in found if self.questions[n].choices]:
            squeezed = squeezed or normalise.squeezed(text)
            if not all(choice in squeezed for choice in self.questions[number].choices):
                del found[number]
        return found

    def _search_long(self, units: Sequence[str], language: str, found: dict[int, set[str]]) -> None:
        grams = self.long[language]
        if not grams:
            return
        for gram in _grams(units, self.ngram, language):
            for number in grams.get(gram, ()):
                found[number].add(gram)

    def _search_short(self, units: Sequence[str], language: str, found: dict[int, set[str]]) -> None:
        stems = self.short[language]
        if not stems:
            return
        for size in sorted(self.sizes[language]):
            for at, key in enumerate(_grams(units, size, language)):
                for whole, number in stems.get(key, ()):
                    if _join(units[at : at + _size(whole, language)], language) == whole:
                        found[number].add(whole)


def is_hit(question: Question, found: Iterable[str], generic: frozenset[str]) -> bool:
    """Whether the grams found in a record make it a copy of the question."""
    own = question.grams - generic
    return bool(own) and len(set(found) - generic) >= SHARE * len(own)


def _units(text: str, language: str) -> str | list[str]:
    return normalise.squeezed(text) if language == "zh" else normalise.words(text)


def _join(units: Sequence[str], language: str) -> str:
    return "".join(units) if language == "zh" else " ".join(units)


def _grams(units: Sequence[str], n: int, language: str) -> Iterable[str]:
    if language == "zh":
        return [units[i : i + n] for i in range(len(units) - n + 1)]
    return [" ".join(units[i : i + n]) for i in range(len(units) - n + 1)]


def _size(gram: str, language: str) -> int:
    return len(gram) if language == "zh" else gram.count(" ") + 1
