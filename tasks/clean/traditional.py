"""Traditional Chinese: which texts are written in it, and their simplified form.

A text counts as traditional when nearly all of its telling characters are: those that only traditional writing
has, against those that only simplified or only Japanese writing has. One such character in a name, a quotation
or a remark about writing does not make a text traditional. Of a text of both kinds a line counts for itself,
if it is more than a name or a title. Japanese and Korean sentences stay as they are.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from functools import cache

import regex

MIN_SHARE = 0.8
"""Of the telling characters of a traditional text, so many are traditional."""
MAX_FOREIGN = 0.1
"""A text with more kana and hangul, of its letters of East Asia, is Japanese or Korean as a whole."""
MIN_OF_LINE = 8
"""Traditional characters that a line needs to count for itself."""
LATIN_PER_HAN = 4
"""Latin letters that weigh as much as one Han character; beyond that a text is not Chinese."""

_NAMES = frozenset("昇陞甦甯氾鉅")
"""Standard again in names since 2013 (毕昇), though no part of GB 2312."""
_TELLING = frozenset("於後麽")
"""Part of GB 2312, yet in a modern text a sign of traditional writing."""
_HAN = [chr(c) for c in (*range(0x3400, 0x4DC0), *range(0x4E00, 0xA000), *range(0xF900, 0xFB00))]

# kana without the middle dot and the long sound, which Chinese texts use too; hangul
_FOREIGN = re.compile("[\u3041-\u3096\u30a1-\u30fa\uff66-\uff9d\u1100-\u11ff\u3130-\u318f\uac00-\ud7a3]")
_ANY_HAN = re.compile("[\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff]")
_LATIN = re.compile("[A-Za-z]")
_SENTENCE = regex.compile(r"[^。！？!?\n\0]*[。！？!?\n\0]*")
_KEPT = regex.compile(
    r"(?<=[“‘「『《〈\"'])\p{Han}(?=[”’」』》〉\"'])"  # a character that is spoken of
    r"|乾(?=[安縣县州符寧宁祐德貞亨統道興嘉歸順])|(?<=文)徵(?=明)|氾(?=水)"  # names that OpenCC does not know
)


def simplified(text: str, convert: Callable[[str], str]) -> str:
    """The text with what is written in traditional Chinese as `convert` (OpenCC) simplifies it."""
    telling = len(_only_traditional().findall(text))
    if not telling:
        return text
    if is_traditional(text):
        return _without_foreign(text, convert)
    if telling < MIN_OF_LINE:
        return text
    return "\n".join(
        _without_foreign(line, convert) if is_traditional(line, MIN_OF_LINE) else line
        for line in text.split("\n")
    )


def is_traditional(text: str, at_least: int = 1) -> bool:
    """Whether the text is written in traditional Chinese, by so many characters that only it has."""
    traditional = len(_only_traditional().findall(text))
    if traditional < at_least:
        return False
    others = len(_only_elsewhere().findall(text))
    if traditional < MIN_SHARE * (traditional + others):
        return False
    han, foreign = len(_ANY_HAN.findall(text)), len(_FOREIGN.findall(text))
    if foreign > MAX_FOREIGN * (han + foreign):
        return False
    return len(_LATIN.findall(text)) <= LATIN_PER_HAN * han


def _without_foreign(text: str, convert: Callable[[str], str]) -> str:
    return "".join(
        sentence if _FOREIGN.search(sentence) else _converted(sentence, convert)
        for sentence in _SENTENCE.findall(text)
    )


def _converted(sentence: str, convert: Callable[[str], str]) -> str:
    done, end = [], 0
    for kept in _KEPT.finditer(sentence):
        done += [convert(sentence[end : kept.start()]), kept[0]]
        end = kept.end()
    rest = sentence[end:]
    ends = len(rest.rstrip("\0"))  # OpenCC would end the text at a NUL
    return "".join([*done, convert(rest[:ends]), rest[ends:]])


@cache
def _only_traditional() -> re.Pattern[str]:
    """The characters that only traditional writing has, from OpenCC's own table.

    Those whose simplified form is in GB 2312 (so: common) and which are not in it themselves.
    """
    import opencc

    table = opencc.OpenCC("t2s.json")
    found = {
        c
        for c in _HAN
        if (simple := table.convert(c)) != c
        and _in("gb2312", simple)
        and not _in("gb2312", c)
        and c not in _NAMES
    }
    return re.compile(f"[{''.join(sorted(found | _TELLING))}]")


@cache
def _only_elsewhere() -> re.Pattern[str]:
    """The characters of simplified Chinese (GB 2312) and of Japanese (JIS X 0208) that traditional writing lacks.

    What Big5 holds may stand in a traditional text (后, 里, 台), so it tells nothing.
    """
    import opencc

    table = opencc.OpenCC("s2t.json")
    simple = {c for c in _HAN if _in("gb2312", c) and table.convert(c) != c}
    japanese = {c for c in _HAN if _in("shift_jis", c) and not _only_traditional().match(c)}
    return re.compile(f"[{''.join(sorted(c for c in simple | japanese if not _in('big5', c)))}]")


def _in(charset: str, character: str) -> bool:
    try:
        return bool(character.encode(charset))
    except UnicodeEncodeError:
        return False
