"""What the servers of a state folder complain about in their logs, where nobody looks."""

from __future__ import annotations

import re
from pathlib import Path

_ENTRY = re.compile(r"^(\d\d:\d\d:\d\d\.\d+ \||\d{4}/\d\d/\d\d |[A-Z]+: )")
_WRONG = re.compile(r"(^|[ |])(ERROR|CRITICAL)\b|^Traceback \(most recent call last\)", re.M)
_KNOWN = (
    # Prefect 3.8 reads and then writes in one deferred transaction in several of its loops. SQLite refuses the write at
    # once when another one came between, whatever the timeout. Each is tried again: the worker connects, the loop
    # comes round
    ("prefect.server", "database is locked"),
)


def errors(state: Path, services: tuple[str, ...] = ("prefect", "mlflow")) -> list[str]:
    """`<log>: <first line> … <last line>` for every error that the servers logged in this start and the one before.

    Raises FileNotFoundError if a server has no log: then nothing was looked at.
    """
    found = []
    for service in services:
        log = state / "logs" / f"{service}.log"
        previous = log.with_suffix(".previous.log")
        for path in [log, *([previous] if previous.exists() else [])]:
            for lines in _entries(path.read_text("utf-8", "replace")):
                text = "\n".join(lines)
                if _WRONG.search(text) and not any(all(part in text for part in parts) for parts in _KNOWN):
                    found.append(f"{path.name}: {' … '.join(dict.fromkeys((lines[0], lines[-1])))}")
    return found


def _entries(text: str) -> list[list[str]]:
    """The lines of a log, those of one message together."""
    entries: list[list[str]] = []
    for line in filter(str.strip, text.splitlines()):
        if entries and not _ENTRY.match(line):
            entries[-1].append(line)
        else:
            entries.append([line])
    return entries
