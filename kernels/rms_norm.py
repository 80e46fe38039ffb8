"""RMSNorm, alone and after a residual sum.

    y = weight * x / sqrt(mean(x^2) + eps)              the fraction in FP32, rounded to x's dtype before the weight
    s = residual + x;  y = rms_norm(s)                  both are needed: y by the layer, s by the next residual

    dx_i = r (w_i g_i - n_i mean(w g n)) [+ ds_i]       r = 1 / sqrt(mean(x^2) + eps), n = x r
    dw   = sum over rows of g n

Zhang & Sennrich 2019, arXiv 1910.07467; gradient as in Liger-Kernel's ops/rms_norm.py.

Memory-bound: one pass. Forward reads x (and residual), writes y (and s) and 4 bytes a row; backward reads g, x (and
ds), writes dx (and dw's partial sums, one row a program). A row is one block of registers: 1,792 numbers in a block of
2,048. Backward runs a fixed number of programs, each adding up dw over its rows in FP32; the partial sums are added in
order: no atomics, the same bytes each time.

Shape suffixes: N rows, D width.
"""

from __future__ import annotations

import torch
from torch import Tensor

from kernels.launch import Cost, jit, next_power_of_2, programs, runs_triton, tl


def rms_norm(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    """x [..., D], weight [D] -> [..., D] in the dtype that weight * x has."""
    if not runs_triton(x):
        return rms_norm_definition(x, weight, eps)
    return _norm(x, None, weight, eps)[0]


def rms_norm_residual(x: Tensor, residual: Tensor, weight: Tensor, eps: float) -> tuple[Tensor, Tensor]:
    """(rms_norm(residual + x), residual + x); x and residual [..., D] of one dtype."""
    if not runs_triton(x) or x.dtype != residual.dtype:
        return rms_norm_residual_definition(x, residual, weight, eps)
    return _norm(x, residual, weight, eps)[:2]


def rms_norm_definition(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    """The plain definition."""
    wide = x.to(torch.promote_types(x.dtype, torch.float32))
    wide = wide * torch.rsqrt(wide.pow(2).mean(-1, keepdim=True) + eps)
    return weight * wide.to(x.dtype)


def rms_norm_residual_definition(
    x: Tensor, residual: Tensor, weight: Tensor, eps: float
) -> tuple[Tensor, Tensor]:
    """The plain definition."""
    total = residual + x
    return rms_norm_definition(total, weight, eps), total


def cost(rows: int, width: int, size: int, *, residual: bool = False, backward: bool = False) -> Cost:
    """`size`: bytes of a number. Vectors of length D and the row statistics included."""
    tensors = (4 if residual else 3) if backward else (4 if residual else 2)
    return Cost(tensors * rows * width * size + 4 * rows + (2 if backward else 1) * width * size, 0)


@jit
def _forward(
    x, residual, weight, y, total, scales, width, eps, RESIDUAL: tl.constexpr, BLOCK: tl.constexpr
):  # fmt: skip
    row = tl.program_id(0).to(tl.int64)
    column = tl.arange(0, BLOCK)
    inside = column < width
    at = row * width + column
    value = tl.load(x + at, mask=inside, other=0.0)
    if RESIDUAL:
        before = tl.load(residual + at, mask=inside, other=0.0)
        value = (before.to(tl.float32) + value.to(tl.float32)).to(x.dtype.element_ty)
        tl.store(total + at, value, mask=inside)
    wide = value.to(tl.float32)
    scale = 1.0 / tl.sqrt(tl.sum(wide * wide, axis=0) / width + eps)
    tl.store(scales + row, scale)
    normed = (wide * scale).to(x.dtype.element_ty).to(tl.float32)
    w = tl.load(weight + column, mask=inside, other=0.0).to(tl.float32)
    tl.store(y + at, (w * normed).to(y.dtype.element_ty), mask=inside)


@jit
def _backward(
    grad_y, grad_total, x, weight, scales, grad_x, partial, rows, width,
    RESIDUAL: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    column = tl.arange(0, BLOCK)
    inside = column < width
    w = tl.load(weight + column, mask=inside, other=0.0).to(tl.float32)
    grad_weight = tl.zeros([BLOCK], tl.float32)
    for row in range(tl.program_id(0), rows, tl.num_programs(0)):
        at = row * width + column
        scale = tl.load(scales + row)
        normed = tl.load(x + at, mask=inside, other=0.0).to(tl.float32) * scale
        grad = tl.load(grad_y + at, mask=inside, other=0.0).to(tl.float32)
        grad_weight += grad * normed.to(x.dtype.element_ty).to(tl.float32)
        grad = grad * w
        out = scale * (grad - normed * (tl.sum(grad * normed, axis=0) / width))
        if RESIDUAL:
            out += tl.load(grad_total + at, mask=inside, other=0.0).to(tl.float32)
        tl.store(grad_x + at, out.to(grad_x.dtype.element_ty), mask=inside)
    tl.store(partial + tl.program_id(0) * width + column, grad_weight, mask=inside)


@torch.library.custom_op("steel::rms_norm", mutates_args=())
def _norm(x: Tensor, residual: Tensor | None, weight: Tensor, eps: float) -> tuple[Tensor, Tensor, Tensor]:
    """(y, total, row scales); total is empty without a residual."""
    x, width = x.contiguous(), x.shape[-1]
    y, total, scales = _outputs(x, residual, weight)
    before, summed = (x, x) if residual is None else (residual.contiguous(), total)
    block = next_power_of_2(width)
    _forward[(scales.numel(),)](
        x, before, weight, y, summed, scales, width, eps,
        RESIDUAL=residual is not None, BLOCK=block, num_warps=_warps(block),
    )  # fmt: skip
    return y, total, scales


@torch.library.custom_op("steel::rms_norm_backward", mutates_args=())
def _norm_backward(
    grad_y: Tensor, grad_total: Tensor | None, x: Tensor, weight: Tensor, scales: Tensor
) -> tuple[Tensor, Tensor]:
    """(grad of x, which is also that of residual; grad of weight)."""
    rows, width = scales.numel(), x.shape[-1]
    if rows * width >= 2**31:
        raise ValueError(f"{rows} rows of {width} numbers are beyond 32-bit offsets; give fewer rows.")
    x, grad_y = x.contiguous(), grad_y.contiguous()
    grad_x = torch.empty_like(x)
    grid = min(rows, programs(x, 4))
    partial = torch.empty(grid, width, dtype=torch.float32, device=x.device)
    block = next_power_of_2(width)
    _backward[(grid,)](
        grad_y, grad_y if grad_total is None else grad_total.contiguous(), x, weight, scales, grad_x, partial,
        rows, width, RESIDUAL=grad_total is not None, BLOCK=block, num_warps=min(16, 2 * _warps(block)),
    )  # fmt: skip
    return grad_x, partial.sum(0).to(weight.dtype)


def _outputs(x: Tensor, residual: Tensor | None, weight: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    y = torch.empty(x.shape, dtype=torch.promote_types(x.dtype, weight.dtype), device=x.device)
    total = x.new_empty(x.shape if residual is not None else (0,))
    return y, total, torch.empty(x.shape[:-1], dtype=torch.float32, device=x.device)


@_norm.register_fake
def _(x, residual, weight, eps):
    return _outputs(x, residual, weight)


@_norm_backward.register_fake
def _(grad_y, grad_total, x, weight, scales):
    return torch.empty(x.shape, dtype=x.dtype, device=x.device), torch.empty_like(weight)


def _keep(ctx, inputs, output):
    x, residual, weight, _ = inputs
    _, total, scales = output
    ctx.residual = residual is not None
    ctx.mark_non_differentiable(scales)
    ctx.save_for_backward(total if ctx.residual else x, weight, scales)


def _gradients(ctx, grad_y, grad_total, _):
    x, weight, scales = ctx.saved_tensors
    grad_x, grad_weight = _norm_backward(grad_y, grad_total if ctx.residual else None, x, weight, scales)
    return grad_x, grad_x if ctx.residual else None, grad_weight, None


_norm.register_autograd(_gradients, setup_context=_keep)


def _warps(block: int) -> int:
    """Sixteen numbers a thread: two 16-byte loads of BF16. Backward, which keeps four rows of numbers at a time, takes
    twice as many warps: 63 registers a thread instead of 96, half of a multiprocessor's warps instead of a third."""
    return max(1, min(16, block // 512))
