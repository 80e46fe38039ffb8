"""How one model may be asked: what may be padded, what may be shared, which head is its own.

Steel's own kinds are known. Any other model is tried on one batch when it is first asked: the way that gives the
logits of its own full forward is taken, the cheapest first. Without any it is asked by that full forward itself, rows
of one length at a time.
"""

from __future__ import annotations

import inspect
import logging
import weakref
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.cache_utils import Cache, DynamicCache

from model.scores import cache as caches
from model.scores.head import Given, Head

log = logging.getLogger(__name__)

TOLERANCE = {torch.float32: 1e-4, torch.float64: 1e-4, torch.float16: 2e-2}
"""Largest difference from the model's own logits, as a share of the largest of them; other dtypes: BF16_TOLERANCE."""
BF16_TOLERANCE = 6e-2
PROBE_SHARED, PROBE_RESTS = 12, (5, 2, 9)
"""Tokens that the rows of the trial begin with, and tokens of each behind them."""
FAILURES = (TypeError, AttributeError, ValueError, RuntimeError, IndexError, KeyError, NotImplementedError, AssertionError)  # fmt: skip
"""What a model raises that cannot be asked in some way."""

_known: weakref.WeakKeyDictionary[nn.Module, Network] = weakref.WeakKeyDictionary()


class Network:
    """A model and the ways in which it gives its own logits."""

    def __init__(self, model: Any):
        self._model: Any = weakref.proxy(model)
        config = model.config
        kind = getattr(config, "ffn", "dense")
        self.whole = False
        """Asked by its own full forward; states are then logits."""
        self.causal = kind not in _leaky()
        """No logit depends on a later token."""
        self.padded = self.causal
        """Rows may be padded on the right."""
        self.shares = isinstance(model, PreTrainedModel) and self.causal
        """A cached beginning gives what the full forward gives."""
        self.maskable = kind in ("dense", "token")
        """And rows of several lengths may stand in one cache, padding masked."""
        self.share_limit = _window(config)
        """Longest sequence with which the cache is shared; None: any."""
        self.remark = ""
        """What the trial has shown, where it is not the common case."""
        if isinstance(model, PreTrainedModel) and config.model_type != "steel":
            self._try(model)

    @property
    def device(self) -> torch.device:
        return next(self._model.parameters()).device

    @property
    def vocabulary(self) -> int:
        return self._model.get_output_embeddings().weight.shape[0]

    def head(self) -> Head | Given:
        return Given() if self.whole else Head(self._model)

    def new_cache(self) -> Cache:
        return DynamicCache(config=self._model.config)

    def states(
        self,
        rows: Sequence[Sequence[int]],
        cache: Cache | None = None,
        mask: Tensor | None = None,
        positions: Tensor | None = None,
    ) -> Tensor:
        """Hidden states [B, T, D] of right-padded rows, behind `cache` (which grows) if there is one."""
        more: dict[str, Any] = {} if cache is None else {"past_key_values": cache}
        if mask is not None:
            more["attention_mask"] = mask
        if positions is not None and self._takes("position_ids"):
            more["position_ids"] = positions
        if self.whole:
            return self._model(input_ids=self.tensor(rows), use_cache=False).logits.float()
        out = self._model.base_model(input_ids=self.tensor(rows), use_cache=cache is not None, **more)
        return out.last_hidden_state

    def tensor(self, rows: Sequence[Sequence[int]]) -> Tensor:
        """Right-padded; the padding's own value never matters."""
        width = max(map(len, rows))
        return torch.tensor([list(row) + [0] * (width - len(row)) for row in rows], device=self.device)

    def _takes(self, argument: str) -> bool:
        return argument in inspect.signature(self._model.base_model.forward).parameters

    # ------------------------------------------------------------------------------ the trial
    @torch.inference_mode()
    def _try(self, model: PreTrainedModel) -> None:
        """Settle `whole`, `padded`, `shares` and `maskable` by comparison with the model's own forward."""
        rows = _probe(model)
        due = [model(input_ids=self.tensor([row]), use_cache=False).logits[0].float() for row in rows]
        allowed = TOLERANCE.get(model.dtype, BF16_TOLERANCE) * max(float(x.abs().max()) for x in due) + 1e-7
        self.maskable = caches.plain(self.new_cache())
        name = model.config.model_type
        if wrong := self._wrong(lambda: [self._alone(row) for row in rows], due, allowed):
            self.whole, self.padded, self.shares = True, False, False
            self.remark = f"{name} is asked by its own full forward: with its output layer alone {wrong}"
        elif wrong := self._wrong(lambda: self._together(rows), due, allowed):
            self.padded, self.shares = False, False
            self.remark = f"{name} is asked with rows of one length: padded on the right {wrong}"
        elif self.maskable and not self._wrong(lambda: self._masked(rows), due, allowed):
            pass
        elif wrong := self._wrong(lambda: self._copied(rows), due, allowed):
            self.shares = self.maskable = False
            self.remark = f"{name}: nothing is shared between prompts: behind its cache {wrong}"
        else:
            self.maskable = False
        if self.remark:
            log.warning(self.remark)

    def _wrong(self, ask: Any, due: list[Tensor], allowed: float) -> str:
        """How a way of asking differs from what is due; empty where it does not."""
        try:
            got = ask()
        except FAILURES as error:
            return f"it fails ({type(error).__name__}: {str(error).strip().partition(chr(10))[0][:120]})"
        if any(a.shape[-1] != b.shape[-1] for a, b in zip(got, due, strict=True)):
            return "the vocabulary has another size"
        apart = max(float((a - b[-len(a) :]).abs().max()) for a, b in zip(got, due, strict=True))
        return "" if apart <= allowed else f"logits are {apart:.2g} apart"

    def _logits(self, states_TD: Tensor) -> Tensor:
        return torch.cat(list(self.head().logits(states_TD)))

    def _alone(self, row: list[int]) -> Tensor:
        return self._logits(self.states([row])[0])

    def _together(self, rows: list[list[int]]) -> list[Tensor]:
        states = self.states(rows)
        return [self._logits(states[i, : len(row)]) for i, row in enumerate(rows)]

    def _masked(self, rows: list[list[int]]) -> list[Tensor]:
        """The beginning once, the middles padded behind it, the last token of each behind its middle."""
        shared = PROBE_SHARED
        cache = self._begun(rows)
        every = torch.arange(len(rows), device=self.device)
        grown = caches.behind(cache, torch.zeros_like(every), keep=True)
        middles = [row[shared:-1] for row in rows]
        got = self.states(middles, grown)
        width = max(map(len, middles))
        last = caches.behind(grown, every, keep=False)
        mask, positions = hole_mask(shared, [len(m) for m in middles], width, 1, self.device)
        ends = self.states([row[-1:] for row in rows], last, mask, positions)
        return [self._logits(torch.cat([got[i, : len(m)], ends[i]])) for i, m in enumerate(middles)]

    def _copied(self, rows: list[list[int]]) -> list[Tensor]:
        """The beginning once, each row's rest behind a copy of its cache."""
        cache = self._begun(rows)
        at = torch.zeros(len(rows), dtype=torch.long, device=self.device)
        states = self.states([row[PROBE_SHARED:] for row in rows], caches.behind(cache, at, keep=True))
        return [self._logits(states[i, : len(row) - PROBE_SHARED]) for i, row in enumerate(rows)]

    def _begun(self, rows: list[list[int]]) -> Cache:
        cache = self.new_cache()
        self.states([rows[0][:PROBE_SHARED]], cache)
        return cache


