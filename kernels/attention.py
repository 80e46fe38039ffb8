"""Causal attention over packed rows: no query sees another document's key.

    out_i = softmax_j(q_i . k_j * scaling) v_j            over j <= i of i's document

One function over five implementations. The flash kernels take the rows laid end to end and the positions where
documents begin (`cu_seqlens`), so nothing is spent on what a mask would hide; SDPA takes a block-diagonal mask.

    flash_attention_4   flash_attn.cute (Hopper, Blackwell)    named only: `auto` does not pick it before it has been
                                                               tried on a GPU with heads of 56
    flash_attention_2   flash_attn 2.x (Ampere and later)
    varlen              torch.nn.attention.varlen: FlashAttention-2 inside torch >= 2.10, nothing to install
    sdpa                torch's scaled_dot_product_attention with a mask; any device and dtype
    eager               the definition

head_dim 56 is a multiple of 8: all of them take it without a copy, and compute 64 columns (1.14 x the work).
FlashAttention: Dao et al., arXiv 2205.14135, 2307.08691, 2407.08608.

Shape suffixes: B batch, H heads (k and v may have fewer), T tokens of a row, h head_dim.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from importlib.util import find_spec

import torch
from torch import Tensor
from torch.nn import functional as F

from kernels.launch import Cost

IMPLEMENTATIONS = ("auto", "flash_attention_4", "flash_attention_2", "varlen", "sdpa", "eager")
FLASH = ("flash_attention_4", "flash_attention_2", "varlen")


@dataclass(frozen=True)
class Documents:
    """Who may see whom in a batch; made once per forward pass, used by all layers."""

    implementation: str
    cu_seqlens: Tensor | None = None
    """int32 [documents + 1]: where each begins in the batch laid end to end, then its length (flash kernels)."""
    longest: int = 0
    """No document is longer: the rows' length."""
    mask: Tensor | None = None
    """Bool [B, 1, T, T]: may query i see key j (sdpa, eager)."""


def documents(
    doc_index: Tensor, dtype: torch.dtype, implementation: str = "auto", capacity: int | None = None
) -> Documents:
    """doc_index [B, T] numbers the documents of each row in order.

    `capacity`: at least the number of documents. With it nothing waits for the device, and cu_seqlens always has
    capacity + 1 entries (empty documents at the end); more documents than that fail a device-side assertion. Without
    it the documents are counted, which waits once.
    """
    name = choose(implementation, doc_index.device, dtype)
    if name not in FLASH:
        same = doc_index.unsqueeze(1) == doc_index.unsqueeze(2)
        return Documents(name, mask=same.tril().unsqueeze(1))
    return Documents(name, cumulative_lengths(doc_index, capacity), doc_index.shape[1])


def cumulative_lengths(doc_index: Tensor, capacity: int | None = None) -> Tensor:
    """cu_seqlens of a batch's rows laid end to end; every row begins a document."""
    starts = torch.ones_like(doc_index, dtype=torch.bool)
    starts[:, 1:] = doc_index[:, 1:] != doc_index[:, :-1]
    starts = starts.flatten()
    if capacity is None:
        first = starts.nonzero().squeeze(1)
        return F.pad(first, (0, 1), value=starts.numel()).int()
    torch._assert_async(starts.sum() <= capacity, f"more than {capacity} documents in a batch")
    first = torch.nonzero_static(starts, size=capacity, fill_value=starts.numel()).squeeze(1)
    return F.pad(first, (0, 1), value=starts.numel()).int()


def document_attention(q: Tensor, k: Tensor, v: Tensor, documents: Documents, scaling: float) -> Tensor:
    """q [B, H, T, h], k and v [B, H or a divisor of it, T, h] -> [B, T, H, h]."""
    if documents.implementation == "eager":
        return document_attention_definition(q, k, v, documents.mask, scaling)
    if documents.implementation == "sdpa":
        out = F.scaled_dot_product_attention(
            q, k, v, attn_mask=documents.mask, scale=scaling, enable_gqa=q.shape[1] != k.shape[1]
        )
        return out.transpose(1, 2)
    batch, heads, length, width = q.shape
    q, k, v = (x.transpose(1, 2).flatten(0, 1) for x in (q, k, v))
    attend = _variable_length(documents.implementation)
    return attend(q, k, v, documents.cu_seqlens, documents.longest, scaling).view(batch, length, heads, width)


