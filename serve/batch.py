"""Rows that are decoded together, a token each a step, over one cache of keys and values that is padded on the left.

A row joins after its prompt was computed alone, and leaves when it is over; then the columns that nobody needs go, too.
Padding has no weight: a masked column's weight in the softmax is exactly 0, and positions are counted by row.

Kinds of Steel's FFN that keep a state beside the cache (`prefix`, `merge`) keep it by row, so they are batched as well.
What keeps something else (sliding windows, recurrences), or sees later tokens, is decoded one row after another.
"""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import pad
from transformers.cache_utils import DynamicCache, DynamicLayer

from model.steel.cache import SteelCacheLayer
from model.steel.configuration import LEAKY_KINDS
from serve.rows import Row, Token


def batchable(model: nn.Module) -> bool:
    """Whether rows of different lengths can be computed together."""
    if getattr(model.config, "ffn", "") in LEAKY_KINDS:
        return False
    layers = DynamicCache(config=model.config).layers
    plain = all(type(layer) in (DynamicLayer, SteelCacheLayer) for layer in layers)
    return plain and "position_ids" in inspect.signature(model.forward).parameters


class Prefill:
    """A prompt that is computed in pieces, so that rows in decoding wait for a piece only, and a client may leave."""

    def __init__(self, model: nn.Module, row: Row, piece: int):
        self.model, self.row, self.piece = model, row, piece
        self.cache: Any = None
        self.done = 0
        self._before: Tensor | None = None

    def step(self) -> Tensor | None:
        """The next piece; after the last one the logits [V] of the first new token."""
        ids, ask = self.row.ask.ids, self.row.ask
        here = ids[self.done : self.done + self.piece]
        all_of_them = ask.echo and ask.logprobs is not None
        out = self.model(
            input_ids=torch.tensor([here], device=self.model.device),
            past_key_values=self.cache,
            use_cache=True,
            logits_to_keep=0 if all_of_them else 1,
        )
        self.cache, logits_TV = out.past_key_values, out.logits[0].float()
        if all_of_them:
            before = [None] if self._before is None else [self._before]
            for number, logits_V in zip(here, [*before, *logits_TV[:-1]], strict=True):
                token = self.row.scored(logits_V, number) if logits_V is not None else Token(number)
                self.row.prompt.append(token)
            self._before = logits_TV[-1]
        self.done += len(here)
        return logits_TV[-1] if self.done == len(ids) else None


class Batch:
    """The rows in decoding and their cache."""

    def __init__(self, model: nn.Module):
        self.model = model
        self.rows: list[Row] = []
        self.cache: Any = None
        self.columns = 0
        """Of the cache; row i fills the last `row.length - 1` of them: its newest token is fed by the next step."""

    def join(self, row: Row, cache: Any) -> None:
        """Add a row whose prompt is in `cache`, and which has its first token."""
        length = len(row.ask.ids)
        if not self.rows:
            self.rows, self.cache, self.columns = [row], cache, length
            return
        columns = max(self.columns, length)
        for mine, other in zip(self.cache.layers, cache.layers, strict=True):
            for name in ("keys", "values"):
                both = [_padded(getattr(layer, name), columns) for layer in (mine, other)]
                setattr(mine, name, torch.cat(both))
            if (state := getattr(mine, "ffn", None)) is not None:
                mine.ffn = tuple(torch.cat(pair) for pair in zip(state, other.ffn, strict=True))
        self.rows.append(row)
        self.columns = columns

    @torch.inference_mode()
    def step(self) -> Tensor:
        """Feed every row's newest token: FP32 logits [B, V]."""
        device = self.model.device
        ids = torch.tensor([[row.made[-1]] for row in self.rows], device=device)
        given: dict[str, Any] = {}
        if len(self.rows) > 1 or any(row.length != self.columns + 1 for row in self.rows):
            lengths_B = torch.tensor([row.length for row in self.rows], device=device)
            place = torch.arange(self.columns + 1, device=device)
            given["attention_mask"] = (place[None] > self.columns - lengths_B[:, None]).long()
            given["position_ids"] = lengths_B[:, None] - 1
        out = self.model(input_ids=ids, past_key_values=self.cache, use_cache=True, **given)
        self.cache = out.past_key_values
        self.columns += 1
        return out.logits[:, -1].float()

    def keep(self, wanted: Sequence[int]) -> None:
        """Only these rows stay."""
        if len(wanted) == len(self.rows):
            return
        self.rows = [self.rows[i] for i in wanted]
        if not self.rows:
            self.cache, self.columns = None, 0
            return
        index = torch.tensor(list(wanted), device=self.model.device)
        needed = max(row.length - 1 for row in self.rows)
        for layer in self.cache.layers:
            for name in ("keys", "values"):
                setattr(layer, name, getattr(layer, name).index_select(0, index)[..., -needed:, :])
            if (state := getattr(layer, "ffn", None)) is not None:
                layer.ffn = tuple(t.index_select(0, index) for t in state)
        self.columns = needed


def _padded(t: Tensor, columns: int) -> Tensor:
    return pad(t, (0, 0, columns - t.shape[-2], 0))
