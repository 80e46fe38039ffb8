"""Rewards that a program can check: plain functions from a reply and the right answer to 0 or 1.

A grader sees the reply alone, never the prompt. It wants the end token, a reply that is an answer as a whole by a
closed grammar, and equality after the normalisation that is written down here. What does not parse, hedges, lists or
goes on is 0: nothing is fuzzy, drawn by chance, or searched for in the text. No reward pays for form alone.

Normalisation: white space around the reply is dropped; full-width forms of ASCII (U+FF01 to U+FF5E) are ASCII;
one full stop (`.` or `。`) may end the answer. Letter case, inner spaces and every other character count.

    exact        the whole reply is the answer
    letter       the whole reply is the option's letter, A to H, or the letter and the option (`B. text`) as the data have it
    arithmetic   the whole reply is the number, or any reasoning and a last line `#### number`; compared to the last
                 digit, so 42.0 is 42, and 1,234 is 1234; a number with leading zeros does not parse
    format       `<think>…</think>`, once and not empty, and behind it the right answer as `exact` has it
"""

from __future__ import annotations

import operator
import re
from collections.abc import Callable
from dataclasses import dataclass

LONGEST = 100_000
"""Characters of a reply that are looked at; a longer one does not parse."""


@dataclass(frozen=True)
class Reply:
    """What was sampled behind a prompt."""

    text: str
    """Decoded with its special tokens in sight, the end token that closes it left out."""
    ended: bool
    """The end token was sampled; False: cut at the limit."""


@dataclass(frozen=True)
class Reward:
    """One way to grade."""

    parse: Callable[[str], str | None]
    """The answer in a reply in its normal form; None where the reply does not parse."""
    gold: Callable[[str], str | None]
    """The same of the right answer as data sets write it; None: it cannot be graded, and the data are refused."""
    same: Callable[[str, str], bool] = operator.eq
    """Whether an answer that was parsed is the right one."""

    def __call__(self, reply: Reply, answer: str) -> float:
        """1.0 if the reply is right, else 0.0. `answer`: in its normal form."""
        if not reply.ended or len(reply.text) > LONGEST:
            return 0.0
        found = self.parse(reply.text)
        return float(found is not None and self.same(found, answer))


_FULL_WIDTH = {code: code - 0xFEE0 for code in range(0xFF01, 0xFF5F)}
_LETTER = re.compile(r"[A-H](?:\. .+)?")
_NUMBER = re.compile(r"-?(?:0|[1-9][0-9]{0,29}|[1-9][0-9]{0,2}(?:,[0-9]{3}){1,9})(?:\.[0-9]{1,30})?")
_MARK = "####"
_OPEN, _CLOSE = "<think>", "</think>"


def normal(text: str) -> str | None:
    """The text in its normal form; None where nothing is left of it."""
    text = text.strip().translate(_FULL_WIDTH)
    if text.endswith((".", "。")):
        text = text[:-1]
    return text.strip() or None


def _short(text: str) -> str | None:
    """An answer stands on one line."""
    found = normal(text)
    return None if found is None or "\n" in found else found


def _letter(text: str) -> str | None:
    found = _short(text)
    return found if found is not None and _LETTER.fullmatch(found) else None


def _same_option(found: str, answer: str) -> bool:
    return found in (answer, answer[0])


def _number(text: str) -> str | None:
    found = normal(text)
    if found is None or not _NUMBER.fullmatch(found):
        return None
    # by its digits: Decimal and float round
    digits, _, decimals = found.replace(",", "").partition(".")
    decimals = decimals.rstrip("0")
    value = f"{digits}.{decimals}" if decimals else digits
    return None if value == "-0" else value


def _result(text: str) -> str | None:
    """The number behind the only mark, on the last line; without a mark the whole reply."""
    if _MARK not in text:
        return _number(text)
    before, last = ("\n" + text.strip()).rsplit("\n", 1)
    if not last.startswith(_MARK) or text.count(_MARK) != 1:
        return None
    return _number(last.removeprefix(_MARK))


def _thought(text: str) -> str | None:
    text = text.strip()
    if text.count(_OPEN) != 1 or text.count(_CLOSE) != 1 or not text.startswith(_OPEN):
        return None
    thought, _, answer = text.removeprefix(_OPEN).partition(_CLOSE)
    return _short(answer) if thought.strip() else None


REWARDS = {
    "exact": Reward(_short, _short),
    "letter": Reward(_letter, _letter, _same_option),
    "arithmetic": Reward(_result, _result),
    "format": Reward(_thought, _short),
}
"""By name, as `rl.mixture` names them."""
