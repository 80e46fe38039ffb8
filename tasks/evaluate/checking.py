"""Whether a generated reply is the right answer to an open question: exactly, or not at all.

A number is compared as a number: the one behind `####` or `the answer is`, else the last one of the reply. A text is
compared after NFKC, without case, marks at the ends, an article or a leading "the answer is": the first line of the
reply has to be the answer, nothing more.
"""

from __future__ import annotations

import re
import unicodedata
from decimal import Decimal, InvalidOperation
from typing import Any

RULES: dict[str, Any] = {
    "number": r"[-+]?(?:\d[\d,]*\.?\d*|\.\d+)(?:/\d+)?",
    "marked": r"(?:####|(?i:\bthe answer is)|答案\s*(?:是|为|:))\s*:?\s*\$?\s*({number})",
    "otherwise": "the last number of the reply",
    "equal": "as numbers, to 1e-4",
    "text": "first line; NFKC; without case, marks at the ends, article, leading phrase",
    "lead": r"\A(?:答案\s*(?:是|为)?\s*:?\s*|(?i:(?:the )?answer(?: is)?\s*:?\s*)|(?i:it is |it's ))",
    "article": r"\A(?i:the|an|a)\s+",
}
TOLERANCE = Decimal("1e-4")


def number(text: str) -> Decimal | None:
    """The number that a reply gives as its answer."""
    text = unicodedata.normalize("NFKC", text).replace("−", "-")
    marked = re.findall(RULES["marked"].replace("{number}", RULES["number"]), text)
    found = marked[-1:] or re.findall(RULES["number"], text)[-1:]
    return _decimal(found[0]) if found else None


def is_number(text: str) -> bool:
    """Whether a target is a number and nothing else."""
    return re.fullmatch(RULES["number"], unicodedata.normalize("NFKC", text).strip()) is not None


def exact(reply: str, target: str) -> tuple[bool, bool]:
    """(right, parsed): whether the reply is the target, and whether it holds an answer at all."""
    if is_number(target):
        given, due = number(reply), number(target)
        return given is not None and due is not None and abs(given - due) <= TOLERANCE, given is not None
    given_text = _plain(reply)
    return given_text == _plain(target) and bool(given_text), bool(given_text)


def _plain(text: str) -> str:
    text = unicodedata.normalize("NFKC", text).strip()
    text = text.splitlines()[0] if text else ""
    text = re.sub(RULES["lead"], "", text.strip())
    text = re.sub(r"\A[\W_]+|[\W_]+\Z", "", text)
    return re.sub(RULES["article"], "", text).casefold().strip()


def _decimal(text: str) -> Decimal | None:
    try:
        above, _, below = text.replace(",", "").partition("/")
        return Decimal(above) / Decimal(below) if below else Decimal(above)
    except (InvalidOperation, ZeroDivisionError):
        return None
