"""NEFTune: uniform noise on the embeddings while a model is trained (arXiv 2310.05914).

A token of a document of L tokens gets noise from [-a, a) in each of its d dimensions, a = alpha / sqrt(L d). L is the
document's own length, as in the paper, whatever row it is packed into. Each row has a generator of its own, seeded by
(seed, step, the row's number): a run that is resumed, or cut into other ranks and micro-batches, gets the same noise.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from model.training.batch import Batch


class Neftune:
    """Adds the noise to what a scorer's embedding gives, within `on`; validation, outside of it, has none."""

    def __init__(self, lm: nn.Module, alpha: float, seed: int):
        """`lm`: with get_input_embeddings. alpha 0: nothing is touched."""
        self.alpha, self.seed = alpha, seed
        self._noise: Tensor | None = None
        if alpha:
            embeddings = lm.get_input_embeddings()  # type: ignore[operator]
            self.width: int = embeddings.embedding_dim
            embeddings.register_forward_hook(self._add)

    @contextmanager
    def on(self, batch: Batch, step: int) -> Iterator[None]:
        """The forward pass of a micro-batch."""
        self._noise = noise(batch, step, self.width, self.alpha, self.seed) if self.alpha else None
        try:
            yield
        finally:
            self._noise = None

    def _add(self, _module: nn.Module, _inputs: Any, output: Tensor) -> Tensor:
        return output if self._noise is None else output + self._noise.to(output.dtype)


def noise(batch: Batch, step: int, width: int, alpha: float, seed: int) -> Tensor:
    """FP32 [b, T, d] on the batch's device; 0 where there is padding."""
    rows, length = batch.input_ids.shape
    found = torch.zeros(rows, length, width, device=batch.tokens.device)
    for row, number in enumerate(batch.blocks.tolist()):
        if number < 0:
            continue  # a filler row
        key = hashlib.sha256(f"neftune:{seed}:{step}:{number}".encode()).digest()
        generator = torch.Generator(found.device).manual_seed(int.from_bytes(key[:7], "little"))
        found[row].uniform_(-1, 1, generator=generator)
    return found.mul_((alpha / math.sqrt(width) / lengths(batch).sqrt()).unsqueeze(2))


def lengths(batch: Batch) -> Tensor:
    """FP32 [b, T]: tokens of the document that each position is of; infinity where there is padding."""
    rows, width = batch.tokens.shape
    places = torch.arange(width, device=batch.tokens.device)
    begins = torch.zeros(rows, width, dtype=torch.long, device=places.device)
    begins.view(-1)[batch.starts] = 1
    document = begins.cumsum(1) - 1
    real = places < batch.valid.unsqueeze(1)
    counts = torch.zeros(rows, width, device=places.device).scatter_add_(1, document, real.float())
    return counts.gather(1, document).masked_fill(~real, math.inf)[:, :-1]
