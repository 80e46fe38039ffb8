"""Rewards that a program can check: plain functions from a reply and the right answer to 0 or 1.

A grader sees the reply alone, never the prompt. It wants the end token, a token for every id, a reply that is an answer as a whole by a
closed grammar, and equality after the normalisation that is written down here. What does not parse, hedges, lists or
goes on is 0: nothing is fuzzy, drawn by chance, or searched for in the text. No reward pays for form alone.

Normalisation: full-width forms of ASCII (U+FF01 to U+FF5E) are ASCII; composed and decomposed characters are the same
(NFC, as tokenizers make them); white space around the reply is dropped; one full stop (`.` or `。`) may end the answer,
while several (`...`) are a part of it. Letter case, inner spaces and every other character count. What is in its normal
form stays as it is.

    exact        the whole reply is the answer
    letter       the whole reply is the option's letter, A to H, or the letter and the option (`B. text`) as the data have it
    arithmetic   the whole reply is the number, or any reasoning and a last line `#### number`; compared to the last
                 digit, so 42.0 is 42, and 1,234 is 1234; a number with leading zeros does not parse;
                 `−` (U+2212) is a minus, too
    format       `<think>…</think>`, once and with something to see in it, and behind it the right answer as `exact` has it
"""

from __future__ import annotations

import operator
import re
import unicodedata
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
    whole: bool = True
    """Each of its ids has a token; False: the text lacks what the others would say, and it does not parse."""


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
        if not (reply.ended and reply.whole) or len(reply.text) > LONGEST:
            return 0.0
        found = self.parse(reply.text)
        return float(found is not None and self.same(found, answer))


_FULL_WIDTH = {code: code - 0xFEE0 for code in range(0xFF01, 0xFF5F)}
_STOPS = (".", "。")
_LETTER = re.compile(r"[A-H](?:\. .+)?")
_NUMBER = re.compile(r"[-−]?(?:0|[1-9][0-9]{0,29}|[1-9][0-9]{0,2}(?:,[0-9]{3}){1,9})(?:\.[0-9]{1,30})?")
_MARK = "####"
_OPEN, _CLOSE = "<think>", "</think>"
_BLANK = "\u115f\u1160\u2800\u3164\uffa0"
"""Letters and a symbol that are drawn as nothing: fillers of Hangul, the empty Braille cell."""


def normal(text: str) -> str | None:
    """The text in its normal form; None where nothing is left of it."""
    text = unicodedata.normalize("NFC", text.translate(_FULL_WIDTH)).strip()
    if text.endswith(_STOPS):
        rest = text[:-1].rstrip()
        # two stops both stay: a normal form has to be its own
        text = text if rest.endswith(_STOPS) else rest
    return text or None


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
    digits, _, decimals = found.replace("−", "-").replace(",", "").partition(".")
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
    return _short(answer) if any(map(_visible, thought)) else None


def _visible(character: str) -> bool:
    """A letter, digit, mark of punctuation or symbol. Spaces, control and format characters are none."""
    return unicodedata.category(character)[0] in "LNPS" and character not in _BLANK


def _untagged(text: str) -> str | None:
    """An answer that can stand behind a thought."""
    found = _short(text)
    return None if found is None or _OPEN in found or _CLOSE in found else found


REWARDS = {
    "exact": Reward(_short, _short),
    "letter": Reward(_letter, _letter, _same_option),
    "arithmetic": Reward(_result, _result),
    "format": Reward(_thought, _untagged),
}
"""By name, as `rl.mixture` names them."""
