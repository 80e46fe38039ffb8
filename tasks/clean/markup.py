"""HTML in running text: which `<` begins a tag, and what a cut left of one at a text's ends."""

from __future__ import annotations

import html
from collections.abc import Callable, Iterator

import regex

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
# attributes without a value: HTML's own and those with a prefix. In `a<b and c>d` are none of them
_FLAG = (
    r"(?:allowfullscreen|async|autofocus|autoplay|checked|compact|controls|default|defer|disabled|hidden|ismap|"
    r"itemscope|loop|multiple|muted|nomodule|noshade|novalidate|nowrap|open|playsinline|readonly|required|"
    r"reversed|selected|(?:data|aria|v|ng|on)-[\w\-]+)(?![\w\-])"
)
_VALUED = r"[\w:@.\-]+\s*=\s*(?:\"[^\"]*\"|'[^']*'|[^\s\"'<>]+)"
# a quotation mark before the next name does for a space: `<img src="a.jpg"alt="…">`
_ATTRIBUTES = rf"(?:(?:\s+|(?<=[\"']))(?:{_VALUED}|{_FLAG}))*"
_NAME = rf"(?:{_INLINE}|{_BLOCK})"
_TAG = regex.compile(rf"(?i)</?{_NAME}{_ATTRIBUTES}\s*/?>|<!--|-->|<!doctype\b")
# `<b>` in `a<b>c`, between the names of two quantities; a text with `</b>` means the tag
_COMPARED = regex.compile(
    r"(?i)(?<=(?<![A-Za-z0-9])[A-Za-z0-9]{1,2})<[abipqsu]>(?=[A-Za-z0-9]{1,2}(?![A-Za-z0-9]))"
)
_CLOSED = regex.compile(r"(?i)</([abipqsu])\s*>")
_BREAK = regex.compile(rf"(?i)<(?:br|hr){_ATTRIBUTES}\s*/?>|</(?:{_BLOCK})\s*>")
_UNSEEN = regex.compile(r"(?is)<(script|style|noscript)\b[^>]*>.*?</\1\s*>|<!--.*?-->")
_ENTITY = regex.compile(r"&(?:[A-Za-z][A-Za-z0-9]{1,9}|#[0-9]{1,6}|#[xX][0-9A-Fa-f]{1,5});")
_BLANK_LINES = regex.compile(r"\n[ \t]*(?:\n[ \t]*)+\n")

# what a cut leaves: at the end a tag with an attribute, or an end tag, that is not closed; at the start
# attributes and the end of their tag, the first of them perhaps from the middle of its value on
_CUT_END = regex.compile(
    rf"(?i)<(?:/{_NAME}|{_NAME}{_ATTRIBUTES}\s+[\w:@.\-]+\s*=\s*(?:\"[^\"<>]*|'[^'<>]*|[^\s\"'<>]*)\"?\s*/?)\s*\Z"
)
_CUT_START = regex.compile(
    rf"(?i)\A\s*(?:{_VALUED}|[^\s<>\"'=]{{0,200}}[\"'](?=\s+[\w:@.\-]+\s*=))(?:\s+(?:{_VALUED}|{_FLAG}))*\s*/?>"
)
_QUOTED_START = regex.compile(r"\A[^<>\n]*?=\s*[\"']|\A[^\s<>\"'=]*[\"']")


def is_marked_up(text: str) -> bool:
    """Whether the text holds one of HTML's own tags."""
    return any(True for _ in _tags(text))


def _tags(text: str) -> Iterator[regex.Match[str]]:
    closed = None if "</" in text else set()
    for tag in _TAG.finditer(text):
        if _COMPARED.match(text, tag.start()):
            closed = {name.lower() for name in _CLOSED.findall(text)} if closed is None else closed
            if tag[0][1].lower() not in closed:
                continue
        yield tag


def unescaped(text: str) -> str:
    """The text with its entities read; `&copy=1` of a link is none."""
    return _ENTITY.sub(lambda entity: html.unescape(entity[0]), text)


def without_cut_tags(text: str) -> str:
    """The text without the half of a tag at its start or end."""
    if "<" in text:
        text = _CUT_END.sub("", text)
    if ">" in text and _QUOTED_START.match(text):
        text = _CUT_START.sub("", text)
    return text


def without_tags(text: str, parse: Callable[[str], str]) -> str:
    """The text that `parse` (an HTML parser) finds, with the end of a block as the end of a line.

    Scripts and comments go with their content; a `<` that begins no known tag and a `&` that begins no
    entity stay.
    """
    text = _UNSEEN.sub("", text)
    text = _BREAK.sub(lambda tag: tag[0] + "\n", text)
    return _BLANK_LINES.sub("\n\n", parse("".join(_escaped_others(text))))


def _escaped_others(text: str) -> Iterator[str]:
    """`text` with every sign that is not markup written as an entity."""
    end = 0
    for tag in _tags(text):
        yield _escaped(text[end : tag.start()])
        yield tag[0]
        end = tag.end()
    yield _escaped(text[end:])


def _escaped(text: str) -> str:
    parts, end = [], 0
    for entity in _ENTITY.finditer(text):
        parts += [text[end : entity.start()].replace("&", "&amp;"), entity[0]]
        end = entity.end()
    return "".join([*parts, text[end:].replace("&", "&amp;")]).replace("<", "&lt;")
