"""What readers and formats share: verdicts on bad input, and checked access to fields.

A reader never guesses: a field is there with the right type, or `Malformed` says what is wrong in
one of a few fixed reasons (they are counted), with the field's name as detail.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from tasks.records.record import EXCERPT, Draft, Message

META_STRING = 300
LARGEST = 2**63 - 1
"""Whole numbers beyond this cannot be written."""


class Malformed(Exception):
    """This record cannot be used; it goes to quarantine."""

    def __init__(self, reason: str, detail: str = ""):
        super().__init__(reason)
        self.reason, self.detail = reason, detail


class Unwanted(Exception):
    """This record is sound, but an option of the source excludes it; it is counted as dropped."""

    def __init__(self, step: str, record: Draft):
        super().__init__(step)
        self.step, self.record = step, record


@dataclass(frozen=True)
class Bad:
    """What a format yields in place of a value that it could not read."""

    reason: str
    detail: str = ""
    records: int = 1
    """How many records are lost with it (a damaged parquet row group holds many)."""
    size: int = field(default=0, compare=False)
    """Bytes lost with it, where what is shown of it is not all; at position 0, of the file as it lies on the disk."""


def missing(item: Mapping[str, Any], key: str) -> Malformed:
    """The verdict on a record without this field; it lists the fields that it has."""
    fields = ", ".join(str(name)[:40] for name in item)
    fields = fields.encode("utf-8", "replace").decode()
    return Malformed("missing field", f"{key}; there are: {fields or 'none'}"[:EXCERPT])


def field_of(item: Mapping[str, Any], key: str) -> Any:
    """The value of a field, None where it is absent; `a.b` is the field b of the object a, if no field is called so."""
    if key in item or "." not in key:
        return item.get(key)
    outer, _, inner = key.partition(".")
    below = item.get(outer)
    return field_of(below, inner) if isinstance(below, Mapping) else None


def text(item: Mapping[str, Any], key: str) -> str:
    """A required, non-blank string."""
    value = _required(item, key, str)
    if not value or value.isspace():
        raise Malformed("empty text", key)
    return value


def optional(item: Mapping[str, Any], key: str) -> str:
    """A string that may be absent, null or blank: then ""."""
    value = field_of(item, key)
    if value is None:
        return ""
    if type(value) is not str:
        raise Malformed("wrong type", key)
    return "" if value.isspace() else value


def a_list(item: Mapping[str, Any], key: str) -> list[Any]:
    """A required list."""
    return _required(item, key, list)


def small(item: Mapping[str, Any], *keys: str) -> dict[str, Any]:
    """The scalars among these fields, for `meta`; anything large or nested stays behind."""
    scalars: dict[str, Any] = {}
    for key in keys:
        value = item.get(key)
        if isinstance(value, str) and value:
            scalars[key] = value[:META_STRING]
        elif isinstance(value, float) or isinstance(value, int) and abs(value) <= LARGEST:
            scalars[key] = value
    return scalars


def message(role: str, content: str, loss: bool = True) -> Message:
    """One message of a record; without `loss` it is part of the dialogue, but nothing to be learnt."""
    turn: Any = {"role": role, "content": content}
    return turn if loss else turn | {"loss": False}


def dialogue(*turns: tuple[Any, ...], **meta: Any) -> Draft:
    """The draft of a dialogue from (role, content) or (role, content, loss)."""
    messages = [message(*turn) for turn in turns]
    return {"kind": "dialogue", "messages": messages, "meta": meta}


def excerpt(raw: Any) -> str:
    """A short look at a bad record, whatever it is: bytes of a line or a parsed row."""
    if isinstance(raw, bytes):
        return raw[: 4 * EXCERPT].decode("utf-8", "replace")[:EXCERPT]
    if isinstance(raw, Mapping):
        raw = ", ".join(f"{str(key)[:40]}: {_shown(value)}" for key, value in raw.items())
    return str(raw)[:EXCERPT].encode("utf-8", "replace").decode("utf-8")


def printable(text: str) -> str:
    """A name or a cell that can be written as UTF-8: bytes that are none become \\xNN."""
    return text.encode("utf-8", "backslashreplace").decode()


def guess_language(sample: str) -> str:
    """zh or en for a source of mixed languages: by the share of Chinese among the letters."""
    sample = sample[:2000]
    chinese = sum("\u4e00" <= c <= "\u9fff" for c in sample)
    latin = sum(c.isascii() and c.isalpha() for c in sample)
    # a Chinese character carries about as much as three letters
    return "zh" if chinese * 3 >= latin else "en"


def _required(item: Mapping[str, Any], key: str, kind: type) -> Any:
    """The value of a field that has to be there with this type."""
    value = field_of(item, key)
    if value is None and key not in item:
        raise missing(item, key)
    if type(value) is not kind:
        raise Malformed("null field" if value is None else "wrong type", key)
    return value


def _shown(value: Any) -> str:
    """Texts and numbers; of anything nested, maybe a thousand levels deep, only what it is."""
    return type(value).__name__ if isinstance(value, list | dict) else str(value)[:60]
