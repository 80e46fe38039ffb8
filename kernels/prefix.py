"""The slots of a causal Soft MoE: a weighted mean of all inputs so far, per slot, within a document.

    z_tp = sum_j w_jp x_j / sum_j w_jp,   w = exp(l)                j <= t, of t's document
         = sum_j exp(l_jp - L_tp) x_j,    L_tp = log sum_j exp(l_jp)

    dx_j  = sum_p sum_{t >= j} exp(l_jp - L_tp) g_tp                        g = dz, t of j's document
    dl_jp = sum_{t >= j} exp(l_jp - L_tp) (g_tp . x_j - g_tp . z_tp)

A layer of the kind `prefix` (docs/model.md). No exponent is positive: the maximum is that of the tokens so far, as a
later one would reach back through rounding. A logit of -inf is a token that is not there; a slot that has seen none
is 0.

A program owns columns of D of one row (forward: of one slot) and walks along T in blocks: inside a block a triangle of
weights times x, one small product; between blocks the mean so far and its L, in FP32 registers. Backward walks the
other way with sum_t exp(L_end - L_t) g_t. Memory-bound: forward reads x from HBM about once (the programs of a row's
slots are neighbours in time) and writes z; backward reads g and z and x, writes dx; dl is summed per tile of D and then
over the tiles, in order. The products are in FP32 precision (3 x TF32 on GPUs): 22 GFLOP at 16,384 tokens of Steel-1B.

Shape suffixes: B batch, T tokens of a row, D hidden_size, P slots.
"""

from __future__ import annotations

import torch
from torch import Tensor

from kernels.launch import INTERPRETED, Cost, jit, next_power_of_2, runs_triton, tl

TILE_T = 32
TILE_D = 64
"""Fixed: sums are taken per tile."""


def prefix_slots(x: Tensor, logits: Tensor, starts: Tensor) -> Tensor:
    """x [B, T, D], logits [B, T, P], starts [B, T] bool (a document's first token) -> [B, T, P, D] in x's dtype."""
    if not runs_triton(x):
        return prefix_slots_definition(x, logits, starts)
    return _slots(x, logits, starts)[0]


def prefix_slots_definition(x: Tensor, logits: Tensor, starts: Tensor) -> Tensor:
    """The plain definition, quadratic in T: masked softmax over the past, times x. For tests and small sizes."""
    wide = torch.promote_types(x.dtype, torch.float32)
    document_BT = starts.cumsum(1)
    seen_BTT = (document_BT.unsqueeze(2) == document_BT.unsqueeze(1)).tril()
    scores_BPTT = (
        logits.to(wide).transpose(1, 2).unsqueeze(2).masked_fill(~seen_BTT.unsqueeze(1), float("-inf"))
    )
    empty_BPT1 = (scores_BPTT == float("-inf")).all(-1, keepdim=True)
    weights_BPTT = torch.softmax(scores_BPTT.masked_fill(empty_BPT1, 0.0), -1).masked_fill(empty_BPT1, 0.0)
    return (weights_BPTT @ x.to(wide).unsqueeze(1)).transpose(1, 2).to(x.dtype)


def cost(tokens: int, slots: int, hidden: int, size: int, *, backward: bool = False) -> Cost:
    """The recurrence itself: two operations a term forward, twice that backward; no products inside blocks."""
    narrow = 4 * tokens * slots
    if backward:
        return Cost(size * tokens * hidden * (2 * slots + 2) + 3 * narrow, 4 * tokens * slots * hidden)
    return Cost(size * tokens * hidden * (slots + 1) + 2 * narrow, 2 * tokens * slots * hidden)


