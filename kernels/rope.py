"""Rotary position embedding of queries and keys, in FP32, in the half-rotation layout.

    (x_i, x_{i + h/2})  ->  (x_i cos_i - x_{i + h/2} sin_i,  x_{i + h/2} cos_i + x_i sin_i)         i < h/2

Su et al. 2021, arXiv 2104.09864; the layout of GPT-NeoX and Qwen. The gradient is the rotation by the negative angle:
the same kernel. Nothing is kept for it but the tables.

Memory-bound: q and k read and written once, by one program a position for all heads of both, so that a position's
tables are read once. Strides are those that come (a projection's [B, T, H, h] seen as [B, H, T, h]) and are given to
the results: no copy before attention.

Shape suffixes: B batch, H heads (k may have fewer), T tokens of a row, h head_dim.
"""

from __future__ import annotations

import torch
from torch import Tensor

from kernels.launch import Cost, jit, next_power_of_2, runs_triton, tl


def rotate(q: Tensor, k: Tensor, cos: Tensor, sin: Tensor) -> tuple[Tensor, Tensor]:
    """q [B, H, T, h], k [B, fewer or H, T, h]; cos and sin [B or 1, T, h], both halves of them the same."""
    if not runs_triton(q):
        return rotate_definition(q, k, cos, sin)
    return _rotate(q, k, cos, sin, False)


def rotate_definition(q: Tensor, k: Tensor, cos: Tensor, sin: Tensor) -> tuple[Tensor, Tensor]:
    """The plain definition."""
    half = q.shape[-1] // 2
    cos, sin = cos[..., :half].unsqueeze(1), sin[..., :half].unsqueeze(1)

    def turned(x: Tensor) -> Tensor:
        first, second = x.to(torch.promote_types(x.dtype, torch.float32)).chunk(2, dim=-1)
        return torch.cat((first * cos - second * sin, second * cos + first * sin), dim=-1).to(x.dtype)

    return turned(q), turned(k)


def cost(tokens: int, heads: int, key_heads: int, head_dim: int, size: int) -> Cost:
    """Of one direction; both cost the same. The tables are FP32, half of each is read."""
    return Cost(2 * tokens * (heads + key_heads) * head_dim * size + 4 * tokens * head_dim, 0)


@jit
def _turn(
    q, k, cos, sin, q_out, k_out, length, heads, key_heads,
    q_b, q_t, k_b, k_t, out_q_b, out_q_t, out_k_b, out_k_t, cos_b, cos_t,
    # constants, for what is known of alignment: heads of 56 move in pieces of 8 bytes, not of 2
    half: tl.constexpr, q_h: tl.constexpr, k_h: tl.constexpr, out_q_h: tl.constexpr, out_k_h: tl.constexpr,
    BACKWARD: tl.constexpr, HEADS: tl.constexpr, KEY_HEADS: tl.constexpr, HALF: tl.constexpr,
):  # fmt: skip
    row = (tl.program_id(0) // length).to(tl.int64)
    token = (tl.program_id(0) % length).to(tl.int64)
    i = tl.arange(0, HALF)
    c = tl.load(cos + row * cos_b + token * cos_t + i, mask=i < half, other=0.0).to(tl.float32)[None, :]
    s = tl.load(sin + row * cos_b + token * cos_t + i, mask=i < half, other=0.0).to(tl.float32)[None, :]
    if BACKWARD:
        s = -s

    head = tl.arange(0, HEADS)[:, None]
    inside = (head < heads) & (i < half)[None, :]
    at = q + row * q_b + token * q_t + head * q_h + i[None, :]
    to = q_out + row * out_q_b + token * out_q_t + head * out_q_h + i[None, :]
    first = tl.load(at, mask=inside, other=0.0).to(tl.float32)
    second = tl.load(at + half, mask=inside, other=0.0).to(tl.float32)
    tl.store(to, (first * c - second * s).to(q_out.dtype.element_ty), mask=inside)
    tl.store(to + half, (second * c + first * s).to(q_out.dtype.element_ty), mask=inside)

    head = tl.arange(0, KEY_HEADS)[:, None]
    inside = (head < key_heads) & (i < half)[None, :]
    at = k + row * k_b + token * k_t + head * k_h + i[None, :]
    to = k_out + row * out_k_b + token * out_k_t + head * out_k_h + i[None, :]
    first = tl.load(at, mask=inside, other=0.0).to(tl.float32)
    second = tl.load(at + half, mask=inside, other=0.0).to(tl.float32)
    tl.store(to, (first * c - second * s).to(k_out.dtype.element_ty), mask=inside)
    tl.store(to + half, (second * c + first * s).to(k_out.dtype.element_ty), mask=inside)


@torch.library.custom_op("steel::rotate", mutates_args=())
def _rotate(q: Tensor, k: Tensor, cos: Tensor, sin: Tensor, backward: bool) -> tuple[Tensor, Tensor]:
    batch, heads, length, width = q.shape
    q, k = (x if x.stride(-1) == 1 else x.contiguous() for x in (q, k))
    cos, sin = (x.expand(batch, -1, -1) for x in (cos, sin))
    if cos.stride() != sin.stride() or cos.stride(-1) != 1:
        cos, sin = cos.contiguous(), sin.contiguous()
    q_out, k_out = torch.empty_like(q), torch.empty_like(k)
    (q_b, q_h, q_t), (k_b, k_h, k_t) = q.stride()[:3], k.stride()[:3]
    (out_q_b, out_q_h, out_q_t), (out_k_b, out_k_h, out_k_t) = q_out.stride()[:3], k_out.stride()[:3]
    _turn[(batch * length,)](
        q, k, cos, sin, q_out, k_out, length, heads, k.shape[1],
        q_b, q_t, k_b, k_t, out_q_b, out_q_t, out_k_b, out_k_t, *cos.stride()[:2],
        half=width // 2, q_h=q_h, k_h=k_h, out_q_h=out_q_h, out_k_h=out_k_h,
        BACKWARD=backward, HEADS=next_power_of_2(heads), KEY_HEADS=next_power_of_2(k.shape[1]),
        HALF=next_power_of_2(width // 2), num_warps=4,
    )  # fmt: skip
    return q_out, k_out


@_rotate.register_fake
def _(q, k, cos, sin, backward):
    q, k = (x if x.stride(-1) == 1 else x.contiguous() for x in (q, k))
    return torch.empty_like(q), torch.empty_like(k)


def _keep(ctx, inputs, output):
    _, _, cos, sin, ctx.backward = inputs
    ctx.save_for_backward(cos, sin)


def _gradients(ctx, grad_q, grad_k):
    return *_rotate(grad_q, grad_k, *ctx.saved_tensors, not ctx.backward), None, None, None


_rotate.register_autograd(_gradients, setup_context=_keep)
