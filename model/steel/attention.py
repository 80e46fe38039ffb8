"""Attention over rows packed with several documents: no query sees another document's key.

    out_i = softmax_j(q_i k_j / sqrt(head_dim)) v_j      over j <= i of the same document

A document may have branches (several replies behind one prompt): a branch sees what lies before all of them, and itself.

Equal but for rounding:

- `flash_attention_4`, `flash_attention_2`, `varlen`: every document is a sequence of its own to the kernel (CUDA);
- `sdpa` on accelerators: one call with the block-diagonal causal mask;
- `sdpa` on a CPU: query chunks of 64, each against the keys from the earliest document that any row has open in it.
  Documents are shorter than rows, so most of the square is never computed. Measured (8 rows of 256, 4 heads of 48,
  documents of 22 tokens, BF16, one core; forward and backward of one layer): masked SDPA 25.6 ms, chunks 9.4 ms;
- `eager`: the definition, with the whole square.

Which one: attention_choice.py. This file is copied into every exported model folder: it imports nothing of this
repository.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.autograd import Function
from torch.nn import functional as F

CHUNK = 64


@dataclass(frozen=True)
class Documents:
    """Who may see whom in a batch of packed rows; made once per forward pass, used by all layers."""

    how: str
    mask: Tensor | None = None
    """sdpa, eager: additive [B, 1, T, T], 0 where key <= query lies in the same document, else -inf."""
    spans: list[tuple[int, int, int]] | None = None
    """sdpa in chunks: (first query, first key, end of both) of every chunk."""
    edges: Tensor | None = None
    """The others: int32 [documents + 1], where each begins in the rows laid end to end, and the end."""

    @staticmethod
    def of(
        doc_index: Tensor,
        dtype: torch.dtype,
        how: str = "sdpa",
        chunked: bool | None = None,
        at_most: int | None = None,
        branch_index: Tensor | None = None,
    ) -> Documents:
        """doc_index [B, T] numbers the documents of each row in order; `chunked` None: on a CPU. branch_index [B, T]
        numbers the branches of a document from 1, 0 is what all of them see; `sdpa` and `eager` only.

        `at_most`: a bound on the batch's documents. The edges then number at_most + 1, with empty documents at the end,
        and nothing waits for the device; more documents than that fail there. None: they are counted, which waits.
        """
        length = doc_index.shape[1]
        if how in KERNELS:
            if branch_index is not None:
                raise ValueError(f"attention {how} has no branches: choose sdpa")
            begins = torch.ones_like(doc_index, dtype=torch.bool)
            begins[:, 1:] = doc_index[:, 1:] != doc_index[:, :-1]
            begins = begins.flatten()
            if at_most is None:
                edges = begins.nonzero().squeeze(1)
            else:
                torch._assert_async(begins.sum() <= at_most, f"more than {at_most} documents in a batch")
                edges = torch.nonzero_static(begins, size=at_most, fill_value=begins.numel()).squeeze(1)
            return Documents(how, edges=F.pad(edges, (0, 1), value=begins.numel()).int())
        same = doc_index.unsqueeze(1) == doc_index.unsqueeze(2)
        causal = torch.ones(length, length, dtype=torch.bool, device=doc_index.device).tril()
        seen = same & causal
        if branch_index is not None:
            key, query = branch_index.unsqueeze(1), branch_index.unsqueeze(2)
            seen &= (key == 0) | (key == query)
        mask = torch.zeros(same.shape, dtype=dtype, device=doc_index.device)
        mask = mask.masked_fill_(~seen, float("-inf")).unsqueeze(1)
        if how == "eager" or not (doc_index.device.type == "cpu" if chunked is None else chunked):
            return Documents(how, mask)
        # the first key that position t sees in any row
        begins = seen.byte().argmax(-1).amin(0).tolist()
        return Documents(how, mask, [(i, begins[i], min(i + CHUNK, length)) for i in range(0, length, CHUNK)])


def packed_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    documents: Documents,
    scaling: float,
    cap: float | None = None,
    sinks: Tensor | None = None,
) -> Tensor:
    """q [B, H, T, head_dim], k and v with H or fewer heads -> [B, T, H, head_dim]. In `sdpa` and `eager` the values may
    have a width of their own, then the result has it; `cap`: the scores s become cap tanh(s / cap); `sinks` [H]: the score
    of one more key in every softmax, whose value is 0. Both take the whole square."""
    if documents.edges is not None:
        batch, _, length, _ = q.shape
        q, k, v = (x.transpose(1, 2).flatten(0, 1) for x in (q, k, v))
        # no document is longer than a row: the true longest one would have to be asked of the device
        return KERNELS[documents.how](q, k, v, documents.edges, length, scaling).unflatten(0, (batch, length))
    groups = q.shape[1] // k.shape[1]
    if groups > 1:
        k, v = k.repeat_interleave(groups, dim=1), v.repeat_interleave(groups, dim=1)
    mask = documents.mask
    if documents.how == "eager" or cap is not None or sinks is not None:
        scores = (q @ k.mT) * scaling if cap is None else torch.tanh((q @ k.mT) * (scaling / cap)) * cap
        scores = scores + mask
        if sinks is not None:
            scores = torch.cat([scores, sinks.to(scores).view(1, -1, 1, 1).expand(*scores.shape[:-1], 1)], -1)
        weights = torch.softmax(scores, dim=-1, dtype=torch.float32).to(q.dtype)[..., : k.shape[2]]
        return (weights @ v).transpose(1, 2)
    if documents.spans is None:
        return F.scaled_dot_product_attention(q, k, v, attn_mask=mask, scale=scaling).transpose(1, 2)
    return _Chunked.apply(q * scaling, k, v, mask, documents.spans).transpose(1, 2)


def _varlen(q: Tensor, k: Tensor, v: Tensor, edges: Tensor, longest: int, scaling: float) -> Tensor:
    """q [N, H, head_dim], k and v with fewer or as many heads, documents at `edges` -> [N, H, head_dim]."""
    from torch.nn.attention.varlen import varlen_attn

    if k.shape[1] != q.shape[1]:
        k, v = (x.repeat_interleave(q.shape[1] // k.shape[1], dim=1) for x in (k, v))
    # torch has renamed its way to say "causal"
    said = _accepted(varlen_attn, scale=scaling, window_size=(-1, 0), is_causal=True)
    return varlen_attn(q, k, v, edges, edges, longest, longest, **said)


def _flash_2(q: Tensor, k: Tensor, v: Tensor, edges: Tensor, longest: int, scaling: float) -> Tensor:
    """As `_varlen`."""
    from flash_attn import flash_attn_varlen_func

    said = _accepted(
        flash_attn_varlen_func,
        softmax_scale=scaling,
        causal=True,
        deterministic=torch.are_deterministic_algorithms_enabled(),
    )
    return flash_attn_varlen_func(q, k, v, edges, edges, longest, longest, **said)


def _flash_4(q: Tensor, k: Tensor, v: Tensor, edges: Tensor, longest: int, scaling: float) -> Tensor:
    """As `_varlen`."""
    from flash_attn.cute import flash_attn_varlen_func

    # its backward refuses to be deterministic on anything but Blackwell
    fixed = (
        torch.are_deterministic_algorithms_enabled() and torch.cuda.get_device_capability(q.device)[0] == 10
    )
    out = flash_attn_varlen_func(
        q,
        k,
        v,
        cu_seqlens_q=edges,
        cu_seqlens_k=edges,
        max_seqlen_q=longest,
        max_seqlen_k=longest,
        softmax_scale=scaling,
        causal=True,
        **_accepted(flash_attn_varlen_func, deterministic=fixed),
    )
    return out[0] if isinstance(out, tuple) else out  # some versions add the logsumexp


def _accepted(kernel: Callable, **offered: Any) -> dict[str, Any]:
    """Those arguments that this version of a library's function knows."""
    known = inspect.signature(kernel).parameters
    return {name: value for name, value in offered.items() if name in known}


