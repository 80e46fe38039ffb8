"""Norms of gradient, update and weights by group of parameters.

The groups are the parts of a decoder: embeddings, attention, ffn (experts or one dense layer), router, norms, head. A
parameter that is none of these is in `other`. A tied head is part of the embeddings.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.tensor import DTensor

from model.families import network

GROUPS = ("embeddings", "attention", "ffn", "router", "norms", "head", "other")
ROUTER = ("phi", "scale", "gate", "router")
"""Names on a router's path: Steel's own parameters, and the modules of transformers."""


def groups_of(lm: Any) -> dict[str, str]:
    """Parameter's name -> its group."""
    tables = {name for name, module in lm.named_modules() if isinstance(module, nn.Embedding)}
    norms = {name for name, module in lm.named_modules() if "Norm" in type(module).__name__}
    head = lm.get_output_embeddings()
    heads = set() if head is None else {id(p) for p in head.parameters()}
    inside = {id(p) for block in network.blocks(lm) for p in block.parameters()}
    found = {}
    for name, parameter in lm.named_parameters():
        owner, _, _ = name.rpartition(".")
        path = name.split(".")
        if owner in tables:
            found[name] = "embeddings"
        elif id(parameter) in heads:
            found[name] = "head"
        elif owner in norms:
            found[name] = "norms"
        elif any(part in ROUTER for part in path):
            found[name] = "router"
        elif any("attn" in part or "attention" in part for part in path):
            found[name] = "attention"
        else:
            found[name] = "ffn" if id(parameter) in inside else "other"
    return found


class Norms:
    """Of one optimizer step. `squares` are this rank's shares of squared norms, FP64 [3, groups]: to be added up."""

    def __init__(self, lm: Any):
        groups = groups_of(lm)
        self._parameters = list(lm.named_parameters())
        self._group = [GROUPS.index(groups[name]) for name, _ in self._parameters]
        self._before: list[Tensor] = []
        device = self._parameters[0][1].device
        # a tensor that several ranks hold is counted by each of them
        self._share = [1 / _holders(parameter) for _, parameter in self._parameters]
        self.squares = torch.zeros(3, len(GROUPS), dtype=torch.float64, device=device)

    def gradients(self) -> None:
        """Before clipping."""
        self._count(0, [_local(p.grad) if p.grad is not None else None for _, p in self._parameters])

    @torch.no_grad()
    def before(self) -> None:
        """Before the update: a copy of this rank's shards, 4 bytes a parameter of the shard."""
        self._before = [_local(p).clone() for _, p in self._parameters]

    @torch.no_grad()
    def after(self) -> None:
        """After the update."""
        now = [_local(p) for _, p in self._parameters]
        self._count(2, now)
        torch._foreach_sub_(self._before, now)
        self._count(1, self._before)
        self._before = []

    def _count(self, line: int, tensors: Sequence[Tensor | None]) -> None:
        some = [i for i, tensor in enumerate(tensors) if tensor is not None and tensor.numel()]
        if not some:
            return
        norms = torch.stack(torch._foreach_norm([tensors[i] for i in some])).double()
        share = torch.tensor([self._share[i] for i in some], dtype=torch.float64, device=norms.device)
        group = torch.tensor([self._group[i] for i in some], device=norms.device)
        self.squares[line].index_add_(0, group, norms.square() * share)


def numbers(squares: Sequence[float], *, updated: bool) -> dict[str, dict[str, float]]:
    """The line's entries, of the groups that the model has. `squares`: summed over the ranks, [3 * groups]."""
    gradient, update, weight = (squares[i * len(GROUPS) : (i + 1) * len(GROUPS)] for i in range(3))
    found: dict[str, dict[str, float]] = {"grad_norm_by_group": {}}
    for i, group in enumerate(GROUPS):
        if gradient[i] > 0 and math.isfinite(gradient[i]):
            found["grad_norm_by_group"][group] = math.sqrt(gradient[i])
    if updated:
        there = [i for i in range(len(GROUPS)) if weight[i] > 0]
        found["update_ratio_by_group"] = {GROUPS[i]: math.sqrt(update[i] / weight[i]) for i in there}
        found["weight_norm_by_group"] = {GROUPS[i]: math.sqrt(weight[i]) for i in there}
    return found


def _local(tensor: Tensor) -> Tensor:
    tensor = tensor.detach()
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor


def _holders(parameter: Tensor) -> int:
    """Ranks that hold the same shard."""
    if not isinstance(parameter, DTensor):
        return dist.get_world_size() if dist.is_initialized() else 1
    sizes = [parameter.device_mesh.size(i) for i, p in enumerate(parameter.placements) if p.is_replicate()]
    return math.prod(sizes)
