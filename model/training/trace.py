"""A trace of some steps by torch.profiler, of the first rank.

`profile_steps: [a, b]` traces the steps a to b (from 1, both included). A training that runs is asked by a file:

    echo 3 > <work_dir>/profile.request        the next 3 steps (an empty file: 3, at most 50)

Written to <work_dir>/logs/profile/: `steps-000101-000103.json` for Chrome's viewer or Perfetto, and beside it `….txt`, the
operators that took longest. Both appear complete. A traced step is slower and computes the same.
"""

from __future__ import annotations

import logging
import math
import os
import time
from pathlib import Path
from typing import Any

import torch
from torch.profiler import ProfilerActivity, profile

from model.training.config import TrainConfig
from model.training.parallel import World

log = logging.getLogger("steel.training")

REQUEST, FOLDER = "profile.request", "logs/profile"
USUAL, MOST = 3, 50
"""Steps of a request that names no number, and of any."""
LOOK_SECONDS = 1.0
"""Between two looks for a request: a shared file system is not asked at every step."""
ROWS = 40
"""Operators in the table."""


class Trace:
    """Of one training; does nothing on other ranks."""

    def __init__(self, config: TrainConfig, world: World, steps: int):
        """`steps`: of the whole training. What was asked for behind the last one is said."""
        self._work, self._active, self._device = Path(config.work_dir), world.first, world.device
        self._span = tuple(config.profile_steps or ())
        self._looked = time.monotonic()
        self._profiler: Any = None
        self._first = self._last = 0
        late = {
            "profile_steps": [step for step in self._span if step > steps],
            "export_steps": [step for step in config.export_steps if step > steps],
        }
        for name, some in late.items():
            if some and self._active:
                log.warning("%s: %s lies behind the last step of this training, %d", name, some, steps)

    def begin(self, step: int) -> None:
        """Before a step, counted from 1."""
        if not self._active or self._profiler is not None:
            return
        if self._span and self._span[0] <= step <= self._span[1]:
            self._first, self._last = step, self._span[1]
        elif count := self._asked():
            self._first, self._last = step, step + count - 1
        else:
            return
        activities = [ProfilerActivity.CPU]
        if self._device.type == "cuda":
            activities.append(ProfilerActivity.CUDA)
        self._profiler = profile(activities=activities)
        self._profiler.start()

    def end(self, step: int) -> None:
        """After a step."""
        if self._profiler is not None and step >= self._last:
            self._write(step)

    def close(self, step: int) -> None:
        """The training ends or stops after this step: what was traced is kept."""
        if self._profiler is not None:
            self._write(step)

    def _asked(self) -> int:
        now = time.monotonic()
        if now - self._looked < LOOK_SECONDS:
            return 0
        self._looked = now
        request = self._work / REQUEST
        try:
            text = request.read_text("utf-8", errors="replace").strip()
            request.unlink(missing_ok=True)
        except FileNotFoundError:
            return 0
        except OSError as error:
            log.warning(
                "%s cannot be read and removed (%s): no more requests are taken", request, error.strerror
            )
            self._looked = math.inf
            return 0
        if text and not (text.isdecimal() and 1 <= int(text) <= MOST):
            log.warning("%s holds %.40r, which is no number of steps from 1 to %d", request, text, MOST)
            return 0
        return int(text or USUAL)

    def _write(self, step: int) -> None:
        profiler, self._profiler = self._profiler, None
        if self._device.type == "cuda":
            torch.cuda.synchronize()
        profiler.stop()
        name = f"steps-{self._first:06d}-{step:06d}"
        folder = self._work / FOLDER
        try:
            folder.mkdir(parents=True, exist_ok=True)
            for suffix in ("json", "txt"):
                partial = folder / f"{name}.partial.{suffix}"
                if suffix == "json":
                    profiler.export_chrome_trace(str(partial))
                else:
                    order = "self_device_time_total" if self._device.type == "cuda" else "self_cpu_time_total"
                    table = profiler.key_averages().table(sort_by=order, row_limit=ROWS)
                    partial.write_text(f"steps {self._first} to {step} of the first rank\n{table}\n", "utf-8")
                os.replace(partial, folder / f"{name}.{suffix}")
        except OSError as error:  # a full disk costs the trace, not the run
            log.error("the trace of steps %d to %d is lost: %s", self._first, step, error)
            return
        log.info("steps %d to %d are traced in %s", self._first, step, folder / f"{name}.json")