KERNELS = {"flash_attention_4": _flash_4, "flash_attention_2": _flash_2, "varlen": _varlen}


class _Chunked(Function):
    """softmax(q k^T + mask) v by query chunks, with its gradient written out: autograd would zero and add a tensor of
    the whole length for every slice (a third of the time, measured)."""

    @staticmethod
    def forward(ctx, q, k, v, mask, spans):
        batch, heads, length, _ = q.shape
        q, k, v = (x.reshape(batch * heads, length, x.shape[-1]) for x in (q, k, v))
        out, kept = q.new_empty(*q.shape[:-1], v.shape[-1]), []
        for first, key, end in spans:
            scores = torch.bmm(q[:, first:end], k[:, key:end].mT)
            scores.view(batch, heads, end - first, end - key).add_(mask[:, :, first:end, key:end])
            weights = torch.softmax(scores, dim=-1)
            out[:, first:end] = torch.bmm(weights, v[:, key:end])
            kept.append(weights)
        ctx.save_for_backward(q, k, v, *kept)
        ctx.spans, ctx.rows = spans, (batch, heads)
        return out.unflatten(0, ctx.rows)

    @staticmethod
    def backward(ctx, grad):
        q, k, v, *kept = ctx.saved_tensors
        grad = grad.reshape(v.shape)
        grad_q, grad_k, grad_v = torch.empty_like(q), torch.zeros_like(k), torch.zeros_like(v)
        for (first, key, end), weights in zip(ctx.spans, kept, strict=True):
            here = grad[:, first:end]
            grad_v[:, key:end].baddbmm_(weights.mT, here)
            grad_weights = torch.bmm(here, v[:, key:end].mT)
            grad_scores = torch.ops.aten._softmax_backward_data(grad_weights, weights, -1, weights.dtype)
            grad_q[:, first:end] = torch.bmm(grad_scores, k[:, key:end])
            grad_k[:, key:end].baddbmm_(grad_scores.mT, q[:, first:end])
        return *(g.unflatten(0, ctx.rows) for g in (grad_q, grad_k, grad_v)), None, None
