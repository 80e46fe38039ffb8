"""Muon: the step of a matrix is its averaged gradient with all singular values near one (Jordan et al. 2024).

    M = lerp(M, G, 1 - momentum);  U = lerp(G, M, momentum)                 Nesterov's average, FP32, on shards
    O = NewtonSchulz5(U)                                                    on whole matrices
    W = (1 - rate * weight_decay) * W - rate * 0.2 * sqrt(max(m, n)) * O

The last factor gives the step of an m x n matrix the mean size of AdamW's, so AdamW's rates serve (Liu et al. 2025,
arXiv 2502.16982). torch.optim.Muon with `match_rms_adamw` computes the same of one unsharded matrix, and is the reference
of the tests.

Which parameters: the matrices inside of the blocks, but no router. Each expert is a matrix by itself: Steel's
[experts * width, hidden] is taken as [experts, width, hidden], a parameter with three dimensions as it stands.

Over ranks: parameters of one shape are dealt in turn; the ranks send each owner its shards (all-to-all), the owner
orthogonalises whole matrices in one batch and sends the shards back. So the work is shared, a rank holds a few whole
matrices at a time, and the arithmetic does not depend on the number of ranks. Copies (HSDP) do the same work each.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Mapping
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.tensor import DTensor, Shard

from model.families import network
from model.steel.soft_moe import SteelExperts

COEFFICIENTS = (3.4445, -4.7750, 2.0315)
STEPS = 5
EPS = 1e-7
"""As in torch.optim.Muon."""
SCALE = 0.2
ELEMENTS = 1 << 26
"""Numbers of whole matrices that a rank holds at a time, if one parameter has no more."""


def matrices(lm: Any) -> dict[nn.Parameter, tuple[int, int, int]]:
    """Parameters that are updated by Muon -> (number, rows, columns) of their matrices."""
    found: dict[nn.Parameter, tuple[int, int, int]] = {}
    for block in network.blocks(lm):
        for module in block.modules():
            if "Router" in type(module).__name__:
                continue
            count = module.count if isinstance(module, SteelExperts) else 1
            for name, parameter in module.named_parameters(recurse=False):
                if name == "phi" or parameter.ndim not in (2, 3):
                    continue
                rows, columns = parameter.shape[-2:]
                number = parameter.shape[0] if parameter.ndim == 3 else count
                found[parameter] = (number, rows // count, columns)
    return found


def update(
    parameters: list[nn.Parameter],
    shapes: list[tuple[int, int, int]],
    state: Mapping[nn.Parameter, dict[str, Tensor]],
    group: Mapping[str, Any],
    momentum: float,
    dtype: torch.dtype,
) -> None:
    """One step of `parameters`, whose matrices have `shapes`, with their gradients; all ranks."""
    grads = [_local(p.grad) for p in parameters]
    averages = [_local(state[p]["momentum"]) for p in parameters]
    torch._foreach_lerp_(averages, grads, 1 - momentum)
    ahead = [u.to(dtype) for u in torch._foreach_lerp(grads, averages, momentum)]
    weights = [_local(p) for p in parameters]
    torch._foreach_mul_(weights, 1 - group["lr"] * group["weight_decay"])
    alike: dict[Any, list[int]] = defaultdict(list)
    for i, parameter in enumerate(parameters):
        alike[tuple(parameter.shape), shapes[i]].append(i)
    turn = 0
    for (size, shape), indices in alike.items():
        group_of = _shard_group(parameters[indices[0]])
        at_once = max(1, ELEMENTS // math.prod(size)) * (group_of.size() if group_of else 1)
        for begin in range(0, len(indices), at_once):
            some = indices[begin : begin + at_once]
            steps = _orthogonal_shards([ahead[i] for i in some], size, shape, group_of, turn)
            turn += len(some)
            for i, step in zip(some, steps, strict=True):
                weights[i].sub_(step, alpha=group["lr"] * SCALE * math.sqrt(max(shape[1:])))


def orthogonal(stack: Tensor) -> Tensor:
    """[number, m, n] -> the same with singular values near one (0.7 to 1.2), in the dtype of `stack`."""
    a, b, c = COEFFICIENTS
    tall = stack.shape[1] > stack.shape[2]
    x = stack.mT if tall else stack
    x = x / torch.linalg.vector_norm(x, dim=(1, 2), keepdim=True).clamp(min=EPS)
    for _ in range(STEPS):
        gram = x @ x.mT
        x = torch.baddbmm(x, torch.baddbmm(gram, gram, gram, beta=b, alpha=c), x, beta=a)
    return x.mT if tall else x


def _orthogonal_shards(
    shards: list[Tensor],
    size: tuple[int, ...],
    shape: tuple[int, int, int],
    group: dist.ProcessGroup | None,
    turn: int,
) -> list[Tensor]:
    """The shards of the orthogonal matrices of parameters of one size, from theirs; `turn`: who owns the first."""
    if group is None:
        whole = torch.stack(shards).view(-1, *shape[1:])
        return list(orthogonal(whole).reshape(len(shards), *size).unbind())
    world, height, width = group.size(), size[0], math.prod(size[1:])
    chunk = -(-height // world)  # rows of a shard, as torch.chunk cuts; the last ones may have fewer, or none
    owners = [(turn + i) % world for i in range(len(shards))]
    order = sorted(range(len(shards)), key=owners.__getitem__)
    counts = [owners.count(rank) for rank in range(world)]
    mine = counts[group.rank()]
    sent = shards[0].new_zeros(len(shards), chunk, width)
    for place, i in enumerate(order):
        sent[place, : len(shards[i])] = shards[i].flatten(1)
    received = sent.new_empty(world * mine, chunk, width)
    dist.all_to_all_single(received, sent, [mine] * world, counts, group=group)
    whole = received.view(world, mine, chunk, width).transpose(0, 1).reshape(mine, world * chunk, width)
    back = torch.zeros_like(whole)
    if mine:
        stack = whole[:, :height].reshape(-1, *shape[1:])
        back[:, :height] = orthogonal(stack).reshape(mine, height, width)
    reply = back.view(mine, world, chunk, width).transpose(0, 1).reshape(world * mine, chunk, width)
    returned = torch.empty_like(sent)
    dist.all_to_all_single(returned, reply, counts, [mine] * world, group=group)
    places = {i: place for place, i in enumerate(order)}
    return [returned[places[i], : len(shard)].view_as(shard) for i, shard in enumerate(shards)]


def _shard_group(parameter: nn.Parameter) -> dist.ProcessGroup | None:
    """The ranks among which a parameter is cut; None: it is whole here."""
    if not isinstance(parameter, DTensor):
        return None
    cut = [i for i, placement in enumerate(parameter.placements) if isinstance(placement, Shard)]
    if not cut or parameter.device_mesh.size(cut[0]) == 1:
        return None
    return parameter.device_mesh.get_group(cut[0])


def _local(tensor: Tensor) -> Tensor:
    return tensor._local_tensor if isinstance(tensor, DTensor) else tensor
