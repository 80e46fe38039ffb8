"""Parameters and floating-point operations of a model of transformers."""

from __future__ import annotations

from collections.abc import Callable

from torch import nn
from transformers import PreTrainedConfig, PreTrainedModel

from model.families import network

VISITED = ("num_experts_per_tok", "moe_topk", "moe_k", "top_k_experts")
"""Fields with the number of experts that a token visits; some hold one for each layer."""


def matrix_weights(lm: PreTrainedModel) -> float:
    """Weights that a token is multiplied with: no look-up tables, of the experts those it visits, and the head."""
    c = lm.config
    tables = {f"{name}.weight" for name, m in lm.named_modules() if isinstance(m, nn.Embedding)}
    total = 0.0
    for name, parameter in lm.named_parameters():
        # experts' biases are stacked, too
        if parameter.ndim > 1 and name not in tables and not name.endswith("bias"):
            total += parameter.numel() * _visited(c, parameter)
    if c.tie_word_embeddings:
        total += lm.get_output_embeddings().weight.numel()
    return total


def _visited(config: PreTrainedConfig, weight: nn.Parameter) -> float:
    """Share of a weight that a token is multiplied with: of experts, which are stacked along a first of three dimensions,
    those it visits. 1 where no field says how many those are."""
    found = next((n for name in VISITED if (n := getattr(config, name, None))), None)
    if weight.ndim != 3 or found is None:
        return 1.0
    return (found[0] if isinstance(found, list) else found) / len(weight)


def flops_per_token(lm: PreTrainedModel) -> Callable[[int], float]:
    """Row length -> operations of a trained token: three times the forward pass; attention counted causally."""
    matrices = matrix_weights(lm)
    widths = [_width(layer) for layer in lm.config.per_layer_config]
    windows = [_window(block) for block in network.blocks(lm)]
    if len(windows) != len(widths):  # a block may hold several layers (LongCat-Flash)
        windows = [min(windows, key=lambda w: w or float("inf"), default=None)] * len(widths)

    def flops(length: int) -> float:
        seen = sum(width * _keys(length, window) for width, window in zip(widths, windows, strict=True))
        return 3 * (2 * matrices + 4 * seen)

    return flops


def _window(block: nn.Module) -> int | None:
    """The sliding window of a layer, in tokens; None: it sees its whole document."""
    found = (getattr(module, "sliding_window", None) for module in block.modules())
    return next((window for window in found if isinstance(window, int)), None)


def _width(layer: PreTrainedConfig) -> float:
    """Mean of what the keys and the values of all query heads have of a layer."""
    head = getattr(layer, "head_dim", None) or layer.hidden_size // layer.num_attention_heads
    keys, values = getattr(layer, "qk_head_dim", None) or head, getattr(layer, "v_head_dim", None) or head
    return layer.num_attention_heads * (keys + values) / 2


def _keys(length: int, window: int | None) -> float:
    """Keys that a query sees on average."""
    if window is None or window >= length:
        return (length + 1) / 2
    return window - window * (window - 1) / (2 * length)
