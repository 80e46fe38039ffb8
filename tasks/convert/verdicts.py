"""What readers and formats share: verdicts on bad input, checked access to fields, stable ids.

A reader never guesses: a field is there with the right type, or `Malformed` says what is wrong in
one of a few fixed reasons (they are counted), with the field's name as detail.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import orjson

from tasks.settings.errors import NodeError

EXCERPT = 200
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

    def __init__(self, step: str, record: dict[str, Any]):
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


def check_sum(source: str, what: str, came: int, kept: int, **lost: int) -> None:
    """NodeError when what came in is not what was kept and lost: a fault of the house, never of the data."""
    if came != kept + sum(lost.values()):
        told = "".join(f" + {n} {name}" for name, n in lost.items())
        raise NodeError(f"{source}: {came} {what} came in, but {kept} kept{told} are accounted for")


def missing(item: Mapping[str, Any], key: str) -> Malformed:
    """The verdict on a record without this field; it lists the fields that there are."""
    there = ", ".join(str(name)[:40] for name in item)
    there = there.encode("utf-8", "replace").decode()
    return Malformed("missing field", f"{key}; there are: {there or 'none'}"[:EXCERPT])


def text(item: Mapping[str, Any], key: str) -> str:
    """A required, non-blank string."""
    try:
        value = item[key]
    except KeyError:
        raise missing(item, key) from None
    if type(value) is not str:
        raise Malformed("null field" if value is None else "wrong type", key)
    if not value or value.isspace():
        raise Malformed("empty text", key)
    return value


def optional(item: Mapping[str, Any], key: str) -> str:
    """A string that may be absent, null or blank: then ""."""
    value = item.get(key)
    if value is None:
        return ""
    if type(value) is not str:
        raise Malformed("wrong type", key)
    return "" if value.isspace() else value


def a_list(item: Mapping[str, Any], key: str) -> list[Any]:
    """A required list."""
    try:
        value = item[key]
    except KeyError:
        raise missing(item, key) from None
    if type(value) is not list:
        raise Malformed("null field" if value is None else "wrong type", key)
    return value


def small(item: Mapping[str, Any], *keys: str) -> dict[str, Any]:
    """The scalars among these fields, for `meta`; anything large or nested stays behind."""
    found = {}
    for key in keys:
        value = item.get(key)
        if isinstance(value, str) and value:
            found[key] = value[:META_STRING]
        elif isinstance(value, float) or isinstance(value, int) and abs(value) <= LARGEST:
            found[key] = value
    return found


def message(role: str, content: str, loss: bool = True) -> dict[str, Any]:
    """One message of a record; without `loss` it is part of the dialogue, but nothing to be learnt."""
    return {"role": role, "content": content} if loss else {"role": role, "content": content, "loss": False}


def dialogue(*turns: tuple[Any, ...], **meta: Any) -> dict[str, Any]:
    """A dialogue record from (role, content) or (role, content, loss)."""
    messages = [message(*turn) for turn in turns]
    return {"kind": "dialogue", "messages": messages, "meta": meta}


def content(record: Mapping[str, Any]) -> list[Any]:
    """The part of a record that gives it its identity: everything but meta and language."""
    kind = record["kind"]
    if kind in ("text", "code"):
        return [kind, record["text"]]
    turns = [[m["role"], m["content"]] for m in record["messages"]]
    if kind == "preference":
        return [kind, turns, record["chosen"], record["rejected"]]
    return [kind, turns]


def stable_id(source: str, parts: list[Any]) -> bytes:
    """16 bytes (32 hex characters in a record): the hash of canonical JSON of source and content."""
    return hashlib.blake2b(orjson.dumps([source, *parts]), digest_size=16).digest()


def chars(record: Mapping[str, Any]) -> int:
    """Characters of everything that a model may be trained on, or is asked."""
    if "text" in record:
        return len(record["text"])
    if "question" in record:
        return len(record["question"]) + sum(map(len, record["choices"]))
    total = sum(len(m["content"]) for m in record["messages"])
    return total + len(record.get("chosen", "")) + len(record.get("rejected", ""))


def excerpt(raw: Any) -> str:
    """A short look at a bad record, whatever it is: bytes of a line or a parsed row."""
    if isinstance(raw, bytes):
        return raw[: 4 * EXCERPT].decode("utf-8", "replace")[:EXCERPT]
    if isinstance(raw, Mapping):
        raw = ", ".join(f"{str(key)[:40]}: {_shown(value)}" for key, value in raw.items())
    return str(raw)[:EXCERPT].encode("utf-8", "replace").decode("utf-8")


def _shown(value: Any) -> str:
    """Texts and numbers; of anything nested, maybe a thousand levels deep, only what it is."""
    return type(value).__name__ if isinstance(value, list | dict) else str(value)[:60]


def opening(record: Mapping[str, Any]) -> str:
    """The first characters of a record's content."""
    texts = [record[key] for key in ("text", "question") if key in record]
    texts += [message["content"] for message in record.get("messages", ())]
    return "\n".join(text[:EXCERPT] for text in texts)[:EXCERPT]


def guess_language(sample: str) -> str:
    """zh or en for a source of mixed languages: by the share of Chinese among the letters."""
    sample = sample[:2000]
    chinese = sum("\u4e00" <= c <= "\u9fff" for c in sample)
    latin = sum(c.isascii() and c.isalpha() for c in sample)
    # a Chinese character carries about as much as three letters
    return "zh" if chinese * 3 >= latin else "en"
