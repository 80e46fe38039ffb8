"""The unified record: what convert makes of every source and every later stage reads.

A record is one line of JSON (`parts.py` says where the lines lie), and the line begins with the id:

    {"id":"<32 hex digits>", …}

Readers rely on that: `id_of` takes the id from the first bytes without parsing the text behind it, and
`line_start` gives the bytes to search a file for. `dump` writes the keys in the order of the dict.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, NotRequired, TypedDict, final

import orjson

from tasks.records import parts

EXCERPT = 200
"""Characters of an opening."""
ID_BYTES = 16
_START = b'{"id":"'
_DIGITS = slice(len(_START), len(_START) + 2 * ID_BYTES)
_END = slice(_DIGITS.stop, _DIGITS.stop + 1)


class Message(TypedDict):
    """One turn of a dialogue."""

    role: Literal["system", "user", "assistant", "tool"]
    content: str
    loss: NotRequired[bool]
    """False: a reply that fine-tuning does not learn."""


class _Record(TypedDict):
    id: str
    """32 hex digits: the hash of source and content (`stable_id`)."""
    source: str
    language: str
    meta: dict[str, Any]
    """Scalars that the source tells; `at`, its place in the raw data, is always there."""


@final
class Text(_Record):
    """Prose."""

    kind: Literal["text"]
    text: str


@final
class Code(_Record):
    """A program."""

    kind: Literal["code"]
    text: str


@final
class Dialogue(_Record):
    """Turns in their order; fine-tuning learns the replies."""

    kind: Literal["dialogue"]
    messages: list[Message]


@final
class Preference(_Record):
    """A prompt and two replies to it, the better one and the worse one."""

    kind: Literal["preference"]
    messages: list[Message]
    chosen: str
    rejected: str


@final
class Question(TypedDict):
    """A question of a benchmark; it has no kind, because nothing is trained on it."""

    id: str
    benchmark: str
    subject: str
    split: str
    question: str
    choices: list[str]
    """Two to ten options; none: an open question."""
    answer: int | None
    """Index into choices; None where the benchmark hides it."""
    target: NotRequired[str]
    """The right answer to an open question."""
    meta: dict[str, Any]
    language: str


Record = Text | Code | Dialogue | Preference
Draft = Mapping[str, Any]
"""What a reader makes: a record or question without id and source; language only where the reader knows it."""


def read(place: Path | str) -> Iterator[Any]:
    """The records of a folder or of one JSON-lines file, one at a time; questions and dropped lines as well."""
    return map(orjson.loads, parts.lines(place))


def dump(record: Any) -> bytes:
    """One JSON line, its newline included."""
    return orjson.dumps(record, option=orjson.OPT_APPEND_NEWLINE)


def id_of(line: bytes) -> bytes:
    """The 16-byte id of a record's line; KeyError when it has none, ValueError when it is no id."""
    if line.startswith(_START) and line[_END] == b'"':
        return bytes.fromhex(line[_DIGITS].decode())
    return bytes.fromhex(orjson.loads(line)["id"])


def id_bytes(record: Mapping[str, Any]) -> bytes:
    """The 16-byte id of a parsed record."""
    return bytes.fromhex(record["id"])


def line_start(digits: str) -> bytes:
    """The bytes with which the line of a record begins whose id begins with these hex digits."""
    start = _START + digits.encode()
    return start + b'"' if len(digits) == 2 * ID_BYTES else start


def texts(record: Mapping[str, Any]) -> list[str]:
    """The texts that are cleaned one by one: the text, the content of each message, or the question."""
    if "messages" in record:
        return [message["content"] for message in record["messages"]]
    return [record["text"] if "text" in record else record["question"]]


def whole_text(record: Mapping[str, Any]) -> str:
    """Everything that a model would read of the record, joined by newlines."""
    return "\n".join(_all_texts(record))


def chars(record: Mapping[str, Any]) -> int:
    """Characters of everything that a model may be trained on or is asked; all accounts count this way."""
    return length(_all_texts(record))


def opening(record: Mapping[str, Any]) -> str:
    """The first EXCERPT characters of the record's content."""
    return "\n".join(text[:EXCERPT] for text in texts(record))[:EXCERPT]


def with_texts(record: Record, new: Sequence[str]) -> Record:
    """The record with its texts replaced; its id stays, because it names the original."""
    if "messages" in record:
        turns = zip(record["messages"], new, strict=True)
        return record | {"messages": [message | {"content": text} for message, text in turns]}
    return record | {"text": new[0]}


def length(some: Iterable[str]) -> int:
    """Characters of some texts."""
    return sum(map(len, some))


def content(record: Mapping[str, Any]) -> list[Any]:
    """The part of a record that gives it its identity: everything but meta and language."""
    kind = record["kind"]
    if kind in ("text", "code"):
        return [kind, record["text"]]
    turns = [[message["role"], message["content"]] for message in record["messages"]]
    if kind == "preference":
        return [kind, turns, record["chosen"], record["rejected"]]
    return [kind, turns]


def stable_id(source: str, identity: Sequence[Any]) -> bytes:
    """16 bytes: the hash of the JSON of source and identity."""
    return hashlib.blake2b(orjson.dumps([source, *identity]), digest_size=ID_BYTES).digest()


def _all_texts(record: Mapping[str, Any]) -> list[str]:
    """The texts, both replies of a preference and the choices of a question."""
    replies = [record[key] for key in ("chosen", "rejected") if key in record]
    return [*texts(record), *replies, *record.get("choices", ())]
