"""Keys and values of a layer, and what its FFN must remember between calls of a cached generation.

`prefix` keeps its running sums, `merge` the weights in force and the running mean of the current segment; the other
kinds keep nothing and use transformers' own layers. All state is a tuple of tensors with the batch first, so that beam
search and batching treat it as they do keys and values. It cannot be cut back to an earlier token.
This file is copied into every exported model folder: it imports nothing of this repository.
"""

from __future__ import annotations

from torch import Tensor
from transformers.cache_utils import Cache, DynamicCache, DynamicLayer


class SteelCacheLayer(DynamicLayer):
    """A growing layer with the FFN's state beside keys and values."""

    is_croppable = False

    def __init__(self):
        super().__init__()
        self.ffn: tuple[Tensor, ...] | None = None

    def reset(self) -> None:
        super().reset()
        self.ffn = None

    def reorder_cache(self, beam_idx: Tensor) -> None:
        super().reorder_cache(beam_idx)
        self._select(beam_idx)

    def batch_select_indices(self, indices: Tensor) -> None:
        super().batch_select_indices(indices)
        self._select(indices)

    def batch_repeat_interleave(self, repeats: int) -> None:
        super().batch_repeat_interleave(repeats)
        if self.ffn is not None:
            self.ffn = tuple(t.repeat_interleave(repeats, dim=0) for t in self.ffn)

    def crop(self, tokens_to_remove: int) -> None:
        if tokens_to_remove:
            raise ValueError("This kind of FFN keeps running sums, from which no token can be taken back.")

    def _select(self, rows: Tensor) -> None:
        if self.ffn is not None:
            self.ffn = tuple(t.index_select(0, rows.to(t.device)) for t in self.ffn)


def with_ffn_state(cache: Cache, layers: int) -> None:
    """Give an empty cache layers that remember the FFN's state; one in use must have them already."""
    if cache.layers and all(isinstance(layer, SteelCacheLayer) for layer in cache.layers):
        return
    if type(cache) is not DynamicCache or cache.get_seq_length():
        raise ValueError(
            f"A {type(cache).__name__} cannot hold the state of this kind of FFN: start with an empty DynamicCache."
        )
    cache.layers = [SteelCacheLayer() for _ in range(layers)]
