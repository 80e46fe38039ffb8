"""Errors for people: one line that says what is wrong and what to do."""

from __future__ import annotations

from pydantic import ValidationError

from tasks.settings import secrets


class NodeError(RuntimeError):
    """A failure the user can act on: its message is shown in one line, without a traceback."""


def complaint(error: Exception, below: str = "") -> str:
    """A pydantic error's first complaint as `place: what is wrong (and n more)`; else the error's first line.

    `below` is the dotted place of the value that was validated.
    """
    if not isinstance(error, ValidationError):
        return (str(error).splitlines() or [type(error).__name__])[0]
    first = error.errors()[0]
    place = ".".join([*filter(None, [below]), *map(str, first["loc"])]) or "the whole"
    more = f" (and {error.error_count() - 1} more)" if error.error_count() > 1 else ""
    if first["type"] == "extra_forbidden":
        return f"there is no setting {place!r}{more}"
    return f"{place}: {first['msg'].removeprefix('Value error, ')}{more}"


def one_line(error: BaseException) -> str:
    """An error's message without its line breaks and without secrets in addresses, at most 300 characters of it."""
    return " ".join(secrets.stripped(str(error)).split())[:300] or type(error).__name__
