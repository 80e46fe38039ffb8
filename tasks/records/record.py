"""Unified records as texts: the one place in this room that knows their three shapes."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import orjson

from tasks.records import parts

Record = dict[str, Any]


def read(place: Path) -> Iterator[Record]:
    """The records of a folder or of one JSON-lines file, one at a time."""
    return map(orjson.loads, parts.lines(place))


def texts_of(record: Record) -> list[str]:
    """The texts that mappers see one by one: the text, or the content of each message."""
    if "messages" in record:
        return [message["content"] for message in record["messages"]]
    return [record["text"]]


def whole_text(record: Record) -> str:
    """Everything a model would read of the record, joined by newlines."""
    return "\n".join(_all_texts(record))


def chars(record: Record) -> int:
    """Characters of a record, as all accounting here counts them."""
    return length(_all_texts(record))


def _all_texts(record: Record) -> list[str]:
    """The texts and, of a preference, both replies."""
    return texts_of(record) + [record[key] for key in ("chosen", "rejected") if key in record]


def with_texts(record: Record, texts: Sequence[str]) -> Record:
    """The record with its texts replaced; its id stays, since it names the original."""
    if "messages" in record:
        turns = zip(record["messages"], texts, strict=True)
        return {**record, "messages": [{**message, "content": text} for message, text in turns]}
    return {**record, "text": texts[0]}


def length(texts: Iterable[str]) -> int:
    """Characters of some texts."""
    return sum(map(len, texts))


def dump(record: Any) -> bytes:
    """One JSON line."""
    return orjson.dumps(record, option=orjson.OPT_APPEND_NEWLINE)
