"""The second layer of a Soft MoE's experts, fused with the sum over them.

    y_n = sum_e silu(h_ne G_e) * (c_ne h_ne V_e)            G_e, V_e: rows e W ... (e + 1) W of `gate`, `value`

    a = h_e G_e, v = h_e V_e, g = dy                        per expert, [N, D]
    da = g c v silu'(a)      dv = g c silu(a)               dc = sum_D g silu(a) v
    dh_e = da G_e^T + dv V_e^T    dG_e = h_e^T da    dV_e = h_e^T dv

Soft MoE: Puigcerver et al. 2023, arXiv 2308.00951; both layers gated: Steel-LLM, arXiv 2502.06635.

Written out, a and v are [E, N, D]: 704 MB a layer at 16,384 tokens of Steel-1B, 12.7 GB over its 18 layers. Forward
never writes them: a tile of y keeps three FP32 accumulators (a, v, and the sum over experts) and walks over all experts,
7 steps of 64 of their width of 448 each. Tiles of the same tokens are computed together: h comes from memory about once,
the weights (19 MB) stay in an H100's L2 cache (50 MB).

Backward computes a and v again (8 products instead of 6 for both directions) and takes one expert at a time: one
kernel makes [da, dv] of an expert, [N, 2 D] = 117 MB that the next expert overwrites, and three library products make
dh_e, dG_e and dV_e of it. dc is summed per tile of D and then over the tiles, in order. Kept for backward: the inputs.

Shape suffixes: N tokens, E experts, W expert_width, D hidden_size.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from kernels.launch import Cost, jit, runs_triton, tl, tuned

BACKWARD_TILE_D = 64
"""Columns of a backward tile. Fixed, because dc's sum is taken per tile.

Within them its order is the compiler's and may go by BLOCK_N and num_warps: bytes of dc may differ between tiles."""


def combine_experts(h_NEW: Tensor, c_NE: Tensor, gate: Tensor, value: Tensor) -> Tensor:
    """h [N, E, W], c [N, E] (FP32 or h's dtype), gate and value [E*W, D] of h's dtype -> [N, D]."""
    if not runs_triton(h_NEW):
        return combine_experts_definition(h_NEW, c_NE, gate, value)
    return _combine(h_NEW, c_NE, gate, value)


def combine_experts_definition(h_NEW: Tensor, c_NE: Tensor, gate: Tensor, value: Tensor) -> Tensor:
    """The plain definition; the weight c meets the narrow h instead of the wide product."""
    experts = h_NEW.shape[1]
    weighted_NEW = c_NE.to(h_NEW.dtype).unsqueeze(-1) * h_NEW
    gate_END = torch.bmm(h_NEW.transpose(0, 1), gate.unflatten(0, (experts, -1)))
    value_END = torch.bmm(weighted_NEW.transpose(0, 1), value.unflatten(0, (experts, -1)))
    return (F.silu(gate_END) * value_END).sum(0)


def cost(tokens: int, experts: int, width: int, hidden: int, size: int, *, backward: bool = False) -> Cost:
    """Backward counts the four products that it needs, not the two that it repeats."""
    product = 2 * tokens * experts * width * hidden
    narrow, wide, weights = tokens * experts * width, tokens * hidden, 2 * experts * width * hidden
    if backward:
        return Cost(size * (2 * narrow + wide + 2 * weights) + 8 * tokens * experts, 4 * product)
    return Cost(size * (narrow + wide + weights) + 4 * tokens * experts, 2 * product)


