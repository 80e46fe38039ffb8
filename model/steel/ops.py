"""The operators that a faster implementation may replace, as plain torch definitions.

`SteelForCausalLM.set_ops(Ops(...))` installs another set: kernels of the same signatures, held against these by tests.
The definitions are what an exported folder runs.

Shape suffixes: B batch, T tokens of a row, N tokens of a batch, D hidden_size, E experts, W expert_width, P slots
(columns of phi), H heads, h head_dim, K chunks of C tokens.
This file is copied into every exported model folder: it imports nothing of this repository.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

PREFIX_CHUNK = 32
"""Tokens of a chunk of `prefix_slots`: inside one, a lower triangle of weights; between chunks, a carried sum."""


def rms_norm(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    """weight * x / sqrt(mean(x^2) + eps), the fraction in FP32: x [..., D], weight [D] -> [..., D]."""
    wide = x.float()
    wide = wide * torch.rsqrt(wide.pow(2).mean(-1, keepdim=True) + eps)
    return weight * wide.to(x.dtype)


def rms_norm_residual(x: Tensor, residual: Tensor, weight: Tensor, eps: float) -> tuple[Tensor, Tensor]:
    """(rms_norm(residual + x), residual + x): all [..., D]."""
    total = residual + x
    return rms_norm(total, weight, eps), total


def rotate(q: Tensor, k: Tensor, cos: Tensor, sin: Tensor) -> tuple[Tensor, Tensor]:
    """RoPE in the half-rotation layout, in FP32: q [B, H, T, h], k [B, fewer or H, T, h], cos and sin FP32 [B, T, h].

    Both halves of a table are the same: the pair (i, i + h/2) turns by one angle.
    """
    half = q.shape[-1] // 2
    cos, sin = cos[..., :half].unsqueeze(1), sin[..., :half].unsqueeze(1)
    return _rotate(q, cos, sin), _rotate(k, cos, sin)


def _rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    first, second = x.float().chunk(2, dim=-1)
    return torch.cat((first * cos - second * sin, second * cos + first * sin), dim=-1).to(x.dtype)


def combine_experts(h_NEW: Tensor, c_NE: Tensor, gate: Tensor, value: Tensor) -> Tensor:
    """sum_e silu(h_e G_e) * ((c_e h_e) V_e): h [N, E, W], c [N, E], gate and value [E*W, D] -> [N, D].

    The weight c meets the narrow h (W numbers) instead of the wide product (D numbers): the same sum, several passes
    over [E, N, D] fewer.
    """
    experts = h_NEW.shape[1]
    weighted_NEW = c_NE.to(h_NEW.dtype).unsqueeze(-1) * h_NEW
    gate_END = torch.bmm(h_NEW.transpose(0, 1), gate.unflatten(0, (experts, -1)))
    value_END = torch.bmm(weighted_NEW.transpose(0, 1), value.unflatten(0, (experts, -1)))
    return (F.silu(gate_END) * value_END).sum(0)


def prefix_slots(x: Tensor, logits: Tensor, starts: Tensor) -> Tensor:
    """z_tp = sum_{j<=t} w_jp x_j / sum_{j<=t} w_jp with w = exp(logits), over t's own document.

    x [B, T, D], logits [B, T, P], starts [B, T] bool (the first token of a document) -> [B, T, P, D] in x's dtype,
    summed in FP32.
    """
    return prefix_scan(x, logits, starts)[0]


PrefixState = tuple[Tensor, Tensor, Tensor]
"""What a later token needs of all earlier ones, FP32: running maximum m [B, P] of the logits, n [B, P] = sum of
exp(l - m), s [B, P, D] = sum of exp(l - m) x."""


def prefix_scan(
    x: Tensor, logits: Tensor, starts: Tensor, state: PrefixState | None = None
) -> tuple[Tensor, PrefixState]:
    """`prefix_slots` behind an earlier call's state: (slots [B, T, P, D], the state for the next call).

    Weights are kept as exp(l - m) with m the maximum *so far*: a maximum over the whole row would lead the future
    back into the past through rounding, and a constant exp(l - |scale|) underflows. Whatever the logits, the largest
    weight is 1, so nothing overflows and no sum is 0. A logit of -inf is a token that is not there (padding); slots
    that have seen none are 0.
    """
    batch, length, width = x.shape
    wide = torch.promote_types(x.dtype, torch.float32)
    x_BTD, l_BTP = x.to(wide), logits.to(wide)
    missing = -length % PREFIX_CHUNK if length > PREFIX_CHUNK else 0
    if missing:
        x_BTD, starts = F.pad(x_BTD, (0, 0, 0, missing)), F.pad(starts, (0, missing))
        l_BTP = F.pad(l_BTP, (0, 0, 0, missing), value=float("-inf"))
    size = min(length, PREFIX_CHUNK)
    x_BKCD, l_BKPC = x_BTD.unflatten(1, (-1, size)), l_BTP.unflatten(1, (-1, size)).transpose(2, 3)

    # inside a chunk: which j an i adds up, and the maximum over those
    document_BKC = starts.unflatten(1, (-1, size)).cumsum(-1)
    seen_BKCC = (document_BKC.unsqueeze(-1) == document_BKC.unsqueeze(-2)).tril()
    l_BKPCC = l_BKPC.unsqueeze(-2).masked_fill(~seen_BKCC.unsqueeze(2), float("-inf"))
    inner_max_BKPC = l_BKPCC.detach().amax(-1)

    # what each chunk adds to the carry: the sums as its last token has them
    m_BKP = inner_max_BKPC[..., -1]
    w_BKPC = torch.exp(l_BKPCC[..., -1, :] - _finite(m_BKP).unsqueeze(-1))
    own = (m_BKP, w_BKPC.sum(-1), w_BKPC @ x_BKCD)
    ends_BK = document_BKC[..., -1] == 0
    if state is None:
        slots = logits.shape[2]
        zero = x_BTD.new_zeros(batch, slots)
        state = (torch.full_like(zero, float("-inf")), zero, x_BTD.new_zeros(batch, slots, width))
    carried = [state]
    for k in range(l_BKPC.shape[1]):
        carried.append(_merge(carried[-1], tuple(t[:, k] for t in own), ends_BK[:, k]))
    m_BKP, n_BKP, s_BKPD = (torch.stack(parts, 1) for parts in zip(*carried[:-1], strict=True))

    open_BK1C = (document_BKC == 0).unsqueeze(2)
    before_BKPC = m_BKP.unsqueeze(-1).masked_fill(~open_BK1C, float("-inf"))
    m_BKPC = _finite(torch.maximum(inner_max_BKPC, before_BKPC))
    w_BKPCC, decay_BKPC = torch.exp(l_BKPCC - m_BKPC.unsqueeze(-1)), torch.exp(before_BKPC - m_BKPC)
    n_BKPC = w_BKPCC.sum(-1) + decay_BKPC * n_BKP.unsqueeze(-1)
    s_BKPCD = w_BKPCC @ x_BKCD.unsqueeze(2) + decay_BKPC.unsqueeze(-1) * s_BKPD.unsqueeze(-2)
    z_BKPCD = s_BKPCD / n_BKPC.unsqueeze(-1).clamp_min(torch.finfo(wide).tiny)
    slots_BTPD = z_BKPCD.transpose(2, 3).flatten(1, 2)[:, :length].to(x.dtype)
    return slots_BTPD, carried[-1]


def _merge(before: PrefixState, own: PrefixState, alive_B: Tensor) -> PrefixState:
    """The sums of two stretches, on the larger of their maxima; `alive`: no document began in the second."""
    before_m = before[0].masked_fill(~alive_B.unsqueeze(-1), float("-inf"))
    m = torch.maximum(before_m, own[0])
    a, b = torch.exp(before_m - _finite(m)), torch.exp(own[0] - _finite(m))
    n = a * before[1] + b * own[1]
    return m, n, a.unsqueeze(-1) * before[2] + b.unsqueeze(-1) * own[2]


def _finite(maximum: Tensor) -> Tensor:
    """0 where nothing has been seen: exp(-inf - 0) is 0, exp(-inf + inf) would be NaN."""
    return maximum.masked_fill(maximum == float("-inf"), 0.0)


@dataclass(frozen=True)
class Ops:
    """One implementation of each operator; the defaults are the definitions above."""

    rms_norm: Callable[..., Tensor] = rms_norm
    rms_norm_residual: Callable[..., tuple[Tensor, Tensor]] = rms_norm_residual
    rotate: Callable[..., tuple[Tensor, Tensor]] = rotate
    combine_experts: Callable[..., Tensor] = combine_experts
    prefix_slots: Callable[..., Tensor] = prefix_slots


PLAIN = Ops()

__all__ = [
    "PLAIN",
    "Ops",
    "combine_experts",
    "prefix_scan",
    "prefix_slots",
    "rms_norm",
    "rms_norm_residual",
    "rotate",
]
