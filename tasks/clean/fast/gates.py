"""Mappers that run on the few texts they can change: a cheap necessary condition goes before each.

A gate may let a text through in vain, never hold one back that the original would change. Gates search
with the standard library's `re`: a class of characters below U+10000 costs some 3 ns a character there.
"""

from __future__ import annotations

import re
from functools import cache

import regex
from data_juicer.ops.base_op import OPERATORS
from data_juicer.ops.common.special_characters import VARIOUS_WHITESPACES
from data_juicer.ops.mapper.chinese_convert_mapper import ChineseConvertMapper
from data_juicer.ops.mapper.clean_copyright_mapper import CleanCopyrightMapper
from data_juicer.ops.mapper.clean_email_mapper import CleanEmailMapper
from data_juicer.ops.mapper.clean_html_mapper import CleanHtmlMapper
from data_juicer.ops.mapper.clean_ip_mapper import CleanIpMapper
from data_juicer.ops.mapper.clean_links_mapper import CleanLinksMapper
from data_juicer.ops.mapper.expand_macro_mapper import ExpandMacroMapper
from data_juicer.ops.mapper.punctuation_normalization_mapper import PunctuationNormalizationMapper
from data_juicer.ops.mapper.remove_specific_chars_mapper import RemoveSpecificCharsMapper
from data_juicer.ops.mapper.whitespace_normalization_mapper import WhitespaceNormalizationMapper

_BEYOND_BMP = re.compile("[\U00010000-\U0010ffff]")


class Gated:
    """The original operator, on the texts that `concerns` it."""

    _batched_op = True

    def concerns(self, text: str) -> bool:
        raise NotImplementedError

    def process_batched(self, samples):
        texts = samples[self.text_key]
        chosen = [i for i, text in enumerate(texts) if self.concerns(text)]
        if chosen:
            batch = {self.text_key: [texts[i] for i in chosen]}
            for i, text in zip(chosen, super().process_batched(batch)[self.text_key], strict=True):
                texts[i] = text
        return samples


class Substitution(Gated):
    """A gated search and replace in one pass with a compiled pattern; a recipe's own pattern has no gate."""

    def __init__(self, pattern: str | None = None, repl: str = "", *args, **kwargs):
        super().__init__(pattern, repl, *args, **kwargs)
        self.compiled = regex.compile(self.pattern, regex.DOTALL)
        self.is_default = pattern is None

    def process_batched(self, samples):
        texts = samples[self.text_key]
        for i, text in enumerate(texts):
            if not self.is_default or self.concerns(text):
                texts[i] = self.compiled.sub(self.repl, text)
        return samples


@OPERATORS.register_module("fast_clean_email_mapper")
class FastCleanEmail(Substitution, CleanEmailMapper):
    """clean_email_mapper."""

    def concerns(self, text: str) -> bool:
        return "@" in text


@OPERATORS.register_module("fast_clean_ip_mapper")
class FastCleanIp(Substitution, CleanIpMapper):
    """clean_ip_mapper: three dots between ASCII digits, or seven colons close to each other."""

    _V4 = re.compile(r"[0-9]\.[0-9]{1,3}\.[0-9]{1,3}\.[0-9]")
    _V6 = re.compile(":" + "[^:]{1,4}:" * 6)

    def concerns(self, text: str) -> bool:
        return bool(
            (text.count(".") >= 3 and self._V4.search(text))
            or (text.count(":") >= 7 and self._V6.search(text))
        )


@OPERATORS.register_module("fast_clean_links_mapper")
class FastCleanLinks(Substitution, CleanLinksMapper):
    """clean_links_mapper: `name:x`, `www` or `.name/`, with every character that folds to an ASCII letter."""

    _SCHEME = re.compile(":[/%0-9A-Za-z\u0130\u0131\u017f\u212a]")
    _WWW = re.compile("[wW][wW][wW]")
    _DOMAIN = re.compile("[.][A-Za-z\u0130\u0131\u017f\u212a]{2,4}/")

    def concerns(self, text: str) -> bool:
        return bool(
            (":" in text and self._SCHEME.search(text))
            or ("/" in text and self._DOMAIN.search(text))
            or self._WWW.search(text)
        )


@OPERATORS.register_module("fast_clean_copyright_mapper")
class FastCleanCopyright(Gated, CleanCopyrightMapper):
    """clean_copyright_mapper: a block comment anywhere, or a first line that is empty or one of `//`, `#`, `--`."""

    def concerns(self, text: str) -> bool:
        return text[:1] in ("/", "#", "-", "\n") or "/*" in text


