"""Steps of a training as benches time them: CPU seconds at their beginnings, the process's memory beyond what was loaded.

What benches of the engine (bench/train_engine.py, bench/posttrain_sides.py) share; each contender is a process of its own.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np


def watch(owner: Any, name: str) -> list[float]:
    """CPU seconds at each call of a method, from now on."""
    begins: list[float] = []
    method = getattr(owner, name)

    def watched(*args: Any, **kwargs: Any) -> Any:
        begins.append(time.process_time())
        return method(*args, **kwargs)

    setattr(owner, name, watched)
    return begins


def train(trainer: Any) -> tuple[list[float], list[float]]:
    """Run one of transformers' trainers: CPU seconds at the beginnings of its steps, and their losses."""
    from transformers import TrainerCallback

    begins, losses = [], []

    class Clock(TrainerCallback):
        def on_step_begin(self, *_: Any, **__: Any) -> None:
            begins.append(time.process_time())

        def on_log(self, *_: Any, logs: dict[str, float], **__: Any) -> None:
            losses.extend([float(logs["loss"])] if "loss" in logs else [])

    trainer.add_callback(Clock())
    trainer.train()
    return begins, losses


def forget_peak() -> int:
    """Have the kernel begin anew with the process's largest size; its size now, in bytes."""
    Path("/proc/self/clear_refs").write_text("5")
    return _status("VmRSS")


def result(begins: Sequence[float], before: int, losses: Sequence[float], warm: int) -> dict[str, Any]:
    """`seconds` of a step (median, without the first `warm`), `memory` in bytes beyond `before`, `losses`."""
    times = np.diff(begins)[warm:]
    return {
        "seconds": float(np.median(times)),
        "memory": _status("VmHWM") - before,
        "losses": list(losses),
    }


def _status(field: str) -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(field))
