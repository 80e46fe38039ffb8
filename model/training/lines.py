"""The lines of metrics.jsonl: read by the engine, and by all who follow it or look at it afterwards.

A killed process or a power cut leaves a line torn, also inside of a character, or NUL bytes in its place.
Such a line is skipped and told; the lines around it are read. Needs no torch.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Iterator
from pathlib import Path
from typing import Any

log = logging.getLogger("steel.metrics")


def read(path: Path) -> Iterator[dict[str, Any]]:
    """The entries of the file in order; none if it does not exist. A warning says how many lines were torn."""
    for _, entry in read_raw(path):
        yield entry


def read_raw(path: Path) -> Iterator[tuple[bytes, dict[str, Any]]]:
    """As `read`, each entry after its line, which ends with a newline."""
    if not path.exists():
        return
    torn = 0
    with open(path, "rb") as lines:
        for line in lines:
            entry = parse(line)
            if entry is not None:
                yield line.strip(b"\0\r\n ") + b"\n", entry
            elif line.strip():
                torn += 1
    if torn:
        log.warning("%s: skipped %d line(s) that a crash has torn", path, torn)


def parse(line: bytes) -> dict[str, Any] | None:
    """The entry of a line: an object with its step; None if the line is torn or blank."""
    try:
        entry = json.loads(line.strip(b"\0\r\n ").decode("utf-8"))
    except (ValueError, RecursionError):  # UnicodeDecodeError is a ValueError
        return None
    whole = isinstance(entry, dict) and type(entry.get("step")) is int
    return entry if whole else None
