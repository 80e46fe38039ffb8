"""The training loss by source: what each source's documents cost per target, over all ranks and micro-steps.

The loss of every target is known anyway (loss.py). It is added up on the device and travels with the gradient's norm
(optim.clip), so this costs neither a message nor a question to the device.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from model.training.batch import IGNORED, Batch


class SourceLoss:
    """Sums of -log p and numbers of targets. Without names it does nothing."""

    def __init__(
        self,
        names: Sequence[str],
        device: torch.device,
        state: Mapping[str, Sequence[float]] | None = None,
    ):
        """`names`: by number (gather.Rows.sources); `state`: of a checkpoint in mid-window."""
        self._names = list(names)
        self._table = torch.zeros(2, len(names) + 1, dtype=torch.float64, device=device)  # the last: no name
        self._window = [list((state or {}).get(name, (0.0, 0.0))) for name in self._names]

    @property
    def active(self) -> bool:
        return bool(self._names)

    def room(self, batch: Batch) -> Tensor | None:
        """FP32 [targets], for the loss to fill; None: nothing is asked for."""
        if not self.active or batch.sources is None:
            return None
        return torch.empty(batch.targets, dtype=torch.float32, device=self._table.device)

    def add(self, batch: Batch, each: Tensor) -> None:
        """Take the micro-batch's -log p, in reading order."""
        labels = batch.labels.flatten()
        rows = torch.nonzero_static(labels != IGNORED, size=batch.targets).squeeze(1)
        number = batch.target_sources.flatten()[rows]
        self._table[0].index_add_(0, number, each.double())
        self._table[1].index_add_(0, number, torch.ones_like(each, dtype=torch.float64))

    def take(self) -> Tensor:
        """FP64 [2 * names]: this rank's sums of the step, to be added up over the ranks."""
        if not self.active:
            return self._table.new_zeros(0)
        sums = self._table[:, :-1].reshape(-1).clone()
        self._table.zero_()
        return sums

    def count(self, sums: Sequence[float]) -> None:
        """The step's sums over all ranks."""
        count = len(self._names)
        for window, loss, targets in zip(self._window, sums[:count], sums[count:], strict=True):
            window[0] += loss
            window[1] += targets

    def state(self) -> dict[str, list[float]]:
        """What a checkpoint in mid-window keeps."""
        return {name: list(sums) for name, sums in zip(self._names, self._window, strict=True)}

    def close(self) -> dict[str, dict[str, float]]:
        """Nats per target since the last time, of the sources that were seen; a new window begins."""
        seen = {name: s / n for name, (s, n) in zip(self._names, self._window, strict=True) if n}
        self._window = [[0.0, 0.0] for _ in self._names]
        return {"loss_by_source": seen} if seen else {}
