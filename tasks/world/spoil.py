"""How a clean document is spoiled: one function a kind of dirt, and which documents can carry it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import cache
from random import Random

from tasks.world.document import Doc

LONG, MEDIUM = 200, 100
"""Near-duplicates need so many characters that one sign does not count; exact ones need fewer."""


def chinese(doc: Doc) -> bool:
    return doc.language == "zh"


def medium(doc: Doc) -> bool:
    return len(doc.text) >= MEDIUM


def long(doc: Doc) -> bool:
    return doc.language == "zh" and len(doc.text) >= LONG


def reversible(doc: Doc) -> bool:
    """Chinese, and the way to traditional characters and back is without loss."""
    text = doc.text
    return doc.language == "zh" and _convert("t2s", _convert("s2t", text)) == text


def append(doc: Doc, line: str) -> Doc:
    """A further line at the end of the document, or of its last reply."""
    if doc.turns:
        question, answer = doc.turns[-1]
        return replace(doc, turns=(*doc.turns[:-1], (question, f"{answer}\n{line}")))
    return replace(doc, parts=(*doc.parts[:-1], f"{doc.parts[-1]}\n{line}"))


def html(doc: Doc, random: Random) -> Doc:
    """Paragraph tags around every line of the body, or of the last reply."""

    def tagged(text: str) -> str:
        return "\n".join(f"<p>{line}</p>" for line in text.split("\n")) if text else text

    if doc.turns:
        question, answer = doc.turns[-1]
        return replace(doc, turns=(*doc.turns[:-1], (question, f'<div class="reply">{tagged(answer)}</div>')))
    return replace(doc, parts=tuple(tagged(part) for part in doc.parts))


def email(doc: Doc, random: Random) -> Doc:
    return append(doc, f"联系邮箱：reader{random.randrange(1000, 9999)}@example.com")


def link(doc: Doc, random: Random) -> Doc:
    return append(doc, f"更多内容见： http://www.example.com/page/{random.randrange(1000, 9999)}.html")


def ip(doc: Doc, random: Random) -> Doc:
    octets = [random.randrange(1, 255) for _ in range(3)]
    return append(doc, f"发布者地址：10.{octets[0]}.{octets[1]}.{octets[2]}")


def traditional(doc: Doc, random: Random) -> Doc:
    return _map(doc, lambda text: _convert("s2t", text))


def gibberish(like: Doc, number: int, random: Random) -> Doc:
    """Signs and digits without sense, in the shape of a document; in code one endless line of digits."""
    if like.language == "code":
        line = "".join(random.choice("0123456789abcdef") for _ in range(4000))
        return Doc("code", f"src/blob_{number}.txt", (line,), (), like.kind)
    signs = "#$%^&*+=~|/\\@!?0123456789"

    def soup(length: int) -> str:
        return "".join(random.choice(signs) for _ in range(length))

    lines = tuple(soup(40) for _ in range(5))
    if like.turns:
        return Doc("zh", turns=((soup(30), "\n".join(lines)),), kind=like.kind)
    return Doc("zh", soup(20) if like.title else "", lines, (), like.kind)


def slightly_changed(doc: Doc) -> Doc:
    """The same document with its last full stop turned into an exclamation mark."""
    parts = list(doc.parts)
    for k in reversed(range(len(parts))):
        if "。" in parts[k]:
            parts[k] = "！".join(parts[k].rsplit("。", 1))
            return replace(doc, parts=tuple(parts))
    raise ValueError("a document without a full stop cannot be changed slightly")


def _map(doc: Doc, change: Callable[[str], str]) -> Doc:
    """Apply a function to every text of a document."""
    return replace(
        doc,
        title=change(doc.title),
        parts=tuple(change(part) for part in doc.parts),
        turns=tuple((change(q), change(a)) for q, a in doc.turns),
    )


@cache
def _converter(config: str):
    import opencc

    return opencc.OpenCC(config)


def _convert(config: str, text: str) -> str:
    return _converter(config).convert(text)
