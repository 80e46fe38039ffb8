"""The elements of one huge JSON array, one at a time, from a stream of chunks.

A damaged element must not take the rest of the file with it: when one cannot be parsed, or no end is found
within `limit` bytes, the scan resumes at the next `}, {`.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Generator, Iterable
from typing import Any

from tasks.convert.json_window import Window
from tasks.convert.values import Items
from tasks.convert.verdicts import Bad

SEAM = re.compile(rb"\}\s*,\s*(?=\{)")
Parse = Callable[[bytes], Any]


def elements(chunks: Iterable[bytes], limit: int, parse: Parse) -> Items:
    """Yield (position from 1, value or Bad, its bytes) for every element; of several arrays one after another."""
    window = Window(chunks)
    window.open()
    number = 0
    while True:
        number, why = yield from rest_of_array(window, limit, parse, number)
        if why == "end of file" or not window.skip_space():
            return
        if window.ahead(1) == b"[":
            window.start += 1
        else:  # a stray bracket, unless no element follows
            number += 1
            yield number, *after_the_array(window)


def rest_of_array(
    window: Window, limit: int, parse: Parse, number: int
) -> Generator[tuple[int, Any, bytes], None, tuple[int, str]]:
    """Yield the elements from the window's start on, counted on from `number`; the last number, and what ended
    the array: `]` (the window then starts behind it) or `end of file`."""
    while True:
        end, why = window.element(limit)
        raw = window.buffer[window.start : end]
        if raw and not raw.isspace():
            number += 1
            value = Bad("over-long record") if why == "limit" else parse(raw)
            if why == "end of file" and isinstance(value, list):  # a stray bracket has swallowed the rest
                value = Bad("broken JSON")
            if isinstance(value, Bad):
                seam = SEAM.search(raw)
                if seam:
                    # more likely a lost quote or brace than one element with a seam in a text
                    window.start += seam.end()
                    yield number, Bad("broken JSON"), raw[: seam.start() + 1]
                    continue
                if why == "limit":
                    lost = window.skip_to(SEAM)
                    yield number, Bad("over-long record", size=lost), raw[:1000]
                    continue
                if why == "end of file":
                    value = Bad("truncated record")
            elif len(raw) > limit:
                value, raw = Bad("over-long record", size=len(raw)), raw[:1000]
            yield number, value, raw
        window.start = min(end + 1, len(window.buffer))
        if why in ("end of file", "]"):
            return number, why


def after_the_array(window: Window) -> tuple[Bad, bytes]:
    """Step over what follows a bracket that may be a stray one, up to the next element."""
    raw = window.ahead(1000)
    return Bad("data after the array", size=window.skip_to(SEAM)), raw
