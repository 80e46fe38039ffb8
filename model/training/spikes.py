"""Steps that are left out: a gradient that is not finite, or a loss or gradient far above the last steps'.

One bad batch, or a bit that flipped on its way, need not end a run of weeks, nor spoil its weights. A step that is left
out counts as a step, its data as read; weights and moments stay as they were. At most `max_skipped` in a row: more than
that is no accident. Off by default.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from model.training.config import OptimConfig

WINDOW = 128
"""Steps whose loss and gradient norm are remembered."""
ENOUGH = 16
"""So many of them must be known before any can be called a spike."""


class Skips:
    """Which steps to leave out; `state` goes into the checkpoint, so a resumed run leaves out the same ones."""

    def __init__(self, optim: OptimConfig, state: Mapping[str, Any] | None = None):
        self._limit, self._factor = optim.max_skipped, optim.spike_factor
        state = state or {"skipped": 0, "in_row": 0, "losses": [], "norms": []}
        self.skipped: int = state["skipped"]
        """Steps left out since the start of training."""
        self._in_row: int = state["in_row"]
        self._losses, self._norms = list(state["losses"]), list(state["norms"])

    @property
    def active(self) -> bool:
        return self._limit > 0

    def state(self) -> dict[str, Any]:
        return {
            "skipped": self.skipped, "in_row": self._in_row, "losses": self._losses, "norms": self._norms
        }  # fmt: skip

    def reason(self, loss: float, norm: float) -> str | None:
        """Why a step is to be left out; None: it is made. The values are the same on every rank."""
        reason = None
        if not math.isfinite(norm) or (self.active and not math.isfinite(loss)):
            reason = f"its gradient is not finite (norm {norm}, loss {loss})"
        elif self.active and self._factor:
            for name, value, last in (("loss", loss, self._losses), ("gradient norm", norm, self._norms)):
                mean = sum(last) / len(last) if len(last) >= ENOUGH else math.inf
                if value > self._factor * mean:
                    reason = f"its {name} {value:.4g} is more than {self._factor:g} times the mean {mean:.4g}"
                    break
        if reason is None:
            self._in_row = 0
            if self.active:
                self._losses, self._norms = [*self._losses, loss][-WINDOW:], [*self._norms, norm][-WINDOW:]
        return reason

    def skip(self) -> bool:
        """Count a step that is to be left out. False: too many in a row (or none are allowed)."""
        self._in_row += 1
        if self._in_row > self._limit:
            return False
        self.skipped += 1
        return True
