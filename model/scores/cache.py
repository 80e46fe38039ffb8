"""Keys and values of a beginning, in the hands of many sequences.

Where all layers are plain attention, nothing is copied ahead: each layer joins the beginning and a sequence's own
keys when it is computed (`Behind`), so that one layer's copy exists at a time. Other layers (sliding windows,
recurrent states, Steel's running sums) are copied row by row.
"""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import Tensor
from transformers.cache_utils import Cache, DynamicCache, DynamicLayer


class Behind(DynamicLayer):
    """Keys and values of finished rows, read by new rows; `rows[i]` is what new row i stands behind."""

    def __init__(self, layer: DynamicLayer, rows: Tensor, keep: bool):
        super().__init__()
        self.keys, self.values = layer.keys, layer.values
        self.dtype, self.device = layer.keys.dtype, layer.keys.device
        self.is_initialized = True
        self._rows, self._keep = rows, keep

    def update(
        self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any
    ) -> tuple[Tensor, Tensor]:
        keys = torch.cat([self._of(self.keys), key_states], dim=-2)
        values = torch.cat([self._of(self.values), value_states], dim=-2)
        if self._keep:
            self.keys, self.values = keys, values
        return keys, values

    def _of(self, stored: Tensor) -> Tensor:
        return stored.expand(len(self._rows), -1, -1, -1) if len(stored) == 1 else stored[self._rows]


def plain(cache: Cache) -> bool:
    """All layers hold the keys and values of every token, and nothing else."""
    return all(isinstance(layer, Behind) or type(layer) is DynamicLayer for layer in cache.layers)


def behind(cache: Cache, rows: Tensor, keep: bool) -> Cache:
    """A cache for new rows, each behind a row of `cache`, which stays as it is. `keep`: it is read again later."""
    if plain(cache):
        new = DynamicCache()
        new.layers = [Behind(layer, rows, keep) for layer in cache.layers]
        return new
    new = copy.deepcopy(cache)
    new.batch_select_indices(rows)
    return new


def length(cache: Cache | None) -> int:
    """Tokens in it."""
    return 0 if cache is None else int(cache.get_seq_length())
