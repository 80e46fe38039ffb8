"""`merge`: one expert a segment, whose weights are the mean of all experts' (Lory, arXiv 2405.03133).

    r_k   = mean of C_t over segment k - 1 of the same document;  a document's first segment: 1 / n each
    W_k   = sum_e r_ke W_e                      for each of the experts' matrices
    y_t   = f(x_t; W_k)                         t in segment k

Segments of `merge_segment` tokens count from each document's start. (Lory routes the first segment by its own mean,
under a stopped gradient; that still shows later tokens to earlier ones, so here it is uniform.)

Shape suffixes: N tokens of a batch, D hidden_size, E experts, W expert_width, G segments, S tokens of a segment.
This file is copied into every exported model folder: it imports nothing of this repository.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from .layout import Layout, Segments

if TYPE_CHECKING:
    from .soft_moe import SteelFFN

MergeState = tuple[Tensor, ...]
"""(r in force [B, E], sum of C over the current segment [B, E], its tokens so far [B], then each merged matrix in force
[B, W, D])."""


def merge(
    ffn: SteelFFN, x_BTD: Tensor, layout: Layout, state: MergeState | None, *, keep: bool
) -> tuple[Tensor, MergeState | None]:
    """(y [B, T, D], the state behind the last token where `keep`)."""
    batch, length, width = x_BTD.shape
    size, x_ND = ffn.merge_segment, x_BTD.flatten(0, 1)
    segments = layout.segments(size, None if state is None else state[2])
    combine_NE = ffn.combine_weights(x_ND)
    sum_GE, count_G = _totals(combine_NE, segments, state)
    routing_GE = _routing(sum_GE, count_G, segments, state)
    if length == 1 and state is not None:
        y_BTD = ffn.experts.merged_forward(x_BTD, state[3:])
    else:
        y_BTD = _by_segment(ffn, x_ND, segments, routing_GE, min(size, length)).view(x_BTD.shape)
    if not keep:
        return y_BTD, None
    last_B = segments.index_N.view(batch, length)[:, -1]
    return y_BTD, _next_state(ffn, routing_GE[last_B], sum_GE[last_B], count_G[last_B], state)


def _totals(combine_NE: Tensor, segments: Segments, state: MergeState | None) -> tuple[Tensor, Tensor]:
    """Sum of C [G, E] and number of tokens [G] of every segment, with what earlier calls had of it."""
    groups = len(segments.first_G)
    there_N = segments.real_N.to(combine_NE.dtype)
    sum_GE = combine_NE.new_zeros(groups, combine_NE.shape[1])
    sum_GE = sum_GE.index_add(0, segments.index_N, combine_NE * there_N.unsqueeze(-1))
    count_G = combine_NE.new_zeros(groups).index_add(0, segments.index_N, there_N)
    if state is not None:
        goes_on = (segments.opens_row_G & ~segments.first_G).nonzero().squeeze(1)
        rows = (segments.opens_row_G.cumsum(0) - 1)[goes_on]
        sum_GE = sum_GE.index_add(0, goes_on, state[1][rows])
        count_G = count_G.index_add(0, goes_on, state[2][rows].to(count_G.dtype))
    return sum_GE, count_G


def _routing(sum_GE: Tensor, count_G: Tensor, segments: Segments, state: MergeState | None) -> Tensor:
    """r [G, E]: the mean of the segment before; uniform in a document's first; behind a cache what is in force."""
    mean_GE = sum_GE / count_G.clamp_min(1.0).unsqueeze(-1)
    before_GE = mean_GE.roll(1, 0)
    if state is not None:
        rows = segments.opens_row_G.cumsum(0) - 1
        before_GE = torch.where(segments.opens_row_G.unsqueeze(-1), state[0][rows], before_GE)
    return before_GE.masked_fill(segments.first_G.unsqueeze(-1), 1.0 / sum_GE.shape[1])


def _by_segment(ffn: SteelFFN, x_ND: Tensor, segments: Segments, routing_GE: Tensor, size: int) -> Tensor:
    """f(x_t; W of t's segment) [N, D]; 0 at padding.

    Documents' first segments all have the same weights and go through them together: with short documents that is
    nearly everything.
    """
    uniform_N = segments.first_G[segments.index_N]
    y_ND = torch.zeros_like(x_ND)
    together = (uniform_N & segments.real_N).nonzero().squeeze(1)
    if len(together):
        even = routing_GE.new_full((1, routing_GE.shape[1]), 1.0 / routing_GE.shape[1])
        out = ffn.experts.merged_forward(x_ND[together].unsqueeze(0), ffn.experts.merged(even))
        y_ND = y_ND.index_copy(0, together, out.squeeze(0))
    apart = (~uniform_N & segments.real_N).nonzero().squeeze(1)
    if len(apart):
        own = (~segments.first_G).nonzero().squeeze(1)
        slot = ((~segments.first_G).cumsum(0) - 1)[segments.index_N[apart]]
        place = segments.place_N[apart] - _least_place(segments, apart, slot, len(own))
        padded = x_ND.new_zeros(len(own), size, x_ND.shape[1]).index_put((slot, place), x_ND[apart])
        out = ffn.experts.merged_forward(padded, ffn.experts.merged(routing_GE[own]))
        y_ND = y_ND.index_copy(0, apart, out[slot, place])
    return y_ND


def _least_place(segments: Segments, apart: Tensor, slot: Tensor, count: int) -> Tensor:
    """The place at which each token's segment begins in this call: not 0 behind a cache."""
    place = segments.place_N[apart]
    least = place.new_full((count,), torch.iinfo(place.dtype).max).scatter_reduce(0, slot, place, "amin")
    return least[slot]


def _next_state(
    ffn: SteelFFN, routing_BE: Tensor, sum_BE: Tensor, count_B: Tensor, state: MergeState | None
) -> MergeState:
    """A full segment's mean comes into force."""
    full_B = count_B >= ffn.merge_segment
    mean_BE = sum_BE / count_B.clamp_min(1.0).unsqueeze(-1)
    routing_BE = torch.where(full_B.unsqueeze(-1), mean_BE, routing_BE)
    if state is not None and torch.equal(routing_BE, state[0]):
        matrices = state[3:]
    else:
        matrices = ffn.experts.merged(routing_BE)
    sum_BE = sum_BE.masked_fill(full_B.unsqueeze(-1), 0.0)
    return (routing_BE, sum_BE, count_B.masked_fill(full_B, 0.0).long(), *matrices)
