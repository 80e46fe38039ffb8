"""Which option a generated reply names, read strictly: one letter without a doubt, or none.

The scripts that small models were scored with guess when a reply names nothing (by resemblance to an option, or at
random), and read letters out of negations and out of words. Here a reply that names no letter, or several, is
unparsed: wrong, and counted.

The rules, in their order: a final answer, a letter at the beginning, statements, the text of an option. Denied letters
(`不选A`, `A is wrong`) are taken out before; a reply that
lists all options names none. All of them are data (`RULES`), so that a protocol's digest covers them.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Sequence
from functools import cache
from typing import Any

L = r"(?<![A-Za-z])[(\[]?\s*([{letters}])\s*[)\]]?(?![A-Za-z0-9'=+])"
"""A letter that stands by itself, maybe in brackets."""

RULES: dict[str, Any] = {
    "normalisation": "NFKC; the reply without spaces at its ends; English in any case",
    "letter": L,
    "denied": [
        r"(?:不应该?|不能|不可|并非|不|别|排除|除了|除去)\s*(?:选择|选项|选|是|为)?\s*{L}",
        r"{L}\s*(?:选项|项)?\s*(?:的说法|说法|表述)?\s*(?:是|为)?\s*(?:错误|不正确|不对|不符合|不符|有误|错)",
        r"(?i:\bnot|\bn't|\bneither|\bnor|\bexclude|\beliminate|\bexcept)\s+(?i:option|choice|answer)?\s*{L}",
        r"{L}\s*(?i:is|are|was|seems)\s*(?i:n't|not|wrong|incorrect|false)",
    ],
    "final": [
        r"(?:最终|最后|正确|因此|所以|故)的?(?:答案|选项)\s*(?:应该|应当|应)?(?:是|为|选|:|是:|为:)?\s*(?:选项)?\s*{L}",
        r"(?:综上|所以|因此|故)[,，]?\s*(?:本题|此题|应该|应当|应)?\s*选(?:择|项)?\s*:?\s*{L}",
        r"(?i:\bthe (?:final|correct|right|best) (?:answer|choice|option) (?:is|would be|must be))\s*:?\s*(?i:option|choice)?\s*{L}",
    ],
    "beginning": r"\A\W{0,3}{L}(?=\s*(?:[.。、:,，;；)\n]|选项|\Z))",
    "label": r"(?<![A-Za-z])([{letters}])\s*[.、:)]",
    "statements": [
        r"(?:答案|选项)\s*(?:选项)?\s*(?:应该|应当|应)?\s*(?:就)?(?:是|为|选|:)+\s*:?\s*(?:选项)?\s*{L}",
        r"(?<!不)(?:应该|应当|应)?(?<!不)选(?:择|项)?\s*(?:是|为)?\s*:?\s*{L}",
        r"{L}\s*(?:选项|项)?\s*(?:的说法|说法|表述)?\s*(?:是|为)?\s*(?:正确|对的|符合题意|当选)",
        r"(?<!不)是\s*:?\s*(?:选项)?\s*{L}(?=\s*(?:[.。,，;；)\n!]|选项|\Z))",
        r"(?i:\b(?:answer|choice|option)\s*(?:is|would be|must be|:))\s*:?\s*(?i:option|choice)?\s*{L}",
        r"(?i:\b(?:choose|pick|select|go with|choosing))\s+(?i:option|choice|answer)?\s*{L}",
        r"{L}\s*(?i:is|would be|seems)\s*(?i:the\s+)?(?i:correct|right|true|best)",
        r"(?i:\bit(?:'s| is| must be))\s+(?i:option|choice)?\s*{L}(?=\s*(?:[.,;!)\n]|\Z))",
    ],
    "chained": r"\s*[)\]]?\s*(?:或者?|和|与|及|、|/|,|&|and|or)+\s*[(\[]?[{letters}](?![A-Za-z.:])",
    "text": "the whole reply is the text of exactly one option",
    "lower case": r"\A[(\[]?([{lower}])[)\]]?[.。、:)]?\s*\Z",
}


def choice(reply: str, choices: Sequence[str]) -> tuple[int | None, str]:
    """The index of the option that a reply names, and by which rule; (None, why) where it names none or several."""
    text = unicodedata.normalize("NFKC", reply).strip()
    if not text:
        return None, "empty"
    letters = "ABCDEFGHIJ"[: len(choices)]
    rules = _compiled(letters)
    kept = text
    for pattern in rules["denied"]:
        kept = pattern.sub(" ", kept)
    if final := _named(rules["final"], kept, letters):
        return _only(final[-1:], letters, "final answer")
    if found := rules["beginning"][0].search(text):
        after = rules["beginning"][0].search(kept)
        if after and after[1] == found[1]:
            several = _chained(text[found.end() :], letters) or set(rules["label"][0].findall(text)) == set(
                letters
            )
            return (None, "several letters") if several else (letters.index(found[1]), "beginning")
    if stated := _named(rules["statements"], kept, letters):
        return _only(stated, letters, "statement")
    if found := rules["lower case"][0].search(text):
        return letters.lower().index(found[1]), "beginning"
    same = [k for k, option in enumerate(choices) if _bare(option) == _bare(text)]
    if len(same) == 1:
        return same[0], "text"
    return None, "no letter"


def _named(patterns: Sequence[re.Pattern[str]], text: str, letters: str) -> list[str]:
    """The letters that the patterns name, in the order of the text; an empty one at the end: and one more."""
    found = [(match.start(1), match[1]) for pattern in patterns for match in pattern.finditer(text)]
    if any(_chained(text[at + 1 :], letters) for at, _ in found):
        return [*(letter for _, letter in found), ""]
    return [letter for _, letter in sorted(found)]


def _chained(rest: str, letters: str) -> bool:
    """Whether another letter is named in the same breath: `A或B`, `A and B`, `A、B`."""
    return _compiled(letters)["chained"][0].match(rest) is not None


def _only(named: Sequence[str], letters: str, rule: str) -> tuple[int | None, str]:
    distinct = set(named)
    if len(distinct) != 1 or "" in distinct:
        return None, "several letters"
    return letters.index(named[0]), rule


def _bare(text: str) -> str:
    """A text without the marks and spaces at its ends."""
    return re.sub(r"\A[\W_]+|[\W_]+\Z", "", unicodedata.normalize("NFKC", text)).casefold()


@cache
def _compiled(letters: str) -> dict[str, list[re.Pattern[str]]]:
    one = L.replace("{letters}", letters)

    def compiled(pattern: str) -> re.Pattern[str]:
        return re.compile(
            pattern.replace("{L}", one).replace("{letters}", letters).replace("{lower}", letters.lower())
        )

    named = {}
    for name in ("denied", "final", "beginning", "label", "statements", "chained", "lower case"):
        patterns = RULES[name]
        named[name] = [compiled(p) for p in ([patterns] if isinstance(patterns, str) else patterns)]
    return named