def network_of(model: nn.Module) -> Network:
    """The model's Network; the trial is made once a model."""
    if model not in _known:
        _known[model] = Network(model)
    return _known[model]


def hole_mask(
    shared: int, lengths: Sequence[int], width: int, more: int, device: torch.device
) -> tuple[Tensor, Tensor]:
    """(mask [B, shared + width + more], positions [B, more]) for `more` tokens behind rows of these lengths, padded
    to `width`, behind `shared` tokens."""
    own = torch.tensor(lengths, device=device)[:, None]
    column = torch.arange(width, device=device)[None]
    ones = torch.ones(len(lengths), 1, dtype=torch.long, device=device)
    mask = torch.cat([ones.expand(-1, shared), (column < own).long(), ones.expand(-1, more)], 1)
    return mask, shared + own + torch.arange(more, device=device)[None]


def context(model: Any) -> int | None:
    """Tokens that the model can see; None where its configuration names no limit."""
    for name in ("max_position_embeddings", "n_positions", "max_seq_len", "seq_length"):
        if isinstance(limit := getattr(model.config, name, None), int) and limit > 0:
            return limit
    return None


def _probe(model: PreTrainedModel) -> list[list[int]]:
    """Rows of ordinary tokens that begin alike; the same for the same vocabulary."""
    vocabulary = model.get_input_embeddings().weight.shape[0]
    draw = torch.Generator().manual_seed(0)

    def tokens(count: int) -> list[int]:
        return torch.randint(min(3, vocabulary - 1), vocabulary, (count,), generator=draw).tolist()

    begin = tokens(PROBE_SHARED)
    return [begin + tokens(count) for count in PROBE_RESTS]


def _window(config: Any) -> int | None:
    """The shortest sliding window or chunk of attention, where a layer has one."""
    text = config.get_text_config() if hasattr(config, "get_text_config") else config
    windows = [getattr(text, name, None) for name in ("sliding_window", "attention_chunk_size")]
    if getattr(text, "use_sliding_window", True) is False:
        windows = windows[1:]
    return min((w for w in windows if isinstance(w, int) and w > 0), default=None)


def _leaky() -> Sequence[str]:
    from model.steel.configuration import LEAKY_KINDS

    return LEAKY_KINDS
