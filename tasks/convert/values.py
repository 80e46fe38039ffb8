"""One JSON value from its bytes; the lowest file of the formats, which all others import.

Every format yields `Items`: `(position, value, raw)`. The position counts from 1 (line, array element, document
or row; 0 is the file itself), `value` is the parsed value or a `Bad`, `raw` what an excerpt is made of.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import orjson

from tasks.convert.verdicts import Bad

Items = Iterator[tuple[int, Any, Any]]
CHUNK = 1 << 20
BOM = b"\xef\xbb\xbf"
LENIENT = ("NaN", "Infinity", "\\u")
"""Only with one of these Python's parser may tell more than orjson."""


def parse(raw: bytes) -> Any:
    """The JSON value, or a `Bad`.

    NaN and Infinity, which many programs write though JSON has no such thing, become null; so does, when
    it is written, a number beyond the floats.
    """
    try:
        return orjson.loads(raw)
    except orjson.JSONDecodeError as error:
        why = str(error)
    if "depth limit" in why:
        return Bad("nested too deeply")
    try:
        text = raw.decode("utf-8")
    except UnicodeDecodeError as error:
        return Bad("not UTF-8", f"byte {error.start}")
    if "infinity" in why or any(sign in text for sign in LENIENT):
        return _leniently(text)
    return Bad("broken JSON")


def _leniently(text: str) -> Any:
    """What Python's parser makes of a text that orjson refuses."""
    try:
        value = json.loads(text, parse_constant=lambda name: None)
        json.dumps(value, ensure_ascii=False).encode()
    except UnicodeEncodeError:  # half of a surrogate pair: no character, and no file could hold it
        return Bad("lone surrogate")
    except RecursionError:
        return Bad("nested too deeply")
    except ValueError:
        return Bad("broken JSON")
    return value
