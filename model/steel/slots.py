"""The kinds of Soft MoE that mix tokens into slots before the experts see them (Puigcerver et al., arXiv 2308.00951).

    D_js = exp(l_js) / sum_j exp(l_js)          dispatch, over the tokens j that the kind lets a slot see
    z_s  = sum_j D_js x_j                       slots
    y_t  = sum_s C_ts f_e(s)(z_s)               s = 1 ... n*p, expert e has slots e*p ... (e+1)*p

`prefix`    slot s of token t sees the tokens up to t of its document: causal, and the paper's layer on every prefix
`paper`     it sees the whole document: later tokens lie in every y_t
`released`  `paper` with x_j / |x_j| in the slots, as the published weights were trained

Behind a cache `paper` and `released` see the tokens of the call alone, which is what the original did: a single one
in every decoding step, whose slots are all that token.

Shape suffixes: B batch, T tokens of a row, N tokens of a batch, D hidden_size, E experts, P slots, G documents.
This file is copied into every exported model folder: it imports nothing of this repository.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor
from torch.nn import functional as F

from .layout import Layout
from .ops import PrefixState, prefix_scan

if TYPE_CHECKING:
    from .soft_moe import SteelFFN


def prefix(
    ffn: SteelFFN, x_BTD: Tensor, layout: Layout, state: PrefixState | None, *, keep: bool
) -> tuple[Tensor, PrefixState | None]:
    """(y [B, T, D], the state behind the last token where `keep`)."""
    batch, length, width = x_BTD.shape
    logits_BTP = ffn.logits(x_BTD.flatten(0, 1)).view(batch, length, -1)
    combine_NP = torch.softmax(logits_BTP, dim=-1).flatten(0, 1)
    if state is None and not keep and layout.real_BT is None:
        slots = ffn.ops.prefix_slots(x_BTD, logits_BTP, layout.starts_BT)
    else:
        if layout.real_BT is not None:
            logits_BTP = logits_BTP.masked_fill(~layout.real_BT.unsqueeze(-1), float("-inf"))
        slots, state = prefix_scan(x_BTD, logits_BTP, layout.starts_BT, state)
    h = ffn.experts.on_slots(_by_expert(slots.flatten(0, 1), ffn.num_experts))
    weights = _by_expert(combine_NP, ffn.num_experts)
    y = ffn.experts.combine(h, weights).view(batch, length, -1, width).sum(2)
    return y, state if keep else None


def whole(ffn: SteelFFN, x_BTD: Tensor, layout: Layout, *, unit: bool) -> Tensor:
    """`paper`, or with `unit` `released`: y [B, T, D]."""
    x_ND, document_N, count = x_BTD.flatten(0, 1), layout.document_N, layout.documents
    logits_NP = ffn.logits(x_ND)
    combine_NP = torch.softmax(logits_NP, dim=-1)
    if layout.real_BT is not None:
        logits_NP = logits_NP.masked_fill(~layout.real_BT.flatten().unsqueeze(-1), float("-inf"))
    dispatch_NP = _softmax_over_documents(logits_NP, document_N, count)
    mixed_ND = (F.normalize(x_ND.float(), dim=-1) if unit else x_ND).to(dispatch_NP.dtype)
    # slot by slot: all at once would be [N, P, D]
    slots_GPD = torch.stack(
        [
            mixed_ND.new_zeros(count, x_ND.shape[-1]).index_add(0, document_N, d_N1 * mixed_ND)
            for d_N1 in dispatch_NP.split(1, dim=-1)
        ],
        dim=1,
    ).to(x_ND.dtype)
    h = ffn.experts.on_slots(_by_expert(slots_GPD, ffn.num_experts))
    y_GED = ffn.experts.each(h).view(count, -1, ffn.num_experts, x_ND.shape[-1])
    y_GPD = y_GED.transpose(1, 2).flatten(1, 2)
    y_ND = torch.zeros_like(x_ND)
    for c_N1, y_GD in zip(combine_NP.to(x_ND.dtype).split(1, dim=-1), y_GPD.unbind(1), strict=True):
        y_ND = y_ND + c_N1 * y_GD[document_N]
    return y_ND.view(x_BTD.shape)


def _by_expert(slots: Tensor, experts: int) -> Tensor:
    """[R, E*p, ...] -> [R*p, E, ...]: an expert's slots become rows of their own."""
    return slots.unflatten(1, (experts, -1)).transpose(1, 2).flatten(0, 1)


def _softmax_over_documents(logits_NP: Tensor, document_N: Tensor, count: int) -> Tensor:
    """Each column's softmax over the tokens of each document; a document of padding alone gets weight 0."""
    index_NP = document_N.unsqueeze(-1).expand_as(logits_NP)
    lowest = logits_NP.new_full((count, logits_NP.shape[1]), float("-inf"))
    maximum_GP = lowest.scatter_reduce(0, index_NP, logits_NP.detach(), "amax")
    maximum_GP = maximum_GP.masked_fill(maximum_GP == float("-inf"), 0.0)
    w_NP = torch.exp(logits_NP - maximum_GP[document_N])
    total_GP = torch.zeros_like(maximum_GP).index_add(0, document_N, w_NP)
    return w_NP / total_GP.clamp_min(torch.finfo(w_NP.dtype).tiny)[document_N]
