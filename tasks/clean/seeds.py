"""The seed corpus of clean:assets: text that a language model may safely learn from.

The perplexity filter is only as good as its model, and a model trained on gibberish finds gibberish
likely. So lines pass cheap rules that need no model, and what is rare is pruned later (kneser_ney).
Which records are looked at is a function of the files alone: evenly spaced windows of each, so that
a terabyte costs no more than a gigabyte.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping
from pathlib import Path

import orjson
import regex

from tasks.clean.language import language_of
from tasks.records import parts
from tasks.records.record import Record, texts

MAX_WINDOWS, WINDOW_CHARS = 256, 2000
MIN_LINE, MAX_LINE = 8, 1000

_LETTER = regex.compile(r"[\p{Han}A-Za-z]")
_DIRT = regex.compile(
    r"https?:|www\.|@|</?[a-zA-Z]|&[a-z]+;|[\x00-\x08\x0e-\x1f\ufffd\ue000-\uf8ff]|(.)\1{5}"
)
# words and characters that nearly every real sentence holds and random characters rarely do
_ZH_FUNCTION = regex.compile(r"[的是在有了不和为人一中与以对或及也上于之个我他你这]")
_EN_FUNCTION = regex.compile(
    r"(?i)\b(?:the|a|an|of|to|in|is|are|was|and|or|for|it|that|with|you|i|on|as|by|be|at)\b"
)


def seed_lines(files: Mapping[str, Path], max_chars: int) -> dict[str, list[str]]:
    """`{"zh": […], "en": […]}`: distinct good lines, at most `max_chars` characters in all.

    Every source has an equal share, and what a small source leaves over goes to the larger ones.
    """
    lines: dict[str, list[str]] = {"zh": [], "en": []}
    seen: set[bytes] = set()
    left = max_chars
    by_size = sorted(files, key=lambda name: (parts.size(files[name]), name))
    for position, name in enumerate(by_size):
        quota = left // (len(by_size) - position)
        for text in _texts(files[name], quota):
            for line in good_lines(text):
                digest = hashlib.blake2b(line.encode(), digest_size=8).digest()
                if digest in seen:
                    continue
                seen.add(digest)
                lines[language_of(line)].append(line)
                quota -= len(line)
                left -= len(line)
            if quota <= 0:
                break
    return lines


def good_lines(text: str) -> Iterator[str]:
    """The lines of a text that look like language by rules of thumb."""
    for line in text.splitlines():
        line = line.strip()
        if not MIN_LINE <= len(line) <= MAX_LINE or _DIRT.search(line):
            continue
        if len(_LETTER.findall(line)) < 0.6 * sum(not c.isspace() for c in line):
            continue
        if language_of(line) == "zh":
            # at least one in forty characters; text in characters drawn at random has one in hundreds
            if len(_ZH_FUNCTION.findall(line)) * 40 < len(line):
                continue
        elif len(line.split()) < 3 or len(_EN_FUNCTION.findall(line)) * 12 < len(line.split()):
            continue
        yield line


def code_texts(files: Mapping[str, Path], max_chars: int) -> Iterator[str]:
    """Programs of all sources, at most `max_chars` characters in all."""
    left = max_chars
    for position, name in enumerate(sorted(files)):
        quota = left // (len(files) - position)
        for text in _texts(files[name], quota, code=True):
            left -= len(text)
            quota -= len(text)
            yield text
            if quota <= 0:
                break


def _texts(path: Path, quota: int, *, code: bool = False) -> Iterator[str]:
    """Texts of a source, from evenly spaced windows when the file is much larger than the quota."""
    size = parts.size(path)
    windows = max(1, min(MAX_WINDOWS, quota // WINDOW_CHARS)) if size > 16 * quota else 1
    with parts.open_all(path) as file:
        for window in range(windows):
            file.seek(size * window // windows)
            if window:
                file.readline()  # the rest of a line begun before
            end = size * (window + 1) // windows
            taken = 0
            while file.tell() < end and taken <= quota // windows:
                line = file.readline()
                if not line:
                    break
                record: Record = orjson.loads(line)
                if (record["kind"] == "code") != code:
                    continue
                for text in texts(record):
                    taken += len(text)
                    yield text
