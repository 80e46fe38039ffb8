"""Checkpoints: weights, AdamW's two moments and a few numbers, by torch.distributed.checkpoint.

    checkpoints/step-000200/     one file per rank, .metadata, and state.json

A checkpoint is written as step-000200.partial and renamed when every rank is done, so a folder without that suffix is
complete. It can be read by any number of ranks. There is no random state in it: the order of data, the learning rate
and everything else follow from the step.
"""

from __future__ import annotations

import json
import logging
import re
import shutil
import warnings
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import torch.distributed.checkpoint as dcp
from torch import Tensor, nn

from model.training.config import ConfigError

log = logging.getLogger("steel.training")
NAME = re.compile(r"step-(\d+)")
PARTIAL = ".partial"


class Checkpoints:
    """The checkpoints of one work folder."""

    def __init__(self, folder: Path, keep: int):
        self.folder, self.keep = folder, keep

    def complete(self) -> dict[int, Path]:
        """Step -> folder, oldest first."""
        found = {}
        for path in self.folder.glob("step-*"):
            match = NAME.fullmatch(path.name)
            if match and (path / "state.json").is_file():
                found[int(match[1])] = path
        return dict(sorted(found.items()))

    def save(
        self,
        step: int,
        model: nn.Module,
        optimizer: torch.optim.Optimizer,
        state: dict[str, Any],
        spare: int | None = None,
    ) -> None:
        """Write the checkpoint taken before optimizer step `step` (all ranks), then drop the oldest ones, but for the
        one of step `spare`."""
        final = self.folder / f"step-{step:06d}"
        partial = final.with_name(final.name + PARTIAL)
        first = dist.get_rank() == 0
        if first:
            shutil.rmtree(partial, ignore_errors=True)
            partial.mkdir(parents=True)
        dist.barrier()
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            dcp.save(_tensors(model, optimizer), checkpoint_id=partial)
        dist.barrier()
        if first:
            (partial / "state.json").write_text(
                json.dumps({**state, "step": step}, indent=1, sort_keys=True) + "\n"
            )
            shutil.rmtree(final, ignore_errors=True)
            partial.rename(final)
            for old in [path for at, path in self.complete().items() if at != spare][: -self.keep]:
                shutil.rmtree(old)
        dist.barrier()
        log.info("checkpoint at step %d", step)

    def newest(self) -> Path | None:
        """The folder of the newest complete checkpoint."""
        return next(reversed(self.complete().values()), None)


def read_state(path: Path) -> dict[str, Any]:
    """The numbers of a checkpoint: `step`, `tokens`, `loader`, …"""
    return json.loads((path / "state.json").read_text("utf-8"))


def load(path: Path, model: nn.Module, optimizer: torch.optim.Optimizer) -> None:
    """Put a checkpoint's weights and moments into model and optimizer (all ranks, any number of them)."""
    tensors = _tensors(model, optimizer)
    saved = dcp.FileSystemReader(path).read_metadata().state_dict_metadata
    for name, tensor in tensors.items():
        shape = getattr(saved.get(name), "size", None)
        if shape != tensor.shape:
            found = "is missing" if shape is None else f"has the shape {tuple(shape)}"
            raise ConfigError(
                f"{path}: {name} {found}, this run's model needs {tuple(tensor.shape)}: the checkpoint is of another model"
            )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        dcp.load(tensors, checkpoint_id=path)
    step = read_state(path)["step"]
    for parameter in model.parameters():
        optimizer.state[parameter]["step"].fill_(step)
    log.info("resumed from %s", path)


def _tensors(model: nn.Module, optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    """Name -> (sharded) tensor, moments included; moments that do not exist yet are made."""
    tensors = {}
    for name, parameter in model.named_parameters():
        state = optimizer.state[parameter]
        if not state:
            state["step"] = torch.zeros((), dtype=torch.float32, device=parameter.device)
            state["exp_avg"] = torch.zeros_like(parameter)
            state["exp_avg_sq"] = torch.zeros_like(parameter)
        tensors[f"weight.{name}"] = parameter.detach()
        tensors[f"exp_avg.{name}"] = state["exp_avg"]
        tensors[f"exp_avg_sq.{name}"] = state["exp_avg_sq"]
    return tensors
