"""Parameters and floating-point operations of a model of transformers."""

from __future__ import annotations

from collections.abc import Callable

from torch import nn
from transformers import PreTrainedModel


def matrix_weights(lm: PreTrainedModel) -> float:
    """Weights that a token is multiplied with: no look-up tables, of the experts those it visits, and the head."""
    c = lm.config
    experts = getattr(c, "num_local_experts", None) or getattr(c, "num_experts", None) or 0
    share = getattr(c, "num_experts_per_tok", 0) / experts if experts else 1.0
    tables = {f"{name}.weight" for name, m in lm.named_modules() if isinstance(m, nn.Embedding)}
    total = 0.0
    for name, parameter in lm.named_parameters():
        if parameter.ndim > 1 and name not in tables:
            total += parameter.numel() * (share if ".experts." in name else 1.0)
    if c.tie_word_embeddings:
        total += lm.get_output_embeddings().weight.numel()
    return total


def flops_per_token(lm: PreTrainedModel) -> Callable[[int], float]:
    """Row length -> operations of a trained token: three times the forward pass; attention counted causally."""
    c = lm.config
    matrices = matrix_weights(lm)
    width = c.num_attention_heads * (getattr(c, "head_dim", None) or c.hidden_size // c.num_attention_heads)
    windows = [m.sliding_window for m in lm.modules() if isinstance(getattr(m, "sliding_window", None), int)]
    windows += [None] * (c.num_hidden_layers - len(windows))

    def flops(length: int) -> float:
        seen = sum(_keys(length, window) for window in windows[: c.num_hidden_layers])
        return 3 * (2 * matrices + 4 * width * seen)

    return flops


def _keys(length: int, window: int | None) -> float:
    """Keys that a query sees on average."""
    if window is None or window >= length:
        return (length + 1) / 2
    return window - window * (window - 1) / (2 * length)
