"""The optimizer, the clipping of gradients, and the learning-rate schedules.

AdamW, or Muon for matrices beside it (muon.py). Both read and write each rank's shards as plain tensors: on DTensors
every operation looks at layouts first, which costs the host more than the update itself. Their state is kept as DTensors,
so that a checkpoint can be read by any number of ranks.

The rate is a function of the step alone, so nothing about it needs saving.

    wsd       warm-up, flat, then linear down over the last decay_share of the steps (MiniCPM, arXiv 2404.06395)
    cosine    warm-up, then half a cosine down
    linear    warm-up, then linear down
    constant  warm-up, then flat
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.tensor import DTensor

from model.training import muon
from model.training.config import OptimConfig

NO_DECAY = ("phi", "scale", "bias")


def learning_rate(optim: OptimConfig, step: int, steps: int) -> float:
    """The rate of optimizer step `step` (counted from 0) of `steps`."""
    if step < optim.warmup_steps:
        return optim.lr * (step + 1) / optim.warmup_steps
    if optim.schedule == "constant":
        return optim.lr
    first = optim.warmup_steps
    if optim.schedule == "wsd":
        first = decay_begins(optim, steps)
    done = min(1.0, max(0.0, (step - first) / max(1, steps - first)))
    share = 0.5 * (1 + math.cos(math.pi * done)) if optim.schedule == "cosine" else 1 - done
    return optim.lr * (optim.min_lr_ratio + (1 - optim.min_lr_ratio) * share)


def decay_begins(optim: OptimConfig, steps: int) -> int:
    """wsd: the step (counted from 0) from which on the rate falls."""
    return max(optim.warmup_steps, steps - round(optim.decay_share * steps))


class Optimizer(torch.optim.Optimizer):
    """AdamW with torch's fused update; Muon for the groups that have `matrices`.

    State of a parameter: `step`, `exp_avg`, `exp_avg_sq`, or `momentum`; FP32, sharded as the parameter is.
    """

    def __init__(self, groups: Iterable[dict[str, Any]], optim: OptimConfig, dtype: torch.dtype):
        """`dtype`: what Muon's products are computed in."""
        super().__init__(groups, {"lr": optim.lr, "factor": 1.0})
        self.optim, self.dtype = optim, dtype

    @torch.no_grad()
    def prepare(self) -> None:
        """Make the state that does not exist yet, as before the first step."""
        for group in self.param_groups:
            parameters = group["params"]
            names = ("momentum",) if "matrices" in group else ("exp_avg", "exp_avg_sq")
            made = [p for p in parameters if not self.state[p]]
            for parameter in made:
                self.state[parameter].update({name: torch.zeros_like(parameter) for name in names})
            if made and "matrices" not in group:
                # one count for a group: its parameters are always updated together
                count = torch.zeros((), dtype=torch.float32, device=local(parameters[0]).device)
                for parameter in parameters:
                    self.state[parameter]["step"] = count

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # type: ignore[override]
        """One update with the gradients that are there."""
        self.prepare()
        for group in self.param_groups:
            # a model may have parameters that no loss reaches
            which = [i for i, p in enumerate(group["params"]) if p.grad is not None]
            if not which:
                continue
            parameters = [group["params"][i] for i in which]
            if "matrices" in group:
                shapes = [group["matrices"][i] for i in which]
                muon.update(parameters, shapes, self.state, group, self.optim.momentum, self.dtype)
            else:
                self._adamw(parameters, group)

    def _adamw(self, parameters: list[nn.Parameter], group: dict[str, Any]) -> None:
        states = [self.state[p] for p in parameters]
        count = states[0]["step"]
        count += 1
        torch._fused_adamw_(
            [local(p) for p in parameters],
            [local(p.grad) for p in parameters],
            [local(s["exp_avg"]) for s in states],
            [local(s["exp_avg_sq"]) for s in states],
            [],
            [count] * len(parameters),
            lr=group["lr"],
            beta1=self.optim.betas[0],
            beta2=self.optim.betas[1],
            weight_decay=group["weight_decay"],
            eps=self.optim.eps,
            amsgrad=False,
            maximize=False,
        )


def make_optimizer(model: nn.Module, optim: OptimConfig, dtype: torch.dtype = torch.bfloat16) -> Optimizer:
    """In two groups: matrices decay; norms, biases and the router do not. Muon takes those of the blocks out of the first."""
    tables = {name for name, module in model.named_modules() if isinstance(module, nn.Embedding)}
    matrices = muon.matrices(getattr(model, "lm", model)) if optim.name == "muon" else {}
    decay, rest, orthogonal = [], [], []
    for name, parameter in model.named_parameters():
        owner, _, leaf = name.rpartition(".")
        plain = leaf in NO_DECAY or parameter.ndim < 2 or "norm" in owner.rpartition(".")[2]
        if owner in tables and not optim.decay_embeddings:
            plain = True
        if parameter in matrices and not plain:
            orthogonal.append(parameter)
        else:
            (rest if plain else decay).append(parameter)
    factor = 1.0 if optim.adamw_lr is None or not optim.lr else optim.adamw_lr / optim.lr
    groups: list[dict[str, Any]] = [
        {"params": decay, "weight_decay": optim.weight_decay, "factor": factor},
        {"params": rest, "weight_decay": 0.0, "factor": factor},
    ]
    if optim.name == "muon":
        groups.append({
            "params": orthogonal,
            "weight_decay": optim.weight_decay,
            "matrices": [matrices[p] for p in orthogonal],
        })  # fmt: skip
    return Optimizer(groups, optim, dtype)


def set_rate(optimizer: torch.optim.Optimizer, rate: float) -> None:
    for group in optimizer.param_groups:
        group["lr"] = rate * group["factor"]


def local(tensor: Tensor) -> Tensor:
    """This rank's shard, as a plain tensor that shares its memory."""
    return tensor._local_tensor if isinstance(tensor, DTensor) else tensor


def local_gradients(model: nn.Module) -> list[Tensor]:
    """This rank's shards of all gradients."""
    return [local(p.grad) for p in model.parameters() if p.grad is not None]


def clip(gradients: list[Tensor], limit: float, extra: Tensor, copies: int = 1) -> tuple[float, Tensor]:
    """Scale the gradients to a global norm of at most `limit` (0: only measure).

    `extra` (FP64) is summed over the ranks in the same exchange: one message instead of two. `copies`: how many ranks
    hold the same shards. Returns the norm before clipping and the summed `extra`.
    """
    norms = torch._foreach_norm([g for g in gradients if g.numel()])
    squares = torch.stack(norms).double().square().sum() if norms else torch.zeros((), dtype=torch.float64)
    message = torch.cat([squares.to(extra.device).reshape(1) / copies, extra])
    dist.all_reduce(message)
    norm = math.sqrt(message[0].item())
    if limit and norm > limit:
        torch._foreach_mul_(gradients, limit / (norm + 1e-6))
    return norm, message[1:]
