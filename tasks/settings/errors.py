"""Errors for people: one line that says what is wrong and what to do."""

from __future__ import annotations


class NodeError(RuntimeError):
    """A failure the user can act on: its message is shown in one line, without a traceback."""
