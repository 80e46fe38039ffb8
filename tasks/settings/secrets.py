"""Addresses that hold a secret: seen, and kept out of what is written.

A setting is a parameter of the flow: Prefect's pages show it, MLflow keeps it, manifests and reports repeat it. So an
address with a user or password before the host, or with a token or signature in its query, is refused where
settings are read. Texts of other programs (errors, mostly) are passed through `stripped`.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from pathlib import PurePath
from typing import Any
from urllib.parse import unquote

_URL = re.compile(r"\b[A-Za-z][A-Za-z0-9+.\-]*://[^\s'\"<>]+")
_PARTS = re.compile(r"(?P<scheme>[^:]+)://(?P<netloc>[^/?#\\]*)(?P<path>[^?#]*)(?P<query>[?#].*)?", re.DOTALL)
_WORDS = (
    r"(?:[A-Za-z0-9]+[-_.])*(?:access|api|auth|client|private|secret|security|session|refresh|id)?[-_]?"
    r"(?:token|key|apikey|secret|password|passwd|passphrase|pwd|pass|credentials?|signature|sig|hmac|auth|authorization|jwt|bearer)"
)
_NAME = re.compile(rf"(?:{_WORDS}|awsaccesskeyid|key[-_]pair[-_]id|policy)")
_MORE = "give it by an environment variable, or fetch the files yourself (hub: folder)"


def _either_case(pattern: str) -> str:
    """The same pattern for capital letters too; a JSON schema has no flags, and its letters in brackets are both already."""
    outside = re.split(r"(\[[^\]]*\])", pattern)
    return "".join(
        part
        if part.startswith("[")
        else re.sub(r"[a-z]", lambda m: f"[{m.group()}{m.group().upper()}]", part)
        for part in outside
    )


SCHEMA = rf"^[^:]+://[^/?#]*@|[?&;#]{_either_case(_NAME.pattern)}="
"""Of an address with a secret, for a JSON schema: Prefect's server then refuses the parameter before it is kept."""


def inside(text: str) -> str:
    """Which part of an address in `text` is a secret, in words that do not repeat it; "" if none is."""
    return next((what for url in _URL.findall(text) if (what := _secret(url))), "")


def complaint(text: str) -> str:
    """One line about a text with a secret in an address; "" for a good one."""
    what = inside(text)
    return f"an address with {what} would be kept and shown: {_MORE}" if what else ""


def anywhere(value: Any) -> str:
    """`complaint` of the first text that has one, in a tree of mappings and lists."""
    return next(filter(None, map(complaint, _texts(value))), "")


def stripped(text: str) -> str:
    """The text, with what is secret in its addresses replaced by `***`."""
    return _URL.sub(lambda found: _without(found.group()), text)


def _texts(value: Any) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, PurePath):
        yield str(value).replace(":/", "://", 1)  # a path holds no `//`
    elif isinstance(value, Mapping):
        for key, item in value.items():
            yield from _texts(key)
            yield from _texts(item)
    elif isinstance(value, list | tuple | set | frozenset):
        for item in value:
            yield from _texts(item)


def _secret(url: str) -> str:
    parts = _PARTS.fullmatch(url)
    if parts is None:
        return ""
    user, at, _ = unquote(parts["netloc"]).rpartition("@")
    # git's ssh://git@host names an account, not a secret; http has no use for a name alone but a token
    if at and (":" in user or parts["scheme"].lower() in ("http", "https", "ftp")):
        return "a user or password before the host"
    if _not_a_port(parts["netloc"]):
        return "a user or password before the host"
    names = (unquote(pair.partition("=")[0]) for pair in _pairs(parts["query"] or "") if "=" in pair)
    return next((f"`{name[:40]}=` in its query" for name in names if _NAME.fullmatch(name.lower())), "")


def _not_a_port(netloc: str) -> bool:
    """True where a password holds a `/` that is not encoded: what looks like the port is its beginning."""
    _, colon, port = netloc.rpartition("]")[2].rpartition(":")
    return bool(colon) and not re.fullmatch(r"[0-9]*", port)


def _pairs(query: str) -> list[str]:
    return [pair for pair in re.split(r"[?&;#]", query) if pair]


def _without(url: str) -> str:
    parts = _PARTS.fullmatch(url)
    if parts is None:
        return url
    if _not_a_port(parts["netloc"]) or "%" in parts["netloc"]:
        return f"{parts['scheme']}://***"
    user, at, host = parts["netloc"].rpartition("@")
    query = re.sub(
        r"(?P<mark>[?&;#])(?P<name>[^=?&;#]*)=(?P<value>[^?&;#]*)",
        lambda m: f"{m['mark']}{m['name']}=***" if _NAME.fullmatch(unquote(m["name"]).lower()) else m.group(),
        parts["query"] or "",
    )
    return f"{parts['scheme']}://{'***@' * bool(user and at)}{host}{parts['path']}{query}"