@jit
def _forward(
    x, logits, starts, z, lse, length, width, slots,
    BLOCK_T: tl.constexpr, BLOCK_D: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    slot = tl.program_id(0) % slots
    tile_d = tl.program_id(0) // slots
    row = tl.program_id(1).to(tl.int64) * length
    i = tl.arange(0, BLOCK_T)
    d = tile_d * BLOCK_D + tl.arange(0, BLOCK_D)
    mean = tl.zeros([BLOCK_D], tl.float32)
    carried = tl.full([1], float("-inf"), tl.float32)
    for begin in range(0, length, BLOCK_T):
        t = begin + i
        real = t < length
        logit = tl.load(logits + (row + t) * slots + slot, mask=real, other=float("-inf")).to(tl.float32)
        document = tl.cumsum(tl.load(starts + row + t, mask=real, other=0).to(tl.int32), axis=0)
        seen = (document[:, None] == document[None, :]) & (i[:, None] >= i[None, :])
        scores = tl.where(seen, logit[None, :], float("-inf"))
        before = tl.where(document == 0, carried, float("-inf"))
        largest = tl.maximum(tl.max(scores, axis=1), before)
        largest = tl.where(largest == float("-inf"), 0.0, largest)
        weights = tl.exp(scores - largest[:, None])
        kept = tl.exp(before - largest)
        total = tl.sum(weights, axis=1) + kept
        share = tl.where(total > 0.0, 1.0 / tl.where(total > 0.0, total, 1.0), 0.0)
        inside = real[:, None] & (d < width)[None, :]
        here = tl.load(x + (row + t)[:, None] * width + d[None, :], mask=inside, other=0.0).to(tl.float32)
        out = tl.dot(weights * share[:, None], here, input_precision=PRECISION)
        out += (kept * share)[:, None] * mean[None, :]
        to = z + ((row + t) * slots + slot)[:, None] * width + d[None, :]
        tl.store(to, out.to(z.dtype.element_ty), mask=inside)
        sums = tl.where(total > 0.0, largest + tl.log(tl.where(total > 0.0, total, 1.0)), float("-inf"))
        tl.store(lse + (row + t) * slots + slot, sums, mask=real & (tile_d == 0))
        mean = tl.sum(tl.where((i == BLOCK_T - 1)[:, None], out, 0.0), axis=0)
        carried = tl.max(tl.where(i == BLOCK_T - 1, sums, float("-inf")), axis=0, keep_dims=True)


@jit
def _backward(
    grad_z, x, logits, starts, z, lse, grad_x, partial, length, width, slots,
    BLOCK_P: tl.constexpr, BLOCK_T: tl.constexpr, BLOCK_D: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    tile_d = tl.program_id(0)
    row = tl.program_id(1).to(tl.int64) * length
    partial += tile_d.to(tl.int64) * (tl.num_programs(1) * length * slots)
    i = tl.arange(0, BLOCK_T)
    p = tl.arange(0, BLOCK_P)
    d = tile_d * BLOCK_D + tl.arange(0, BLOCK_D)
    # of the tokens after this block and of a document open at its end: sum of exp(L_end - L_t) g_t, and of its g_t . z_t
    after = tl.zeros([BLOCK_P, BLOCK_D], tl.float32)
    after_dot = tl.zeros([BLOCK_P], tl.float32)
    for block in range(tl.cdiv(length, BLOCK_T)):
        begin = (tl.cdiv(length, BLOCK_T) - 1 - block) * BLOCK_T
        t = begin + i
        real = t < length
        document = tl.cumsum(tl.load(starts + row + t, mask=real, other=0).to(tl.int32), axis=0)
        last = tl.max(document, axis=0)
        seen = (document[:, None] == document[None, :]) & (i[:, None] >= i[None, :]) & real[:, None]
        inside = real[:, None] & (d < width)[None, :]
        here = tl.load(x + (row + t)[:, None] * width + d[None, :], mask=inside, other=0.0).to(tl.float32)
        out = tl.zeros([BLOCK_T, BLOCK_D], tl.float32)
        for slot in range(slots):
            logit = tl.load(logits + (row + t) * slots + slot, mask=real, other=float("-inf")).to(tl.float32)
            sums = tl.load(lse + (row + t) * slots + slot, mask=real, other=float("inf"))
            sums = tl.where(sums == float("-inf"), 0.0, sums)
            end = tl.load(
                lse + (row + begin + BLOCK_T - 1) * slots + slot,
                mask=begin + BLOCK_T <= length,
                other=float("inf"),
            )
            finite_end = tl.where(end == float("-inf"), 0.0, end)
            at = ((row + t) * slots + slot)[:, None] * width + d[None, :]
            grad = tl.load(grad_z + at, mask=inside, other=0.0).to(tl.float32)
            dots = tl.sum(grad * tl.load(z + at, mask=inside, other=0.0).to(tl.float32), axis=1)
            mine = tl.sum(tl.where((p == slot)[:, None], after, 0.0), axis=0)
            mine_dot = tl.sum(tl.where(p == slot, after_dot, 0.0), axis=0)

            weights = tl.where(seen, tl.exp(tl.where(seen, logit[None, :] - sums[:, None], 0.0)), 0.0)
            tail = (document == last) & real & (begin + BLOCK_T < length)
            tail = tl.where(tail, tl.exp(tl.where(tail, logit - finite_end, 0.0)), 0.0)
            slot_out = tl.dot(tl.trans(weights), grad, input_precision=PRECISION)
            slot_out += tail[:, None] * mine[None, :]
            out += slot_out
            dot_out = tl.sum(weights * dots[:, None], axis=0) + tail * mine_dot
            to = partial + (row + t) * slots + slot
            tl.store(to, tl.sum(here * slot_out, axis=1) - dot_out, mask=real)

            # hand over to the block before: the same sums, relative to L at its end
            before = tl.load(lse + (row + begin - 1) * slots + slot, mask=begin > 0, other=float("-inf"))
            head = (document == 0) & real
            head = tl.where(head, tl.exp(tl.where(head, before - sums, 0.0)), 0.0)
            through = tl.where(last == 0, tl.exp(tl.where(last == 0, before - finite_end, 0.0)), 0.0)
            mine = tl.sum(head[:, None] * grad, axis=0) + through * mine
            mine_dot = tl.sum(head * dots, axis=0) + through * mine_dot
            after = tl.where((p == slot)[:, None], mine[None, :], after)
            after_dot = tl.where(p == slot, mine_dot, after_dot)
        to = grad_x + (row + t)[:, None] * width + d[None, :]
        tl.store(to, out.to(grad_x.dtype.element_ty), mask=inside)


@torch.library.custom_op("steel::prefix_slots", mutates_args=())
def _slots(x: Tensor, logits: Tensor, starts: Tensor) -> tuple[Tensor, Tensor]:
    """(z, L [B, T, P] in FP32)."""
    x, logits, starts = x.contiguous(), logits.contiguous(), starts.to(torch.uint8).contiguous()
    z, lse = _outputs(x, logits)
    batch, length, width = x.shape
    slots = logits.shape[2]
    _forward[(slots * -(-width // TILE_D), batch)](
        x, logits, starts, z, lse, length, width, slots,
        BLOCK_T=TILE_T, BLOCK_D=TILE_D, PRECISION=_precision(), num_warps=8,
    )  # fmt: skip
    return z, lse


@torch.library.custom_op("steel::prefix_slots_backward", mutates_args=())
def _slots_backward(
    grad_z: Tensor, x: Tensor, logits: Tensor, starts: Tensor, z: Tensor, lse: Tensor
) -> tuple[Tensor, Tensor]:
    x, logits, starts = x.contiguous(), logits.contiguous(), starts.to(torch.uint8).contiguous()
    batch, length, width = x.shape
    slots, tiles = logits.shape[2], -(-width // TILE_D)
    grad_x = torch.empty_like(x)
    partial = torch.empty(tiles, batch, length, slots, dtype=torch.float32, device=x.device)
    _backward[(tiles, batch)](
        grad_z.contiguous(), x, logits, starts, z, lse, grad_x, partial, length, width, slots,
        BLOCK_P=next_power_of_2(slots), BLOCK_T=TILE_T, BLOCK_D=TILE_D, PRECISION=_precision(),
        num_warps=8,
    )  # fmt: skip
    return grad_x, partial.sum(0).to(logits.dtype)


def _outputs(x: Tensor, logits: Tensor) -> tuple[Tensor, Tensor]:
    batch, length, slots = logits.shape
    z = torch.empty(batch, length, slots, x.shape[2], dtype=x.dtype, device=x.device)
    return z, torch.empty(batch, length, slots, dtype=torch.float32, device=x.device)


@_slots.register_fake
def _(x, logits, starts):
    return _outputs(x, logits)


@_slots_backward.register_fake
def _(grad_z, x, logits, starts, z, lse):
    return tuple(torch.empty(t.shape, dtype=t.dtype, device=t.device) for t in (x, logits))


def _keep(ctx, inputs, output):
    ctx.mark_non_differentiable(output[1])
    ctx.save_for_backward(*inputs, *output)


def _gradients(ctx, grad_z, _):
    return *_slots_backward(grad_z, *ctx.saved_tensors), None


_slots.register_autograd(_gradients, setup_context=_keep)


def _precision() -> str:
    """FP32 accuracy from tensor cores; the interpreter knows one precision."""
    return "ieee" if INTERPRETED else "tf32x3"