def document_attention_definition(q: Tensor, k: Tensor, v: Tensor, mask: Tensor, scaling: float) -> Tensor:
    """The plain definition; the softmax in FP32 or q's wider type."""
    groups = q.shape[1] // k.shape[1]
    k, v = k.repeat_interleave(groups, dim=1), v.repeat_interleave(groups, dim=1)
    scores = (q @ k.transpose(2, 3) * scaling).masked_fill(~mask, float("-inf"))
    weights = torch.softmax(scores.to(torch.promote_types(q.dtype, torch.float32)), dim=-1).to(q.dtype)
    return (weights @ v).transpose(1, 2)


def choose(implementation: str, device: torch.device, dtype: torch.dtype) -> str:
    """The implementation that a name stands for here; one that cannot run is refused with what it lacks."""
    if implementation not in IMPLEMENTATIONS:
        raise ValueError(
            f"attention: {implementation} is unknown. Choose one of {', '.join(IMPLEMENTATIONS)}."
        )
    if implementation == "auto":
        return next(
            name for name in ("flash_attention_2", "varlen", "sdpa") if not lacking(name, device, dtype)
        )
    reason = lacking(implementation, device, dtype)
    if reason:
        raise RuntimeError(f"attention: {implementation} {reason}. Choose auto for what this machine has.")
    return implementation


def lacking(implementation: str, device: torch.device, dtype: torch.dtype) -> str | None:
    """Why an implementation cannot run here; None: it can."""
    if implementation not in FLASH:
        return None
    if device.type != "cuda":
        return "needs a CUDA device"
    if dtype not in (torch.bfloat16, torch.float16):
        return f"computes in bfloat16 or float16, not {dtype}"
    generation = torch.cuda.get_device_capability(device)[0]
    if implementation == "flash_attention_4":
        if generation < 9:
            return "needs a Hopper GPU or later"
        return None if _installed("flash_attn.cute") else 'needs: pip install "flash-attn-4>=4.0.0b36"'
    if generation < 8:
        return "needs an Ampere GPU or later"
    if implementation == "flash_attention_2":
        # flash-attn 4 installs a package flash_attn of its own, without this module
        found = _installed("flash_attn.flash_attn_interface")
        return None if found else "needs: pip install flash-attn --no-build-isolation (with nvcc)"
    return None if _installed("torch.nn.attention.varlen") else "needs torch 2.10 or later"


def cost(
    tokens: int, documents: int, heads: int, key_heads: int, head_dim: int, size: int, *, backward=False
) -> Cost:
    """For documents of one length: causally, half of every document's square; backward has five products to two."""
    pairs = tokens * (tokens / documents + 1) / 2
    moved = tokens * head_dim * size * (2 * heads + 2 * key_heads)
    flops = 4 * heads * head_dim * pairs
    return Cost(2 * moved, int(2.5 * flops)) if backward else Cost(moved, int(flops))


@cache
def _installed(module: str) -> bool:
    try:
        return find_spec(module) is not None
    except ModuleNotFoundError:
        return False


@cache
def _variable_length(implementation: str) -> Callable[[Tensor, Tensor, Tensor, Tensor, int, float], Tensor]:
    """q [N, H, h], k, v, cu_seqlens, longest, scaling -> [N, H, h]."""
    if implementation == "flash_attention_4":
        from flash_attn.cute import flash_attn_varlen_func

        def attend(q, k, v, cu, longest, scaling):
            out = flash_attn_varlen_func(
                q, k, v, cu_seqlens_q=cu, cu_seqlens_k=cu, softmax_scale=scaling, causal=True
            )
            return out[0] if isinstance(out, tuple) else out

    elif implementation == "flash_attention_2":
        from flash_attn import flash_attn_varlen_func

        def attend(q, k, v, cu, longest, scaling):
            return flash_attn_varlen_func(
                q, k, v, cu, cu, longest, longest, softmax_scale=scaling, causal=True
            )

    else:
        from torch.nn.attention.varlen import varlen_attn

        known = inspect.signature(varlen_attn).parameters
        # torch 2.10 has is_causal; later versions a window with nothing to the right
        causal = {"is_causal": True} if "is_causal" in known else {"window_size": (-1, 0)}

        def attend(q, k, v, cu, longest, scaling):
            grouped = {"enable_gqa": True} if "enable_gqa" in known and q.shape[1] != k.shape[1] else {}
            if "enable_gqa" not in known and q.shape[1] != k.shape[1]:
                groups = q.shape[1] // k.shape[1]
                k, v = k.repeat_interleave(groups, dim=1), v.repeat_interleave(groups, dim=1)
            if "scale" in known:
                return varlen_attn(q, k, v, cu, cu, longest, longest, scale=scaling, **causal, **grouped)
            q = q * (scaling * q.shape[-1] ** 0.5)  # its own is 1 / sqrt(head_dim)
            return varlen_attn(q, k, v, cu, cu, longest, longest, **causal, **grouped)

    return attend
