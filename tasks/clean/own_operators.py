"""Three operators of Steel's own, registered with Data-Juicer: repairs that no parameter of the originals offers.

Each subclasses the operator it repairs. Imported by `operators.prepare`, never before it: the import
pulls in Data-Juicer, whose run-time installer must be denied first.
"""

from __future__ import annotations

import html
import re
from functools import cache

import ftfy
import regex
from data_juicer.ops.base_op import OPERATORS, Mapper
from data_juicer.ops.mapper.chinese_convert_mapper import ChineseConvertMapper
from data_juicer.ops.mapper.clean_html_mapper import CleanHtmlMapper

from tasks.clean.fast.encoding import fixer

_INLINE = (
    "a|abbr|acronym|address|area|b|base|basefont|bdo|big|body|button|canvas|"
    "center|cite|code|col|colgroup|del|dfn|em|embed|font|form|frame|frameset|head|"
    "html|i|iframe|img|input|ins|kbd|label|legend|link|map|mark|meta|noscript|"
    "object|option|param|q|s|samp|script|select|small|source|span|strike|strong|"
    "style|sub|sup|svg|textarea|time|tt|u|ul|var|video|wbr"
)
_BLOCK = (
    "article|aside|blockquote|br|caption|dd|div|dl|dt|fieldset|figcaption|figure|"
    "footer|h1|h2|h3|h4|h5|h6|header|hr|li|main|nav|ol|p|pre|section|table|"
    "tbody|td|tfoot|th|thead|title|tr"
)
_ATTRIBUTES = r"(?:\s+[\w:-]+\s*=\s*(?:\"[^\"]*\"|'[^']*'|[^\s\"'<>]+)|\s+(?:checked|defer|disabled|hidden|nowrap|selected))*"
_TAG = regex.compile(rf"(?i)</?(?:{_INLINE}|{_BLOCK}){_ATTRIBUTES}\s*/?>|<!--|-->|<!doctype\b")
_BREAK = regex.compile(rf"(?i)<(?:br|hr){_ATTRIBUTES}\s*/?>|</(?:{_BLOCK})\s*>")
_UNSEEN = regex.compile(r"(?is)<(script|style|noscript)\b[^>]*>.*?</\1\s*>|<!--.*?-->")
_EXAMPLE = regex.compile(r"(?i)```|html|<(?:head|script|style|svg)\b")
_ENTITY = regex.compile(r"&(?:[A-Za-z][A-Za-z0-9]{1,9}|#[0-9]{1,6}|#[xX][0-9A-Fa-f]{1,5});")
_BLANK_LINES = regex.compile(r"\n[ \t]*(?:\n[ \t]*)+\n")
# letters and digits only: full-width punctuation is how Chinese is written
_WIDE = {c: c - 0xFEE0 for c in (*range(0xFF10, 0xFF1A), *range(0xFF21, 0xFF3B), *range(0xFF41, 0xFF5B))}
_ANY_WIDE = re.compile("[\uff10-\uff19\uff21-\uff3a\uff41-\uff5a]")


_NAMES = frozenset("昇陞甦甯氾鉅")
"""Standard again in names since 2013 (毕昇), though no part of GB 2312."""
_TELLING = frozenset("於後麽")
"""Part of GB 2312, yet in a modern text a sign of traditional writing."""


@cache
def _traditional() -> re.Pattern[str]:
    """The characters that only traditional writing has, from OpenCC's own table.

    Those whose simplified form is in GB 2312 (so: common) and which are not in it themselves.
    """
    import opencc

    table = opencc.OpenCC("t2s.json")
    han = [chr(c) for c in (*range(0x3400, 0x4DC0), *range(0x4E00, 0xA000), *range(0xF900, 0xFB00))]
    found = {
        c
        for c in han
        if (simple := table.convert(c)) != c and _common(simple) and not _common(c) and c not in _NAMES
    }
    return re.compile(f"[{''.join(sorted(found | _TELLING))}]")


def _common(character: str) -> bool:
    try:
        return bool(character.encode("gb2312"))
    except UnicodeEncodeError:
        return False


@OPERATORS.register_module("steel_chinese_convert_mapper")
class SteelChineseConvert(ChineseConvertMapper):
    """chinese_convert_mapper for texts that are written in traditional characters, and only those.

    The original also "simplifies" what simplified Chinese keeps: the printer 毕昇 becomes 毕升, 周顗 a
    character outside of most fonts. A text without any character that tells is returned as it came.
    """

    _batched_op = True

    def process_batched(self, samples):
        texts = samples[self.text_key]
        for i, text in enumerate(texts):
            if _traditional().search(text):
                pieces = text.split("\0")  # OpenCC would end the text there
                texts[i] = "\0".join(super().process_batched({self.text_key: pieces})[self.text_key])
        return samples


@OPERATORS.register_module("steel_clean_html_mapper")
class SteelCleanHtml(CleanHtmlMapper):
    """clean_html_mapper for texts that also hold `<` for other reasons.

    The original takes every `<` before a letter for a tag, so that `a<b and c>d` loses its middle,
    and joins paragraphs without a break. Here only HTML's own tags are tags, the end of a block
    ends a line, scripts and comments go with their content, and a text without tags or entities is
    returned as it came. With `keep_examples`, for dialogues, so is one that shows markup rather than
    being marked up: with fenced code, a whole page, or the word HTML.
    """

    _batched_op = True

    def __init__(self, keep_examples: bool = False, *args, **kwargs):
        super().__init__(*args, **kwargs)
        self.keep_examples = keep_examples

    def process_batched(self, samples):
        samples[self.text_key] = [self._clean(text) for text in samples[self.text_key]]
        return samples

    def _clean(self, text: str) -> str:
        if self.keep_examples and _EXAMPLE.search(text):
            return text
        if not _TAG.search(text):
            return html.unescape(text) if _ENTITY.search(text) else text
        text = _UNSEEN.sub("", text)
        text = _BREAK.sub(lambda tag: tag[0] + "\n", text)
        text = "".join(self._escape_others(text))
        [text] = super().process_batched({self.text_key: [text]})[self.text_key]
        return _BLANK_LINES.sub("\n\n", text).strip()

    @staticmethod
    def _escape_others(text: str):
        """`text` with every `<` that starts no known tag written as an entity."""
        end = 0
        for tag in _TAG.finditer(text):
            yield text[end : tag.start()].replace("<", "&lt;")
            yield tag[0]
            end = tag.end()
        yield text[end:].replace("<", "&lt;")


@OPERATORS.register_module("steel_fix_encoding_mapper")
class SteelFixEncoding(Mapper):
    """fix_unicode_mapper that leaves punctuation alone.

    Both run ftfy; the original also turns `，。？（）“”` into `,.?()""`. Here: mojibake, stray control
    characters, ligatures, line ends, entities (unless `html_entities` is false, for code, where
    `&lt;` means itself), full-width letters and digits, and NFC.
    """

    _batched_op = True

    def __init__(self, html_entities: bool = True, *args, **kwargs):
        super().__init__(*args, **kwargs)
        self.config = ftfy.TextFixerConfig(
            unescape_html="auto" if html_entities else False,
            fix_character_width=False,
            uncurl_quotes=False,
            normalization="NFC",
            explain=False,
        )

    def process_batched(self, samples):
        fix = fixer(self.config).fix
        texts = samples[self.text_key]
        for i, text in enumerate(texts):
            fixed = fix(text)
            texts[i] = fixed.translate(_WIDE) if _ANY_WIDE.search(fixed) else fixed
        return samples
