"""AdamW and the learning-rate schedules.

The rate is a function of the step alone, so nothing about it needs saving.

    wsd       warm-up, flat, then linear down over the last decay_share of the steps (MiniCPM, arXiv 2404.06395)
    cosine    warm-up, then half a cosine down
    linear    warm-up, then linear down
    constant  warm-up, then flat
"""

from __future__ import annotations

import math

import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.tensor import DTensor

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


def make_optimizer(model: nn.Module, optim: OptimConfig) -> torch.optim.AdamW:
    """Fused AdamW in two groups: matrices decay; norms, biases and the router do not."""
    tables = {name for name, module in model.named_modules() if isinstance(module, nn.Embedding)}
    decay, rest = [], []
    for name, parameter in model.named_parameters():
        owner, _, leaf = name.rpartition(".")
        plain = leaf in NO_DECAY or parameter.ndim < 2 or "norm" in owner.rpartition(".")[2]
        if owner in tables and not optim.decay_embeddings:
            plain = True
        (rest if plain else decay).append(parameter)
    groups = [
        {"params": decay, "weight_decay": optim.weight_decay},
        {"params": rest, "weight_decay": 0.0},
    ]
    return torch.optim.AdamW(groups, lr=optim.lr, betas=tuple(optim.betas), eps=optim.eps, fused=True)


def set_rate(optimizer: torch.optim.Optimizer, rate: float) -> None:
    for group in optimizer.param_groups:
        group["lr"] = rate


def local_gradients(model: nn.Module) -> list[torch.Tensor]:
    """This rank's shards of all gradients."""
    gradients = (p.grad for p in model.parameters() if p.grad is not None)
    return [g.to_local() if isinstance(g, DTensor) else g for g in gradients]


def clip(gradients: list[torch.Tensor], limit: float, extra: torch.Tensor) -> tuple[float, torch.Tensor]:
    """Scale the gradients to a global norm of at most `limit` (0: only measure).

    `extra` (FP64) is summed over the ranks in the same exchange: one message instead of two. Returns the norm before
    clipping and the summed `extra`.
    """
    squares = sum(n.double() ** 2 for n in torch._foreach_norm([g for g in gradients if g.numel()]))
    message = torch.cat([torch.as_tensor(squares, device=extra.device).double().reshape(1), extra])
    dist.all_reduce(message)
    norm = math.sqrt(message[0].item())
    if limit and norm > limit:
        torch._foreach_mul_(gradients, limit / (norm + 1e-6))
    return norm, message[1:]
