"""The lines of metrics.jsonl: read by the engine, and by all who follow it or look at it afterwards.

A killed process or a power cut leaves a line torn, also inside of a character, or NUL bytes in its place.
Such a line is skipped and told; the lines around it are read. Needs no torch.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Iterator, Mapping
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


def describe(entry: Mapping[str, Any], steps: int | None) -> str:
    """Where a training is, in a line: `step 120 of 700, loss 3.214, 45,120 tokens/s, MFU 41.2 %, ETA 0:03:20`."""
    if "step" not in entry:
        return "no step yet"
    parts = [f"step {entry['step']}" + (f" of {steps}" if steps else "")]
    if "loss" in entry:
        parts.append(f"loss {entry['loss']:.3f}")
    if "reward" in entry:
        parts.append(f"reward {entry['reward']:.3f}")
    if "tokens_per_s" in entry:
        parts.append(f"{entry['tokens_per_s']:,.0f} tokens/s")
    if "pairs_per_s" in entry:
        parts.append(f"{entry['pairs_per_s']:,.0f} pairs/s")
    if "mfu" in entry:
        parts.append(f"MFU {100 * entry['mfu']:.1f} %")
    if "eta_s" in entry:
        seconds = round(entry["eta_s"])
        days = f"{seconds // 86400} d " if seconds >= 86400 else ""
        parts.append(f"ETA {days}{seconds // 3600 % 24}:{seconds // 60 % 60:02d}:{seconds % 60:02d}")
    return ", ".join(parts)


def parse(line: bytes) -> dict[str, Any] | None:
    """The entry of a line: an object with its step; None if the line is torn or blank."""
    try:
        entry = json.loads(line.strip(b"\0\r\n ").decode("utf-8"))
    except (ValueError, RecursionError):  # UnicodeDecodeError is a ValueError
        return None
    whole = isinstance(entry, dict) and type(entry.get("step")) is int
    return entry if whole else None
