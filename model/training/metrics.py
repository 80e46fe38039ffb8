"""metrics.jsonl: one JSON object a line, appended by the first rank while training goes on.

After a resume the lines beyond the checkpoint are dropped first, so that the file is one curve.
"""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from model.training import lines

PEAK_FLOPS = {"H200": 989e12, "H100": 989e12, "H800": 989e12, "A100": 312e12, "A800": 312e12}
"""Dense BF16 of one GPU, by a part of its name (vendor's data sheets)."""


class Metrics:
    """The file of one work folder; does nothing on other ranks."""

    def __init__(self, path: Path, *, active: bool, step: int):
        """Keep the lines up to `step`, drop the rest (a line torn by a crash as well)."""
        self._file = None
        if not active:
            return
        kept = [line for line, entry in lines.read_raw(path) if entry["step"] <= step]
        partial = path.with_name(path.name + ".partial")
        partial.write_bytes(b"".join(kept))
        os.replace(partial, path)
        self._file = path.open("a", encoding="utf-8")

    def write(self, line: dict[str, Any]) -> None:
        if self._file is not None:
            self._file.write(_encode(line))
            self._file.flush()

    def close(self) -> None:
        if self._file is not None:
            self._file.close()


class Window:
    """What happened since the last line: means of the objective's numbers over their units, and speed."""

    def __init__(self, names: Sequence[str], state: Sequence[Any] | None = None):
        self._names = names
        self._sums, self._units = state or ([0.0] * len(names), 0.0)
        self._tokens = self._flops = self._seconds = 0.0

    def state(self) -> list[Any]:
        """What a checkpoint in mid-window keeps, so that the next line is the same after a resume."""
        return [self._sums, self._units]

    def add(self, sums: Sequence[float], units: float, tokens: float, flops: float, seconds: float) -> None:
        """One optimizer step, all ranks together."""
        self._sums = [a + b for a, b in zip(self._sums, sums, strict=True)]
        self._units += units
        self._tokens += tokens
        self._flops += flops
        self._seconds += seconds

    def close(self, devices: int, peak: float | None) -> dict[str, float]:
        """The line's numbers; a new window begins. `mfu` only where the device's peak is known."""
        line = {name: s / max(1.0, self._units) for name, s in zip(self._names, self._sums, strict=True)}
        line["tokens_per_s"] = self._tokens / self._seconds
        line["tflops"] = self._flops / self._seconds / devices / 1e12
        if peak:
            line["mfu"] = line["tflops"] * 1e12 / peak
        self._sums, self._units = [0.0] * len(self._names), 0.0
        self._tokens = self._flops = self._seconds = 0.0
        return line


def peak_flops(device: torch.device) -> float | None:
    """The device's BF16 peak, or None where it is not known."""
    if device.type != "cuda":
        return None
    name = torch.cuda.get_device_name(device)
    return next((peak for part, peak in PEAK_FLOPS.items() if part in name), None)


def _encode(line: dict[str, Any]) -> str:
    return json.dumps(line, ensure_ascii=False, allow_nan=False) + "\n"
