"""Five operators of Steel's own, registered with Data-Juicer: repairs that no parameter of the originals offers.

Each subclasses the operator it repairs. Imported by `operators.prepare`, never before it: the import
pulls in Data-Juicer, whose run-time installer must be denied first.
"""

from __future__ import annotations

import re

import ftfy
import regex
from data_juicer.ops.base_op import OPERATORS, Mapper
from data_juicer.ops.mapper.chinese_convert_mapper import ChineseConvertMapper
from data_juicer.ops.mapper.clean_html_mapper import CleanHtmlMapper
from data_juicer.ops.mapper.clean_ip_mapper import CleanIpMapper
from data_juicer.ops.mapper.clean_links_mapper import CleanLinksMapper

from tasks.clean import addresses, markup, traditional
from tasks.clean.fast.encoding import fixer

_EXAMPLE = regex.compile(r"(?i)```|html|<(?:head|script|style|svg)\b")
# letters and digits only: full-width punctuation is how Chinese is written
_WIDE = {c: c - 0xFEE0 for c in (*range(0xFF10, 0xFF1A), *range(0xFF21, 0xFF3B), *range(0xFF41, 0xFF5B))}
_ANY_WIDE = re.compile("[\uff10-\uff19\uff21-\uff3a\uff41-\uff5a]")


@OPERATORS.register_module("steel_chinese_convert_mapper")
class SteelChineseConvert(ChineseConvertMapper):
    """chinese_convert_mapper for texts that are written in traditional characters, and only those.

    The original also "simplifies" what simplified Chinese keeps (the printer 毕昇 becomes 毕升) and what is
    Japanese. A text that is not traditional (tasks/clean/traditional.py) is returned as it came.
    """

    _batched_op = True

    def process_batched(self, samples):
        samples[self.text_key] = [
            traditional.simplified(text, self._converted) for text in samples[self.text_key]
        ]
        return samples

    def _converted(self, text: str) -> str:
        return super().process_batched({self.text_key: [text]})[self.text_key][0] if text else text


@OPERATORS.register_module("steel_clean_html_mapper")
class SteelCleanHtml(CleanHtmlMapper):
    """clean_html_mapper for texts that also hold `<` for other reasons.

    The original takes every `<` before a letter for a tag, so that `a<b and c>d` loses its middle,
    and joins paragraphs without a break. Here only HTML's own tags are tags (tasks/clean/markup.py), those
    that a cut has halved at the text's ends as well, and a text without tags or entities is returned as it
    came. With `keep_examples`, for dialogues, so is one that shows markup rather than being marked up:
    with fenced code, a whole page, or the word HTML.
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
        text = markup.without_cut_tags(text)
        if not markup.is_marked_up(text):
            return markup.unescaped(text)
        return markup.without_tags(text, self._parsed).strip()

    def _parsed(self, text: str) -> str:
        return super().process_batched({self.text_key: [text]})[self.text_key][0]


@OPERATORS.register_module("steel_clean_links_mapper")
class SteelCleanLinks(CleanLinksMapper):
    """clean_links_mapper that ends where a link ends.

    The original's pattern runs to the next space and so deletes the Chinese sentence after a link, and
    takes `12:30` or `foo.bar/baz` for one. What is one here: tasks/clean/addresses.py.
    """

    _batched_op = True

    def process_batched(self, samples):
        samples[self.text_key] = [addresses.without_links(text) for text in samples[self.text_key]]
        return samples


@OPERATORS.register_module("steel_clean_ip_mapper")
class SteelCleanIp(CleanIpMapper):
    """clean_ip_mapper that tells addresses from the numbers of sections and versions.

    The original's pattern has no edges (`10.0.0.256` leaves `6`) and no context (`第12.3.4.1节`).
    """

    _batched_op = True

    def process_batched(self, samples):
        samples[self.text_key] = [addresses.without_addresses(text) for text in samples[self.text_key]]
        return samples


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
