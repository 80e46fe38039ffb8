"""JSON objects one after another, however they are broken into lines, from a stream of chunks.

An object that is too large to be a record may be one around its records, `{"data": [{…}, …]}`: then these are
read, one at a time. (A smaller one is parsed whole, and wrapped.py asks the reader which of the two it is.)
Where an object is damaged the scan resumes at the next line that begins one, after a line that ended one.
"""

from __future__ import annotations

import re
from collections.abc import Generator, Iterable
from typing import Any

from tasks.convert.json_array import Parse, after_the_array, rest_of_array
from tasks.convert.json_window import TOKEN, Window
from tasks.convert.values import Items
from tasks.convert.verdicts import Bad

SEAM = re.compile(rb"\}[ \t]*[\r\n]\s*(?=\{)")
LINE_END = re.compile(rb"[\r\n]")
MEMBER = re.compile(rb'\s*(?:\}|,\s*"|\Z)')
"""What follows an array in an object."""
LIST_OF_OBJECTS = re.compile(rb"\[\s*\{")


def documents(chunks: Iterable[bytes], limit: int, parse: Parse) -> Items:
    """Yield (position from 1, value or Bad, its bytes) for every object."""
    window, number = Window(chunks), 0
    while window.skip_space():
        opening = window.ahead(1)
        if opening == b",":  # the elements of an array, without its brackets
            window.start += 1
            continue
        number += 1
        if opening not in b"{[":
            raw = window.ahead(1000)
            lost = window.skip_to(LINE_END)
            yield number, Bad("broken JSON", size=lost), raw[:lost]
            continue
        end, why = window.value(limit)
        raw = window.buffer[window.start : end]
        value = Bad("over-long record") if why == "limit" else parse(raw)
        if isinstance(value, Bad):
            if seam := SEAM.search(raw):
                window.start += seam.end()
                yield number, Bad("broken JSON"), raw[: seam.start() + 1]
                continue
            if why == "limit" and _around_records(raw, whole=False):
                number = yield from _within(window, limit, parse, number - 1)
                continue
            if why == "limit":
                lost = window.skip_to(SEAM)
                yield number, Bad("over-long record", size=lost), raw[:1000]
                continue
            if why == "end of file":
                value = Bad("truncated record")
        elif len(raw) > limit and number == 1 and _around_records(raw, whole=True):
            number = yield from _within(window, limit, parse, 0)
            continue
        elif len(raw) > limit:
            value, raw = Bad("over-long record", size=len(raw)), raw[:1000]
        window.start = end
        yield number, value, raw


def glued(raw: bytes, parse: Parse) -> list[tuple[Any, bytes]]:
    """The objects that stand one behind another in one line; none if any of it is something else."""
    found = [(value, part) for _, value, part in documents([raw], len(raw), parse)]
    return found if all(isinstance(value, dict) for value, _ in found) else []


def _within(
    window: Window, limit: int, parse: Parse, number: int
) -> Generator[tuple[int, Any, bytes], None, int]:
    """Yield the elements of all lists of objects in the object at the window's start; the last number."""
    depth = lists = 0
    while what := window.next_token(limit):
        if what == b"{":
            depth += 1
        elif what == b"}":
            depth -= 1
            if depth <= 0:
                return number
        elif what == b"]":
            lists = max(0, lists - 1)
        elif what == b"[":
            if lists or not window.skip_space() or window.ahead(1) != b"{":
                lists += 1
                continue
            while True:
                number, why = yield from rest_of_array(window, limit, parse, number)
                if why == "end of file":
                    return number
                if MEMBER.match(window.ahead(64)):
                    break
                number += 1  # a stray bracket
                yield number, *after_the_array(window)
    return number


def _around_records(raw: bytes, whole: bool) -> bool:
    """Whether an object, or its beginning, has a list of objects with nothing but objects around it; of a
    beginning, one that has not ended."""
    way: list[bool] = []  # of every open bracket, whether it is that of a list
    records = False
    for token in TOKEN.finditer(raw):
        what = token[0]
        if what == b"[" and True not in way:
            records = bool(LIST_OF_OBJECTS.match(raw, token.start()))
            if records and whole:
                return True
        if what in b"{[":
            way.append(what == b"[")
        elif what in b"}]" and way:
            way.pop()
    return records and True in way
