"""ftfy, called only for lines that need it.

ftfy repairs a text segment by segment (a segment is a line) and repeats its steps until nothing changes.
On most lines only those can do anything that replace single characters (width, quotes, ligatures, line
breaks, control characters). Such a line is finished after one pass of replacing, because no other step
can fire before or after it:

- mojibake: every alternative of ftfy's regular expression for it needs a character of `SUSPECTS`; a line
  with one is put to that expression itself;
- ESC sequences, surrogates, and characters that become others to be replaced: such a line is *hard*;
- entities: looked for by ftfy's own pattern, and a text with one goes to ftfy as a whole;
- normal form: Python's quick check.

Hard lines, lines with mojibake and lines not in normal form go to ftfy itself, one by one.
"""

from __future__ import annotations

import re
import unicodedata
from functools import cache

import ftfy
from data_juicer.ops.base_op import OPERATORS
from data_juicer.ops.mapper.fix_unicode_mapper import FixUnicodeMapper
from ftfy.badness import MOJIBAKE_CATEGORIES, is_bad
from ftfy.chardata import CONTROL_CHARS, HTML_ENTITY_RE, LIGATURES, WIDTH_MAP

_RARE_CATEGORIES = (
    "c1",
    "bad",
    "law",
    "currency",
    "numeric",
    "kaomoji",
    "upper_accented",
    "lower_accented",
    "box",
)
SUSPECTS = "".join(MOJIBAKE_CATEGORIES[name] for name in _RARE_CATEGORIES) + "ŒœЂВГРСΒΓΞΟ"
"""Inside of a regular expression's class: characters of which mojibake has at least one.

Left out are the categories that good text is full of (dashes, quotes, Greek and Cyrillic letters): ftfy
finds them suspicious only beside one of these.
"""
_FREQUENT = "，：；（）？！“”‘’\u3000"
"""Replaced one after the other: faster than a look-up for every character."""
_BREAKS = dict.fromkeys((0x0D, 0x2028, 0x2029), "\n")  # U+0085 is a suspect
_QUOTES = dict.fromkeys(range(0x2018, 0x201C), "'") | dict.fromkeys(range(0x201C, 0x2020), '"') | {0x2BC: "'"}
_SUSPECT = re.compile(f"[{SUSPECTS}]")


class Fixer:
    """`ftfy.fix_text` with one config; NFC only."""

    def __init__(self, config: ftfy.TextFixerConfig):
        if config.normalization != "NFC":
            raise ValueError("only NFC is known to be a no-op on most texts")
        self.config = config
        maps = LIGATURES | CONTROL_CHARS | _BREAKS
        if config.fix_character_width:
            maps = maps | WIDTH_MAP
        if config.uncurl_quotes:
            maps = maps | _QUOTES
        # what becomes a character that needs another look is hard itself, and so is ESC
        hard = {
            c for c, new in maps.items() if _SUSPECT.search(new or "") or set(map(ord, new or "")) & set(maps)
        }
        self.soft = {c: new for c, new in maps.items() if c not in hard | {0x1B}}
        self.hard = _class({*hard, 0x1B, *range(0xD800, 0xE000)})
        self.wary = re.compile(f"[{SUSPECTS}{self.hard.pattern[1:-1]}]")
        frequent = [c for c in _FREQUENT if ord(c) in self.soft]
        self.frequent = [(c, self.soft[ord(c)]) for c in frequent]
        self.rest = _class(set(self.soft) - {*map(ord, frequent), 0x0D})

    def fix(self, text: str) -> str:
        """What `ftfy.fix_text(text, config)` returns."""
        if len(text) > self.config.max_decode_length:  # a line that long is cut into segments
            return ftfy.fix_text(text, self.config)
        replaced = self._replace(text)
        if self.config.unescape_html and "&" in replaced and HTML_ENTITY_RE.search(replaced):
            return ftfy.fix_text(text, self.config)
        if not self.wary.search(text) and unicodedata.is_normalized("NFC", replaced):
            return replaced
        lines = text.split("\n")
        is_page = False  # from its first `<` on ftfy takes the text for HTML and leaves entities alone
        for i, line in enumerate(lines):
            is_page = is_page or "<" in line
            # the line break is part of the segment
            segment = line if i == len(lines) - 1 else line + "\n"
            replaced = self._replace(segment)
            if self._is_done(segment, replaced):
                lines[i] = replaced
                continue
            config = self.config
            if config.unescape_html == "auto" and is_page:
                config = config._replace(unescape_html=False)
            lines[i] = ftfy.fix_text(segment, config)
        return "".join(lines)

    def _is_done(self, line: str, replaced: str) -> bool:
        if self.wary.search(line) and (self.hard.search(line) or is_bad(line) or is_bad(replaced)):
            return False
        return unicodedata.is_normalized("NFC", replaced)

    def _replace(self, text: str) -> str:
        if "\r" in text:
            text = text.replace("\r\n", "\n").replace("\r", "\n")
        for old, new in self.frequent:
            text = text.replace(old, new)
        return text.translate(self.soft) if self.rest.search(text) else text


def _class(codes: set[int]) -> re.Pattern[str]:
    return re.compile(f"[{''.join(re.escape(chr(c)) for c in sorted(codes))}]")


@cache
def fixer(config: ftfy.TextFixerConfig) -> Fixer:
    """One for each config."""
    return Fixer(config)


@OPERATORS.register_module("fast_fix_unicode_mapper")
class FastFixUnicode(FixUnicodeMapper):
    """fix_unicode_mapper; other normal forms than NFC are left to the original."""

    _batched_op = True

    def process_batched(self, samples):
        if self.normalization != "NFC":
            return super().process_batched(samples)
        fix = fixer(ftfy.TextFixerConfig(explain=False)).fix
        samples[self.text_key] = [fix(text) for text in samples[self.text_key]]
        return samples
