"""What is looked at every `detail_every` steps only, because it costs something: norms by group, the experts' use,
each rank's computing time, and memory.

A step that is looked at gives the same weights as one that is not: hooks only read, and what they compute stays out of
the graph. It costs one message, one question to the device, a copy of the rank's weights, and each router once more.
"""

from __future__ import annotations

from typing import Any

import torch

from model.families import network
from model.training import experts, groups
from model.training.config import TrainConfig
from model.training.pace import BlockTimer, memory
from model.training.parallel import World


class Detail:
    """Decides which steps are looked at; `step` gives a Look for those."""

    def __init__(self, config: TrainConfig, world: World, scorer: Any, steps: int):
        self._every, self._steps, self._world, self._scorer = config.detail_every, steps, world, scorer
        self._hooks = not config.compile  # a hook would break the graph of a compiled block

    def step(self, step: int) -> Look | None:
        """Of the step with this index; the last one is looked at, too."""
        done = step + 1
        if not self._every or (done % self._every and done != self._steps):
            return None
        return Look(self._world, self._scorer, hooks=self._hooks)


class Look:
    """One optimizer step, from before its first micro-step."""

    def __init__(self, world: World, scorer: Any, *, hooks: bool):
        self._world, lm = world, scorer.lm
        self._lm = lm
        self._experts = experts.Experts(lm) if hooks else None
        self._timer = BlockTimer(network.blocks(lm), world.device) if hooks and world.size > 1 else None
        self._updated = False
        for part in (self._experts, self._timer):
            if part is not None:
                part.watch()

    def batch(self, batch: Any) -> None:
        """The micro-batch that comes next."""
        if self._experts is not None:
            self._experts.batch(getattr(batch, "valid", None), batch.input_ids.shape[1])

    def gradients(self) -> None:
        """They are there, and not yet clipped."""
        for part in (self._experts, self._timer):
            if part is not None:
                part.rest()
        self._norms = groups.Norms(self._lm)
        self._norms.gradients()

    def before_update(self) -> None:
        self._norms.before()

    def after_update(self) -> None:
        self._norms.after()
        self._updated = True

    def close(self) -> dict[str, Any]:
        """The line's entries, the same on every rank."""
        rank, size, device = self._world.rank, self._world.size, self._world.device
        own = torch.zeros(2, size, dtype=torch.float64)
        own[0, rank] = self._timer.seconds() if self._timer is not None else 0.0
        now = memory(device)
        own[1, rank] = now.get("peak", now.get("rss", 0.0))
        parts = [self._norms.squares.flatten(), own.flatten().to(device)]
        if self._experts is not None:
            parts.append(self._experts.table.flatten())
        message = torch.cat(parts)
        torch.distributed.all_reduce(message)
        values = message.tolist()
        squares, values = values[: 3 * len(groups.GROUPS)], values[3 * len(groups.GROUPS) :]
        seconds, gigabytes, table = values[:size], values[size : 2 * size], values[2 * size :]
        line: dict[str, Any] = groups.numbers(squares, updated=self._updated)
        if self._experts is not None:
            line |= experts.numbers(table, self._experts.layers, self._experts.count)
        if self._timer is not None:
            by_rank = [round(max(seconds) - each, 6) for each in seconds]
            line |= {"compute_wait_s": max(by_rank), "compute_wait_s_by_rank": by_rank}
        if size > 1:
            line["memory_gb_by_rank"] = [round(each, 4) for each in gigabytes]
        return line
