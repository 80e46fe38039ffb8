"""Does a text contain a benchmark question? The index behind clean:decontaminate.

A question is reduced to its stem: choices alone ("1; 2; 3; 4") are in half the corpus. What is
looked for:
- a stem of at least `n` units (characters for Chinese, words for English, after normalisation): its
  n-grams, and the text must hold at least half of those that are its own;
- a shorter stem ("which of the following is true?"): the whole of it and a choice that says something;
- a stem so short that ordinary sentences hold it (below MIN_ZH characters or MIN_EN words): the whole
  of it and every choice.
n-grams held by many records ("the following statement about … is correct") are no evidence; the
caller counts and discards them (`GENERIC`). But a question may itself have been copied into many records:
where all n-grams of a stem of LONG n-grams' length and more are held, that is a copy all the same.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from functools import cached_property

import numpy as np
import regex

from tasks.clean import normalise
from tasks.clean.language import language_of
from tasks.records import record as records

MIN_ZH, MIN_EN = 8, 6
SHARE = 0.5
"""Of a question's own n-grams that a record must hold. One shared phrase (a quoted fact) is not a leak."""
LONG = 2
"""n-grams' length from which a stem is too long to be an exam's ordinary phrase."""
KEY_ZH, KEY_EN = 4, 2

Units = str | list[str]
"""A normalised text as characters (zh) or words (en)."""

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
    """Only for a stem too short to be evidence: of these one must be there besides."""
    all_choices: bool = False
    """All of them must."""
    long: bool = False
    """Held whole it is a copy, in however many records."""

    def confirmed_by(self, squeezed: str) -> bool:
        """Whether a text that holds the grams also holds the choices it takes."""
        if not self.choices:
            return True
        held = [choice in squeezed for choice in self.choices]
        telling = any(
            is_held and len(choice) >= 2 for is_held, choice in zip(held, self.choices, strict=True)
        )
        return all(held) or (telling and not self.all_choices)


class Grams:
    """The grams of one language and size, and where a text holds them.

    A text is a row of numbers; a rolling hash of every window of `size` of them is looked up in a
    table of bits, and the few windows that pass are compared as strings. About 30 ns a character.
    """

    def __init__(self, language: str, size: int):
        self.language, self.size = language, size
        self.values: dict[str, list[tuple[str, int]]] = {}
        """Gram -> (what to look for there, question): the gram itself, or the short stem it begins."""

    def add(self, units: Units, whole: str, question: int) -> None:
        """Index the gram `units` of a question; all are added before the first search."""
        self.values.setdefault(_join(units, self.language), []).append((whole, question))

    @cached_property
    def table(self) -> np.ndarray:
        """Bits, at least 64 a gram, so that two windows in a hundred pass without being one."""
        table = np.zeros(1 << max(16, (64 * len(self.values)).bit_length()), dtype=bool)
        for gram in self.values:
            units = gram if self.language == "zh" else gram.split(" ")
            table[self._hashes(_codes(units, self.language), len(table))] = True
        return table

    def matches(self, units: Units, codes: np.ndarray) -> Iterator[tuple[str, int]]:
        """(gram or stem, question) for all that the text holds."""
        if len(codes) < self.size:
            return
        for at in np.flatnonzero(self.table[self._hashes(codes, len(self.table))]):
            for whole, question in self.values.get(_join(units[at : at + self.size], self.language), ()):
                if _join(units[at : at + _size(whole, self.language)], self.language) == whole:
                    yield whole, question

    def _hashes(self, codes: np.ndarray, buckets: int) -> np.ndarray:
        windows = len(codes) - self.size + 1
        hashes = np.zeros(windows, dtype=np.uint64)
        for k in range(self.size):
            hashes = hashes * np.uint64(0x9E3779B97F4A7C15) + codes[k : k + windows]
        hashes ^= hashes >> np.uint64(29)
        return (hashes * np.uint64(0xBF58476D1CE4E5B9)) >> np.uint64(65 - buckets.bit_length())


@dataclass
class Index:
    """The questions of all benchmarks, searchable by text."""

    ngram: int
    questions: list[Question] = field(default_factory=list)
    grams: dict[tuple[str, int], Grams] = field(default_factory=dict)
    """(language, size) -> grams."""
    empty: Counter[str] = field(default_factory=Counter)
    """Benchmark -> questions of no words at all (a picture, a formula's signs), which nothing can find."""

    def add(self, benchmark: str, question: records.Question) -> None:
        """Index one question."""
        stem = _BLANK.sub(" ", question["question"])
        language = language_of(stem)
        units = _units(stem, language)
        if not units:
            self.empty[benchmark] += 1
            return
        number = len(self.questions)
        choices: tuple[str, ...] = ()
        very_short = len(units) < (MIN_ZH if language == "zh" else MIN_EN)
        if len(units) >= self.ngram:
            windows = [units[i : i + self.ngram] for i in range(len(units) - self.ngram + 1)]
            grams = {_join(window, language): window for window in windows}
            for gram, window in grams.items():
                self._of(language, self.ngram).add(window, gram, number)
        else:
            grams = {_join(units, language): units}
            first = units[: KEY_ZH if language == "zh" else KEY_EN]
            self._of(language, len(first)).add(first, _join(units, language), number)
            told = question["choices"] or [question.get("target", "")]
            choices = tuple(map(normalise.squeezed, told))
        self.questions.append(
            Question(
                benchmark,
                question["id"],
                language,
                frozenset(grams),
                choices,
                very_short,
                len(units) >= LONG * self.ngram,
            )
        )

    def search(self, text: str) -> dict[int, set[str]]:
        """Question -> which of its grams the text holds; only questions with at least one."""
        held: dict[int, set[str]] = defaultdict(set)
        for language in ("zh", "en"):
            indexed = [grams for (of, _), grams in self.grams.items() if of == language]
            if not indexed or (language == "zh" and text.isascii()):
                continue
            units = _units(text, language)
            codes = _codes(units, language)
            for grams in indexed:
                for gram, number in grams.matches(units, codes):
                    held[number].add(gram)
        if any(self.questions[number].choices for number in held):
            squeezed = normalise.squeezed(text)
            for number in [n for n in held if not self.questions[n].confirmed_by(squeezed)]:
                del held[number]
        return held

    def _of(self, language: str, size: int) -> Grams:
        return self.grams.setdefault((language, size), Grams(language, size))


def is_hit(question: Question, grams: Iterable[str], generic: frozenset[str]) -> bool:
    """Whether the grams that a record holds make it a copy of the question."""
    own, held = question.grams - generic, set(grams)
    if question.long and held >= question.grams:
        return True
    return bool(own) and len(held - generic) >= SHARE * len(own)


def is_testable(question: Question, generic: frozenset[str]) -> bool:
    """Whether any text could be found to hold the question."""
    return question.long or not question.grams <= generic


def _units(text: str, language: str) -> Units:
    return normalise.squeezed(text) if language == "zh" else normalise.words(text)


def _codes(units: Units, language: str) -> np.ndarray:
    """A number for each unit; of words a hash that holds in this process only."""
    if language == "zh":
        return np.frombuffer(units.encode("utf-32-le"), dtype=np.uint32).astype(np.uint64)
    return np.fromiter(map(hash, units), dtype=np.int64, count=len(units)).view(np.uint64)


def _join(units: Units, language: str) -> str:
    return units if language == "zh" else " ".join(units)


def _size(gram: str, language: str) -> int:
    return len(gram) if language == "zh" else gram.count(" ") + 1
