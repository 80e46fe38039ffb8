"""How a step used the experts: the router's entropy and each expert's load, by layer.

    w_te     the weight with which expert e acts on token t, adding up to 1 over the experts
    load_e   mean over the tokens of w_te                                1 / n each: even use
    entropy  mean over the tokens of -sum_e p_te log p_te / log n        1: undecided, 0: one expert a token

Steel's Soft MoE, whatever the kind: w = p = C, the softmax over all slots (model/steel/soft_moe.py). The router is asked a
second time, outside of the graph. Models of transformers with a top-k router: w is what the router gives its choices
(normalised), p the softmax over all experts. Padding is left out. Sums stay on the device.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import _disable_current_modes

from model.steel.soft_moe import SteelFFN


class Experts:
    """The routers of a model, looked at while `watch`ed. `table`: FP64 [layers, experts + 2]: loads, entropy, tokens."""

    def __init__(self, lm: Any):
        self._steel = [m for m in lm.modules() if isinstance(m, SteelFFN) and m.routed]
        self._others, self._index = ([], 0) if self._steel else _routers(lm)
        self.layers = len(self._steel) + len(self._others)
        config = lm.config
        names = ("num_experts", "num_local_experts", "n_routed_experts")
        self.count = (
            next((n for name in names if (n := getattr(config, name, None))), 0) if self.layers else 0
        )
        # experts that hand a token on as it is (LongCat-Flash, arXiv 2509.01322)
        self.count += (getattr(config, "zero_expert_num", None) or 0) if self.count else 0
        if self.count < 2:
            self.layers = self.count = 0
        device = next(lm.parameters()).device
        self.table = torch.zeros(self.layers, self.count + 2, dtype=torch.float64, device=device)
        self._real: Tensor | None = None
        self._hooks: list[Any] = []

    def watch(self) -> None:
        """From now on the forward passes count."""
        if not self.layers:
            return
        for layer, ffn in enumerate(self._steel):
            self._hooks.append(ffn.register_forward_pre_hook(self._of_steel(layer)))
        for layer, router in enumerate(self._others):
            self._hooks.append(router.register_forward_hook(self._of_router(layer)))

    def batch(self, valid: Tensor | None, length: int) -> None:
        """The micro-batch that comes next. valid [b]: real tokens of each row; None: all are."""
        self._real = None
        if valid is not None:
            self._real = (torch.arange(length, device=valid.device) < valid[:, None]).flatten()

    def rest(self) -> None:
        for hook in self._hooks:
            hook.remove()
        self._hooks = []

    def _of_steel(self, layer: int) -> Any:
        def hook(ffn: SteelFFN, arguments: tuple[Any, ...]) -> None:
            if not in_backward():
                with _aside():
                    weights_NE = ffn.combine_weights(arguments[0].detach().flatten(0, -2))
                    self._add(layer, weights_NE, weights_NE)

        return hook

    def _of_router(self, layer: int) -> Any:
        def hook(router: nn.Module, arguments: tuple[Any, ...], output: Any) -> None:
            if not in_backward():
                with _aside():
                    self._add(layer, *_of_output(output, self._index))

        return hook

    def _add(self, layer: int, weights_NE: Tensor, chances_NE: Tensor) -> None:
        real = self._real
        if real is None or len(real) != len(weights_NE):
            real = torch.ones(len(weights_NE), dtype=torch.bool, device=weights_NE.device)
        real_N1 = real.unsqueeze(1)
        entropy_N = -torch.special.xlogy(chances_NE, chances_NE).sum(-1)
        load = torch.where(real_N1, weights_NE, 0).sum(0, dtype=torch.float64)
        rest = torch.stack([torch.where(real, entropy_N, 0).sum(dtype=torch.float64), real.sum().double()])
        self.table[layer] += torch.cat([load, rest])


def numbers(table: list[float], layers: int, count: int) -> dict[str, Any]:
    """The line's entries. `table`: summed over the ranks, [layers * (experts + 2)]."""
    loads, entropies = [], []
    for layer in range(layers):
        *load, entropy, tokens = table[layer * (count + 2) : (layer + 1) * (count + 2)]
        if tokens:
            total = sum(load) or 1.0
            loads.append([round(x / total, 6) for x in load])
            entropies.append(round(entropy / tokens / math.log(count), 6))
    if not loads:
        return {}
    return {
        "router_entropy": sum(entropies) / len(entropies),
        "expert_load_max": max(map(max, loads)),
        "expert_load_min": min(map(min, loads)),
        "router_entropy_by_layer": entropies,
        "expert_load_by_layer": loads,
    }


@contextmanager
def _aside() -> Iterator[None]:
    """Out of the graph, and unseen by selective checkpointing, which counts the operators of a block."""
    with torch.no_grad(), _disable_current_modes():
        yield


def in_backward() -> bool:
    """Whether a forward pass is run again for a backward one (activation checkpointing)."""
    return torch._C._current_graph_task_id() != -1


def _routers(lm: Any) -> tuple[list[nn.Module], int]:
    """The modules whose outputs transformers records as router logits, and where in the output they are."""
    recorded = getattr(lm.base_model, "_can_record_outputs", None) or {}
    recorder = recorded.get("router_logits")
    if isinstance(recorder, list | tuple):
        recorder = recorder[0] if recorder else None
    target = getattr(recorder, "target_class", recorder)
    if not isinstance(target, type):
        return [], 0
    return [m for m in lm.modules() if isinstance(m, target)], getattr(recorder, "index", 0)


def _of_output(output: Any, index: int) -> tuple[Tensor, Tensor]:
    """(weights [N, E], chances [N, E]) of what a router returned."""
    parts = output if isinstance(output, tuple | list) else (output,)
    logits_NE = parts[index].detach().flatten(0, -2).float()
    chances_NE = logits_NE.softmax(-1)
    choice_NK = next((p for p in parts if isinstance(p, Tensor) and not p.is_floating_point()), None)
    if choice_NK is None:
        return chances_NE, chances_NE
    choice_NK = choice_NK.flatten(0, -2).long()
    weight_NK = next(
        (p for p in parts if isinstance(p, Tensor) and p.is_floating_point() and p.numel() == choice_NK.numel()),
        torch.ones_like(choice_NK, dtype=torch.float32),
    )  # fmt: skip
    weight_NK = weight_NK.detach().view(choice_NK.shape).float()
    weight_NK = weight_NK / weight_NK.sum(-1, keepdim=True).clamp_min(1e-12)
    return torch.zeros_like(chances_NE).scatter_add_(1, choice_NK, weight_NK), chances_NE