def backward_bytes(tokens: int, hidden: int, size: int) -> int:
    """Memory that backward takes besides its results: [da, dv] of one expert, and dc per tile of D."""
    return 2 * tokens * hidden * size + 4 * tokens * -(-hidden // BACKWARD_TILE_D)


_TILES = [
    {"BLOCK_N": 128, "BLOCK_D": 128, "GROUP": 8, "num_warps": 8, "num_stages": 3},
    {"BLOCK_N": 128, "BLOCK_D": 64, "GROUP": 8, "num_warps": 8, "num_stages": 4},
    {"BLOCK_N": 64, "BLOCK_D": 128, "GROUP": 16, "num_warps": 8, "num_stages": 4},
    {"BLOCK_N": 64, "BLOCK_D": 64, "GROUP": 16, "num_warps": 4, "num_stages": 3},
    {"BLOCK_N": 64, "BLOCK_D": 64, "GROUP": 16, "num_warps": 4, "num_stages": 2},
]


@tuned(_TILES, {"BLOCK_N": 16, "BLOCK_D": 16, "GROUP": 2}, key=["HIDDEN", "WIDTH", "experts"])
@jit
def _forward(
    h, c, gate, value, y, tokens, experts,
    HIDDEN: tl.constexpr, WIDTH: tl.constexpr, BLOCK_W: tl.constexpr,
    BLOCK_N: tl.constexpr, BLOCK_D: tl.constexpr, GROUP: tl.constexpr,
):  # fmt: skip
    tile_n, tile_d = _tile(tokens, HIDDEN, BLOCK_N, BLOCK_D, GROUP)
    n = tile_n * BLOCK_N + tl.arange(0, BLOCK_N)
    d = tile_d * BLOCK_D + tl.arange(0, BLOCK_D)
    i = tl.arange(0, BLOCK_W)
    # rows beyond the last read it again (no mask in the loop); nothing of them is stored
    h += tl.minimum(n, tokens - 1).to(tl.int64)[:, None] * (experts * WIDTH)
    steps = (WIDTH + BLOCK_W - 1) // BLOCK_W

    total = tl.zeros([BLOCK_N, BLOCK_D], tl.float32)
    a = tl.zeros([BLOCK_N, BLOCK_D], tl.float32)
    v = tl.zeros([BLOCK_N, BLOCK_D], tl.float32)
    # one loop over all experts instead of two nested ones: loads run ahead across an expert's end
    for step in range(experts * steps):
        expert = step // steps
        w = (step % steps) * BLOCK_W + i
        k = expert * WIDTH + w
        weights = k[:, None] * HIDDEN + d[None, :]
        if WIDTH % BLOCK_W == 0 and HIDDEN % BLOCK_D == 0:
            h_tile = tl.load(h + k[None, :])
            g_tile = tl.load(gate + weights)
            v_tile = tl.load(value + weights)
        else:
            h_tile = tl.load(h + k[None, :], mask=(w < WIDTH)[None, :], other=0.0)
            inside = (w < WIDTH)[:, None] & (d < HIDDEN)[None, :]
            g_tile = tl.load(gate + weights, mask=inside, other=0.0)
            v_tile = tl.load(value + weights, mask=inside, other=0.0)
        a = tl.dot(h_tile, g_tile, a, input_precision="ieee")
        v = tl.dot(h_tile, v_tile, v, input_precision="ieee")
        if step % steps == steps - 1:
            weight = tl.load(c + n * experts + expert, mask=n < tokens, other=0.0).to(tl.float32)
            total += a * tl.sigmoid(a) * (weight[:, None] * v)
            a = tl.zeros([BLOCK_N, BLOCK_D], tl.float32)
            v = tl.zeros([BLOCK_N, BLOCK_D], tl.float32)
    at = n.to(tl.int64)[:, None] * HIDDEN + d[None, :]
    tl.store(y + at, total.to(y.dtype.element_ty), mask=(n < tokens)[:, None] & (d < HIDDEN)[None, :])


_BACKWARD_TILES = [
    {"BLOCK_N": 128, "GROUP": 8, "num_warps": 8, "num_stages": 3},
    {"BLOCK_N": 128, "GROUP": 8, "num_warps": 8, "num_stages": 4},
    {"BLOCK_N": 64, "GROUP": 16, "num_warps": 4, "num_stages": 4},
    {"BLOCK_N": 64, "GROUP": 16, "num_warps": 4, "num_stages": 2},
]


@tuned(_BACKWARD_TILES, {"BLOCK_N": 16, "GROUP": 2}, key=["HIDDEN", "WIDTH", "experts"])
@jit
def _backward(
    h, c, gate, value, grad_y, grad_av, partial_c, expert, tokens, experts, tiles_d,
    HIDDEN: tl.constexpr, WIDTH: tl.constexpr, BLOCK_W: tl.constexpr, BLOCK_D: tl.constexpr,
    BLOCK_N: tl.constexpr, GROUP: tl.constexpr,
):  # fmt: skip
    tile_n, tile_d = _tile(tokens, HIDDEN, BLOCK_N, BLOCK_D, GROUP)
    n = tile_n * BLOCK_N + tl.arange(0, BLOCK_N)
    d = tile_d * BLOCK_D + tl.arange(0, BLOCK_D)
    i = tl.arange(0, BLOCK_W)
    # rows beyond the last read it again (no mask in the loop); nothing of them is stored
    h += tl.minimum(n, tokens - 1).to(tl.int64)[:, None] * (experts * WIDTH)
    a = tl.zeros([BLOCK_N, BLOCK_D], tl.float32)
    v = tl.zeros([BLOCK_N, BLOCK_D], tl.float32)
    for begin in range(0, WIDTH, BLOCK_W):
        w = begin + i
        k = expert * WIDTH + w
        weights = k[:, None] * HIDDEN + d[None, :]
        if WIDTH % BLOCK_W == 0 and HIDDEN % BLOCK_D == 0:
            h_tile = tl.load(h + k[None, :])
            g_tile = tl.load(gate + weights)
            v_tile = tl.load(value + weights)
        else:
            h_tile = tl.load(h + k[None, :], mask=(w < WIDTH)[None, :], other=0.0)
            inside = (w < WIDTH)[:, None] & (d < HIDDEN)[None, :]
            g_tile = tl.load(gate + weights, mask=inside, other=0.0)
            v_tile = tl.load(value + weights, mask=inside, other=0.0)
        a = tl.dot(h_tile, g_tile, a, input_precision="ieee")
        v = tl.dot(h_tile, v_tile, v, input_precision="ieee")

    inside = (n < tokens)[:, None] & (d < HIDDEN)[None, :]
    grad = tl.load(grad_y + n.to(tl.int64)[:, None] * HIDDEN + d[None, :], mask=inside, other=0.0).to(
        tl.float32
    )
    weight = tl.load(c + n * experts + expert, mask=n < tokens, other=0.0).to(tl.float32)[:, None]
    sigmoid = tl.sigmoid(a)
    silu = a * sigmoid
    tl.store(partial_c + n * tiles_d + tile_d, tl.sum(grad * silu * v, axis=1), mask=n < tokens)
    slope = sigmoid * (1.0 + a * (1.0 - sigmoid))
    to = grad_av + n.to(tl.int64)[:, None] * (2 * HIDDEN) + d[None, :]
    tl.store(to, (grad * weight * v * slope).to(grad_av.dtype.element_ty), mask=inside)
    tl.store(to + HIDDEN, (grad * weight * silu).to(grad_av.dtype.element_ty), mask=inside)


@jit
def _tile(tokens, hidden, BLOCK_N: tl.constexpr, BLOCK_D: tl.constexpr, GROUP: tl.constexpr):
    """This program's tile, in groups of GROUP tiles of tokens by all tiles of D: neighbours in time share h."""
    program = tl.program_id(0)
    tiles_n = tl.cdiv(tokens, BLOCK_N)
    per_group = GROUP * tl.cdiv(hidden, BLOCK_D)
    first = (program // per_group) * GROUP
    rows = min(tiles_n - first, GROUP)
    inner = program % per_group
    return first + inner % rows, inner // rows


@torch.library.custom_op("steel::combine_experts", mutates_args=())
def _combine(h: Tensor, c: Tensor, gate: Tensor, value: Tensor) -> Tensor:
    h, c, gate, value = (x.contiguous() for x in (h, c, gate, value))
    tokens, experts, width = h.shape
    hidden = gate.shape[1]
    y = h.new_empty(tokens, hidden)

    def grid(tile: dict[str, int]) -> tuple[int]:
        return (-(-tokens // tile["BLOCK_N"]) * -(-hidden // tile["BLOCK_D"]),)

    _forward[grid](
        h, c, gate, value, y, tokens, experts, HIDDEN=hidden, WIDTH=width, BLOCK_W=_block(width)
    )  # fmt: skip
    return y


@torch.library.custom_op("steel::combine_experts_backward", mutates_args=())
def _combine_backward(
    grad_y: Tensor, h: Tensor, c: Tensor, gate: Tensor, value: Tensor
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    grad_y, h, c, gate, value = (x.contiguous() for x in (grad_y, h, c, gate, value))
    tokens, experts, width = h.shape
    hidden = gate.shape[1]
    grad_h, grad_gate, grad_value = torch.empty_like(h), torch.empty_like(gate), torch.empty_like(value)
    grad_c = torch.empty(tokens, experts, dtype=torch.float32, device=h.device)
    both = torch.cat((gate, value), dim=1)
    grad_av = h.new_empty(tokens, 2 * hidden)
    tiles_d = -(-hidden // BACKWARD_TILE_D)
    partial_c = torch.empty(tokens, tiles_d, dtype=torch.float32, device=h.device)

    def grid(tile: dict[str, int]) -> tuple[int]:
        return (-(-tokens // tile["BLOCK_N"]) * tiles_d,)

    for e in range(experts):
        rows = slice(e * width, (e + 1) * width)
        _backward[grid](
            h, c, gate, value, grad_y, grad_av, partial_c, e, tokens, experts, tiles_d,
            HIDDEN=hidden, WIDTH=width, BLOCK_W=_block(width), BLOCK_D=BACKWARD_TILE_D,
        )  # fmt: skip
        torch.sum(partial_c, 1, out=grad_c[:, e])
        torch.mm(grad_av, both[rows].t(), out=grad_h[:, e])
        torch.mm(h[:, e].t(), grad_av[:, :hidden], out=grad_gate[rows])
        torch.mm(h[:, e].t(), grad_av[:, hidden:], out=grad_value[rows])
    return grad_h, grad_c.to(c.dtype), grad_gate, grad_value


@_combine.register_fake
def _(h, c, gate, value):
    return h.new_empty(h.shape[0], gate.shape[1])


@_combine_backward.register_fake
def _(grad_y, h, c, gate, value):
    return tuple(torch.empty(x.shape, dtype=x.dtype, device=x.device) for x in (h, c, gate, value))


def _keep(ctx, inputs, output):
    ctx.save_for_backward(*inputs)


def _gradients(ctx, grad_y):
    return _combine_backward(grad_y, *ctx.saved_tensors)


_combine.register_autograd(_gradients, setup_context=_keep)


def _block(width: int) -> int:
    """Steps of a product over an expert's width: 64 (448 = 7 x 64), less where the width is less."""
    return 64 if width >= 64 else 32 if width > 16 else 16
