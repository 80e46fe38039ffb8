"""ftfy, called only for lines that need it.

ftfy repairs a text segment by segment (a segment is a line) and repeats its steps until nothing changes.
On most lines only two of them can do anything: those that replace single characters (width, quotes). A
line without any *hard* character is finished after one such pass, because no other step can fire:

- mojibake: every alternative of ftfy's regular expression for it needs a character of `SUSPECTS`;
- C1 and other control characters, ESC sequences, line breaks, ligatures, surrogates: hard characters;
- entities: looked for by ftfy's own pattern, and a text with one goes to ftfy as a whole;
- normal form: Python's quick check.

Lines with a hard character go to ftfy itself, one by one.
"""

from __future__ import annotations

import re
import unicodedata
from functools import cache

import ftfy
from data_juicer.ops.base_op import OPERATORS
from data_juicer.ops.mapper.fix_unicode_mapper import FixUnicodeMapper
from ftfy.badness import MOJIBAKE_CATEGORIES
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
_BREAKS = "\r\x85\u2028\u2029"
_QUOTES = dict.fromkeys(range(0x2018, 0x201C), "'") | dict.fromkeys(range(0x201C, 0x2020), '"') | {0x2BC: "'"}


class Fixer:
    """`ftfy.fix_text` with one config; NFC only."""

    def __init__(self, config: ftfy.TextFixerConfig):
        if config.normalization != "NFC":
            raise ValueError("only NFC is known to be a no-op on most texts")
        self.config = config
        soft = WIDTH_MAP if config.fix_character_width else {}
        if config.uncurl_quotes:
            soft = soft | _QUOTES
        always_hard = {*CONTROL_CHARS, *LIGATURES, *map(ord, _BREAKS), 0x1B}
        suspects = re.compile(f"[{SUSPECTS}]")
        # what becomes a character that needs another look is hard itself
        known = always_hard | set(soft)
        self.soft = {
            c: new
            for c, new in soft.items()
            if c not in always_hard
            and not suspects.match(chr(c))
            and not any(ord(x) in known or suspects.match(x) for x in new)
        }
        hard = "".join(map(re.escape, map(chr, sorted(known - set(self.soft)))))
        self.hard = re.compile(f"[{SUSPECTS}{hard}\ud800-\udfff]")
        self.frequent = [(c, self.soft[ord(c)]) for c in _FREQUENT if ord(c) in self.soft]
        rest = "".join(map(re.escape, map(chr, sorted(set(self.soft) - {ord(c) for c, _ in self.frequent}))))
        self.rest = re.compile(f"[{rest}]") if rest else None

    def fix(self, text: str) -> str:
        """What `ftfy.fix_text(text, config)` returns."""
        if len(text) > self.config.max_decode_length:  # a line that long is cut into segments
            return ftfy.fix_text(text, self.config)
        replaced = self._replace(text)
        if self.config.unescape_html and "&" in replaced and HTML_ENTITY_RE.search(replaced):
            return ftfy.fix_text(text, self.config)
        if not self.hard.search(text) and unicodedata.is_normalized("NFC", replaced):
            return replaced
        lines = text.split("\n")
        is_page = False  # from its first `<` on ftfy takes the text for HTML and leaves entities alone
        for i, line in enumerate(lines):
            is_page = is_page or "<" in line
            replaced = self._replace(line)
            if self.hard.search(line) or not unicodedata.is_normalized("NFC", replaced):
                replaced = self._by_ftfy(line, is_page, is_last=i == len(lines) - 1)
            lines[i] = replaced
        return "\n".join(lines)

    def _replace(self, text: str) -> str:
        for old, new in self.frequent:
            text = text.replace(old, new)
        return text.translate(self.soft) if self.rest and self.rest.search(text) else text

    def _by_ftfy(self, line: str, is_page: bool, is_last: bool) -> str:
        config = self.config
        if config.unescape_html == "auto" and is_page:
            config = config._replace(unescape_html=False)
        # the line break is part of the segment
        return ftfy.fix_text(line, config) if is_last else ftfy.fix_text(line + "\n", config)[:-1]


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
