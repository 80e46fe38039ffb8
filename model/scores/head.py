"""Hidden states to log-probabilities: only where a token is asked for, and in fp32."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

HEAD_ELEMENTS = 1 << 25
"""Logits held at once (positions times vocabulary): 128 MiB in fp32."""

CAPS = ("final_logit_softcapping", "logits_soft_cap")  # Gemma 2, RecurrentGemma

Picked = tuple[list[float], list[bool]]
"""Log-probabilities of the tokens asked for, and whether each is the likeliest."""


class Head:
    """The output layer in fp32, with the factor and the soft cap of the model's own forward.

    bf16 logits are a sixteenth apart at best where they matter: options would tie.
    """

    def __init__(self, model: Any):
        layer = model.get_output_embeddings()
        self._weight = layer.weight.float()
        bias = getattr(layer, "bias", None)
        self._bias = None if bias is None else bias.float()
        self._factor, self._cap = finish_of(model.config)

    def logits(self, states_ND: Tensor) -> Iterator[Tensor]:
        """fp32 logits [chunk, vocabulary], a chunk of positions at a time."""
        per_chunk = max(1, HEAD_ELEMENTS // len(self._weight))
        for start in range(0, len(states_ND), per_chunk):
            chunk = functional.linear(states_ND[start : start + per_chunk].float(), self._weight, self._bias)
            yield finished(chunk, self._factor, self._cap)


class Given:
    """For models whose own forward is asked for logits: the states are the logits already."""

    def logits(self, states_NV: Tensor) -> Iterator[Tensor]:
        yield states_NV


def finish_of(config: Any) -> tuple[float, float | None]:
    """(factor, soft cap) that transformers' forward puts behind the output layer, by the names configurations have."""
    factor = 1.0
    if (scale := getattr(config, "logit_scale", None)) is not None:  # Cohere
        factor *= float(scale)
    if (divisor := getattr(config, "logits_scaling", None)) is not None:  # Granite
        factor /= float(divisor)
    caps = (getattr(config, name, None) for name in CAPS)
    cap = next((cap for cap in caps if cap), None)
    return factor, float(cap) if cap else None


def finished(logits: Tensor, factor: float, cap: float | None) -> Tensor:
    """Products of hidden states and output layer -> the model's logits, by what `finish_of` says."""
    if factor != 1.0:
        logits = logits * factor
    return logits if cap is None else torch.tanh(logits / cap) * cap


def pick(
    head: Head | Given, states: Tensor, targets: Sequence[Sequence[int]], likeliest: bool = False
) -> Picked:
    """Log-softmax of every row of `states` [N, D] at its targets, flat and in their order.

    The head runs once a row, however many targets it has. Without `likeliest` the second list is empty.
    """
    values: list[float] = []
    best: list[bool] = []
    done = 0
    for logits in head.logits(states):
        here = targets[done : done + len(logits)]
        done += len(logits)
        rows = torch.tensor([r for r, tokens in enumerate(here) for _ in tokens], device=logits.device)
        columns = torch.tensor([t for tokens in here for t in tokens], device=logits.device)
        if not len(rows):
            continue
        chosen = logits[rows, columns]
        values += (chosen - logits.logsumexp(-1)[rows]).tolist()
        if likeliest:
            best += (logits.argmax(-1)[rows] == columns).tolist()
    return values, best
