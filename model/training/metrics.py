"""metrics.jsonl: one JSON object a line, appended by the first rank while training goes on.

After a resume the lines beyond the checkpoint are dropped first, so that the file is one curve.
"""

from __future__ import annotations

import json
import logging
import os
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from model.training import lines
from model.training.config import ConfigError

log = logging.getLogger("steel.training")

PEAK_FLOPS = {
    r"B200|GB200": 2250e12, r"H20": 148e12, r"H100 PCIe": 756e12, r"H100 NVL": 835e12, r"H100|H200|H800|GH200": 989e12,
    r"A100|A800": 312e12, r"A40": 150e12, r"A30": 165e12, r"A10": 125e12, r"L40S": 362e12, r"L40": 181e12, r"L4": 121e12,
    r"RTX 4090": 165e12, r"RTX 3090": 71e12,
}  # fmt: skip
"""Dense BF16 of one GPU with FP32 sums, by words of its name (vendors' data sheets)."""
OF_THE_CLOCK = (
    "tokens_per_s", "tflops", "mfu", "eta_s", "data_wait", "host_wait_s", "host_wait_s_by_rank", "compute_wait_s",
    "compute_wait_s_by_rank", "memory_gb", "memory_gb_by_rank", "sampling_share",
)  # fmt: skip
"""Entries that say how fast and with how much memory; all others are the same in every run of the same settings."""


class Metrics:
    """The file of one work folder; does nothing on other ranks."""

    def __init__(self, path: Path, *, active: bool, step: int):
        """Keep the lines up to `step`, drop the rest (a line torn by a crash as well)."""
        self.lost = 0
        """Lines that could not be written."""
        self._file: int | None = None
        if not active:
            return
        try:
            kept = b"".join(line for line, entry in lines.read_raw(path) if entry["step"] <= step)
            if path.exists() and not path.read_bytes().startswith(
                kept
            ):  # a line in between was torn by a crash
                partial = path.with_name(path.name + ".partial")
                partial.write_bytes(kept)
                os.replace(partial, path)
            self._file = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
            self._end = len(kept)
            os.ftruncate(self._file, self._end)
        except OSError as error:
            raise ConfigError(f"work_dir: {path} cannot be read and written: {error.strerror}") from None

    def write(self, line: dict[str, Any]) -> None:
        """Append a line. One that finds the disk full is lost, and said: the curve is not worth the run."""
        if self._file is None:
            return
        text = _encode(line).encode()
        try:
            written = 0
            while written < len(text):
                written += os.pwrite(self._file, text[written:], self._end + written)
        except OSError as error:
            self.lost += 1
            log.error("a line of metrics.jsonl is lost (%d so far): %s", self.lost, error)
            os.ftruncate(self._file, self._end)
            return
        self._end += len(text)

    def close(self) -> None:
        if self._file is not None:
            os.close(self._file)


class Window:
    """What happened since the last line: means of the objective's numbers over their units, and speed."""

    def __init__(self, names: Sequence[str], state: Sequence[Any] | None = None):
        self._names = names
        self._sums, self._units = state or ([0.0] * len(names), 0.0)
        self._tokens = self._flops = self._seconds = 0.0
        self._made = self._units > 0

    def state(self) -> list[Any]:
        """What a checkpoint in mid-window keeps, so that the next line is the same after a resume."""
        return [self._sums, self._units]

    def add(
        self, counted: tuple[Sequence[float], float] | None, tokens: float, flops: float, seconds: float
    ) -> None:
        """One optimizer step, all ranks together. `counted`: the objective's sums and their units; None: the step was
        left out."""
        if counted is not None:
            sums, units = counted
            self._sums = [a + b for a, b in zip(self._sums, sums, strict=True)]
            self._units += units
            self._made = True
        self._tokens += tokens
        self._flops += flops
        self._seconds += seconds

    def close(self, devices: int, peak: float | None) -> dict[str, float]:
        """The line's numbers, the objective's only if a step was made; a new window begins. `mfu` only where the device's peak is known."""
        line = {}
        if self._made and not self._units:
            log.warning("no step since the last line had anything to predict: nothing was learned")
        if self._made:
            line = {name: s / max(1.0, self._units) for name, s in zip(self._names, self._sums, strict=True)}
        line["tokens_per_s"] = self._tokens / self._seconds
        line["tflops"] = self._flops / self._seconds / devices / 1e12
        if peak:
            line["mfu"] = line["tflops"] * 1e12 / peak
        self._sums, self._units, self._made = [0.0] * len(self._names), 0.0, False
        self._tokens = self._flops = self._seconds = 0.0
        return line


def peak_flops(device: torch.device) -> float | None:
    """The device's BF16 peak, or None where it is not known: of a CPU it never is."""
    return peak_of(torch.cuda.get_device_name(device)) if device.type == "cuda" else None


def peak_of(name: str) -> float | None:
    """The peak of a GPU that calls itself so, such as `NVIDIA H100 80GB HBM3`."""
    return next((peak for words, peak in PEAK_FLOPS.items() if re.search(rf"\b({words})\b", name)), None)


def _encode(line: dict[str, Any]) -> str:
    return json.dumps(line, ensure_ascii=False, allow_nan=False) + "\n"
