"""Digests of code, kept between processes: to parse all modules costs seconds, to compare their bytes a tenth of that.

A memo holds for one state of our packages, byte for byte, and for one Python; any other state begins a new one.
"""

from __future__ import annotations

import atexit
import contextlib
import hashlib
import sys
import threading
from collections.abc import Callable
from functools import cache
from pathlib import Path

from tasks.settings.files import read_memo, write_json
from tasks.stage import reading

_digests: dict[str, str] = {}
_lock = threading.Lock()


def remembered(key: str, make: Callable[[], str]) -> str:
    """The digest of that name, made if it is not known of this state of the code."""
    known = _known()
    if key not in known:
        known[key] = make()
        with _lock:
            if not _digests:
                atexit.register(_save)
            _digests[key] = known[key]
    return known[key]


def forget() -> None:
    """Look at the files anew (tests change them)."""
    _digests.clear()
    atexit.unregister(_save)
    for cached in (_state, _known):
        cached.cache_clear()


def place() -> Path:
    return reading.ROOT / ".steel" / "code-digests.json"


@cache
def _known() -> dict[str, str]:
    memo = read_memo(place())
    return dict(memo["digests"]) if memo.get("state") == _state() else {}


@cache
def _state() -> str:
    """sha256 over every file of our packages, and the version of Python, which decides what a syntax tree looks like."""
    found = hashlib.sha256(sys.version.encode())
    for package in reading.OURS:
        for path in sorted((reading.ROOT / package).rglob("*")):
            if path.is_file() and "__pycache__" not in path.parts:
                content = path.read_bytes()
                found.update(f"\n{path.relative_to(reading.ROOT).as_posix()} {len(content)}\n".encode())
                found.update(content)
    return found.hexdigest()


def _save() -> None:
    """With what other processes have noted since; a checkout that cannot be written to does without."""
    if _state.__wrapped__() != _state():
        return  # changed while it was read
    memo = read_memo(place())
    digests = {**(memo.get("digests", {}) if memo.get("state") == _state() else {}), **_digests}
    with contextlib.suppress(OSError):
        write_json(place(), {"state": _state(), "digests": digests})
