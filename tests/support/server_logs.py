"""What the servers of a state folder complain about in their logs, where nobody looks."""

from __future__ import annotations

import re
from pathlib import Path

_WRONG = re.compile(r"(^|[ |])(ERROR|CRITICAL)\b|^Traceback \(most recent call last\)")


def errors(state: Path, services: tuple[str, ...] = ("prefect", "mlflow")) -> list[str]:
    """`<log>: <line>` for every error that the servers logged in this start and the one before.

    Raises FileNotFoundError if a server has no log: then nothing was looked at.
    """
    found = []
    for service in services:
        log = state / "logs" / f"{service}.log"
        previous = log.with_suffix(".previous.log")
        for path in [log, *([previous] if previous.exists() else [])]:
            lines = path.read_text("utf-8", "replace").splitlines()
            found += [f"{path.name}: {line}" for line in lines if _WRONG.search(line)]
    return found
