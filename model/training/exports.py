"""Exports at chosen steps, made while the training goes on.

    exports/step-000200/         as the export at the end, of the checkpoint of that step

At such a step a checkpoint is saved as always. A process of its own, on a CPU and with the lowest priority, then makes
the export of it (model.training.convert); the training waits for nothing, and keeps that checkpoint until it is done. A
folder without a suffix is complete. An export that fails is logged, and the training goes on.
"""

from __future__ import annotations

import contextlib
import logging
import os
import shutil
import subprocess
import sys
from pathlib import Path

from model.training.checkpoint import Checkpoints
from model.training.config import TrainConfig
from model.training.stop import StopFlag

log = logging.getLogger("steel.training")
WAIT_SECONDS = 1.0
"""Between two looks at whether to stop."""


class Exports:
    """The exports of one run; `active` on one rank."""

    def __init__(self, config: TrainConfig, checkpoints: Checkpoints, begin: int, *, active: bool):
        """`begin`: the step that the run goes on from; what was due before is made, if its checkpoint is there."""
        self._every, self._steps = config.export_every, set(config.export_steps)
        self._checkpoints, self._active = checkpoints, active
        self.folder = Path(config.work_dir) / "exports"
        self._child: subprocess.Popen[str] | None = None
        self._now = 0
        if active:
            for path in self.folder.glob("*.partial"):  # of a run that was killed
                shutil.rmtree(path)
            self.held.update(at for at in checkpoints.complete() if at <= begin and self._missing(at))

    @property
    def held(self) -> set[int]:
        """Steps whose export is not there yet."""
        return self._checkpoints.held

    def due(self, step: int) -> bool:
        """Whether the model after so many steps is to be exported (all ranks agree)."""
        return step in self._steps or bool(self._every and step % self._every == 0)

    def add(self, step: int) -> None:
        """The checkpoint of this step is about to be saved, and its export wanted."""
        if self._active and self._missing(step):
            self.held.add(step)

    def poll(self) -> None:
        """Look after the export that is being made, and begin the next; never waits."""
        if not self._active or not self.held:
            return
        if self._child is not None:
            if self._child.poll() is None:
                return
            self._ended()
        ready = sorted(self.held & self._checkpoints.complete().keys())
        if ready:
            self._begin(ready[0])

    def finish(self, stop: StopFlag) -> bool:
        """Wait for all of them, with nothing else left to do; False: told to stop meanwhile, and started again the run
        makes the rest. Call it when the last checkpoint is written."""
        while self._active and self.held:
            self.poll()
            if self._child is None:
                for step in sorted(self.held):
                    log.error("step %d was not exported: its checkpoint could not be saved", step)
                self.held.clear()
            elif stop.requested:
                self.stop()
                log.info("stopped by a signal: %d exports are left to make", len(self.held))
                return False
            else:
                with contextlib.suppress(subprocess.TimeoutExpired):
                    self._child.wait(WAIT_SECONDS)
        return True

    def stop(self) -> None:
        """End what is being made; a run that is started again makes it anew."""
        if self._child is not None:
            self._child.kill()
            self._child.communicate()
            self._child = None

    def _missing(self, step: int) -> bool:
        return self.due(step) and not (self.folder / _name(step)).is_dir()

    def _begin(self, step: int) -> None:
        command = [sys.executable, "-m", "model.training.convert", "--parent", str(os.getpid())]
        paths = [self._checkpoints.folder / _name(step), self.folder / _name(step)]
        alone = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT")
        environment = {k: v for k, v in os.environ.items() if k not in alone}
        environment |= {"CUDA_VISIBLE_DEVICES": "", "OMP_NUM_THREADS": "1"}
        self._now = step
        self._child = subprocess.Popen(
            ["nice", "-n", "19", *command, *map(str, paths)],
            env=environment, cwd=Path(__file__).parents[2],
            stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True,
        )  # fmt: skip

    def _ended(self) -> None:
        assert self._child is not None
        _, said = self._child.communicate()
        if self._child.returncode:
            last = (said.strip().splitlines() or [f"exit code {self._child.returncode}"])[-1]
            log.error("step %d was not exported: %s", self._now, last)
        else:
            log.info("exported step %d to %s", self._now, self.folder / _name(self._now))
        self.held.discard(self._now)
        self._child = None


def _name(step: int) -> str:
    return f"step-{step:06d}"
