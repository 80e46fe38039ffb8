"""Glob patterns over relative paths: `*` and `?` stay inside a folder, `**` crosses folders."""

from __future__ import annotations

import re
from collections.abc import Iterable
from functools import cache


def matching(path: str, patterns: Iterable[str]) -> bool:
    """Whether a relative path (with forward slashes) matches one of the patterns."""
    return any(_compiled(pattern).fullmatch(path) for pattern in patterns)


@cache
def _compiled(pattern: str) -> re.Pattern[str]:
    parts = {"**/": "(?:[^/]+/)*", "**": ".*", "*": "[^/]*", "?": "[^/]"}
    return re.compile(
        "".join(parts.get(p) or re.escape(p) for p in re.findall(r"\*\*/|\*\*|[*?]|[^*?]+", pattern)),
        re.DOTALL,
    )
