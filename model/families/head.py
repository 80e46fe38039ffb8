"""From hidden states to logits, and the auxiliary loss of experts."""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel

from model.families.configuration import FamilyError
from model.scores.head import finish_of

WEIGHTS = ("router_aux_loss_coef", "aux_loss_coef")
"""Fields with the weight of the load-balancing loss."""


def with_head(lm: PreTrainedModel, hidden: Tensor) -> tuple[Tensor, Tensor]:
    """hidden [N, D] -> ([N, D'], weight [V, D']), whose product are the model's logits before a soft cap: a factor goes
    into the hidden states, a bias is one more column."""
    head = lm.get_output_embeddings()
    factor, _ = finish_of(lm.config)  # probe.py finds a factor that it does not know
    if factor != 1.0:
        hidden = hidden * factor
    if getattr(head, "bias", None) is None:
        return hidden, head.weight
    one = hidden.new_ones(len(hidden), 1)
    return torch.cat([hidden, one], 1), torch.cat([head.weight, head.bias[:, None]], 1)


def soft_cap(lm: PreTrainedModel) -> float | None:
    """The logits l of its head become cap tanh(l / cap) (Gemma 2)."""
    return finish_of(lm.config)[1]


def auxiliary_weight(lm: PreTrainedModel) -> float:
    """Of the load-balancing loss; 0: the model has none, or (transformers' default) it is off."""
    if not getattr(lm.config, "output_router_logits", False):
        return 0.0
    if _balance(lm) is None:
        raise FamilyError(
            f"{lm.config.model_type}: output_router_logits is set, but it has no load-balancing loss"
        )
    weight = next((w for name in WEIGHTS if (w := getattr(lm.config, name, None)) is not None), None)
    if weight is None:
        raise FamilyError(
            f"{lm.config.model_type}: output_router_logits is set, but no field weighs the load-balancing loss"
        )
    return float(weight)


def auxiliary_loss(lm: PreTrainedModel, router_logits: Any, real: Tensor) -> Tensor:
    """The model's own load-balancing loss of a micro-batch; real [B, T]: which positions are no padding."""
    balance, config = _balance(lm), lm.config
    assert balance is not None
    experts = getattr(config, "num_local_experts", None) or config.num_experts
    return balance(router_logits, experts, config.num_experts_per_tok, real)


def _balance(lm: PreTrainedModel) -> Callable[..., Tensor] | None:
    own = next(c for c in type(lm).__mro__ if not c.__name__.startswith("FSDP"))
    return getattr(sys.modules[own.__module__], "load_balancing_loss_func", None)