@OPERATORS.register_module("fast_clean_html_mapper")
class FastCleanHtml(Gated, CleanHtmlMapper):
    """clean_html_mapper: what HTML reads as something else than itself, or drops at the start of a page."""

    def concerns(self, text: str) -> bool:
        return (
            "<" in text
            or "&" in text
            or text[:1] in (" ", "\t", "\n", "\f", "\ufeff")
            or "\r" in text
            or "\0" in text
        )


@OPERATORS.register_module("fast_expand_macro_mapper")
class FastExpandMacro(Gated, ExpandMacroMapper):
    """expand_macro_mapper: only where a macro is defined."""

    def concerns(self, text: str) -> bool:
        return "\\" in text and ("\\newcommand" in text or "\\def" in text)


@OPERATORS.register_module("fast_chinese_convert_mapper")
class FastChineseConvert(Gated, ChineseConvertMapper):
    """chinese_convert_mapper: lines with a character of its dictionaries, none of which spans lines.

    Mode t2s only; the other modes run as they are, and so does a text with a NUL, where OpenCC ends it.
    """

    def __init__(self, mode: str = "s2t", *args, **kwargs):
        super().__init__(mode, *args, **kwargs)
        self.convertible = convertible() if mode == "t2s" else None

    def concerns(self, text: str) -> bool:
        if self.convertible is None:
            return True
        return bool(self.convertible.search(text) or _BEYOND_BMP.search(text))

    def process_batched(self, samples):
        texts = samples[self.text_key]
        for i, text in enumerate(texts):
            if self.concerns(text):
                parts = [text] if "\0" in text else text.split("\n")
                texts[i] = "\n".join(super().process_batched({self.text_key: parts})[self.text_key])
        return samples


PHRASES = "覆牴祇衹瞭藉彷沈"
"""One character of each phrase of OpenCC's t2s dictionary in which none is converted alone."""


@cache
def convertible() -> re.Pattern[str]:
    """NUL, and the characters below U+10000 that OpenCC's t2s changes, alone or in a phrase."""
    import opencc

    converter = opencc.OpenCC("t2s.json")
    plane = [chr(c) for c in range(1, 0x10000) if not 0xD800 <= c < 0xE000 and chr(c) != "\n"]
    changed = [
        a for a, b in zip(plane, converter.convert("\n".join(plane)).split("\n"), strict=True) if a != b
    ]
    return re.compile(f"[\0{''.join(sorted({*changed, *PHRASES}))}]")


@OPERATORS.register_module("fast_punctuation_normalization_mapper")
class FastPunctuation(PunctuationNormalizationMapper):
    """punctuation_normalization_mapper: one `str.replace` a sign; no sign is made by another's replacement."""

    _batched_op = True

    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        self.signs = list(self.punctuation_unicode.items())
        made = set("".join(self.punctuation_unicode.values()))
        assert not made & set(self.punctuation_unicode), "the order of replacements would matter"
        self.any_sign = re.compile(f"[{''.join(self.punctuation_unicode)}]")

    def process_batched(self, samples):
        texts = samples[self.text_key]
        for i, text in enumerate(texts):
            if self.any_sign.search(text):
                for sign, ascii_sign in self.signs:
                    text = text.replace(sign, ascii_sign)
                texts[i] = text
        return samples


@OPERATORS.register_module("fast_remove_specific_chars_mapper")
class FastRemoveSpecificChars(RemoveSpecificCharsMapper):
    """remove_specific_chars_mapper with a compiled class."""

    _batched_op = True

    def __init__(self, chars_to_remove="◆●■►▼▲▴∆▻▷❖♡□", *args, **kwargs):
        super().__init__(chars_to_remove, *args, **kwargs)
        chars = sorted(set("".join(chars_to_remove)))
        self.compiled = re.compile(f"[{''.join(map(re.escape, chars))}]") if chars else None

    def process_batched(self, samples):
        if self.compiled:
            samples[self.text_key] = [self.compiled.sub("", text) for text in samples[self.text_key]]
        return samples


@OPERATORS.register_module("fast_whitespace_normalization_mapper")
class FastWhitespace(WhitespaceNormalizationMapper):
    """whitespace_normalization_mapper with a compiled class."""

    _batched_op = True
    _SPACES = re.compile(f"[{''.join(map(re.escape, sorted(VARIOUS_WHITESPACES - {' '})))}]")

    def process_batched(self, samples):
        samples[self.text_key] = [self._SPACES.sub(" ", text.strip()) for text in samples[self.text_key]]
        return samples
