"""The head and its cross-entropy in one operator: no logits but a chunk's, gradients made on the way forward.

    loss = scale * sum over tokens with a target of (lse - l_y + z lse^2)         l = head h, lse = log sum_v exp(l_v)
    dl_v = scale * ((1 + 2 z lse) exp(l_v - lse) - [v = y])       dh = dl head       dhead = sum over tokens of dl h^T

The loss is a plain sum, so dl is known as soon as l is: three products (6 N D V operations), where computing l again
would make it four. Per chunk of tokens: one library product for l, one kernel that turns l into dl in its place (two
walks along a row, the second backwards, through what the cache still holds), two library products for dh and dhead.
dhead is added up in FP32 inside its product. Nothing waits for the device.

Memory beyond the gradients themselves, N = 16,384, D = 1,792, V = 151,936, BF16 (`extra_bytes`): l of a chunk of C
tokens is 2 C V bytes, dhead in FP32 4 V D = 1.089 GB, of which 0.545 GB become the BF16 gradient later:

    C = 4,096   1.245 + 1.089 + 0.059 - 0.604 = 1.79 GB     (1.25 GB if the FP32 sum is counted as the gradient)
    C = 2,048   0.622 + 1.089 + 0.059 - 0.604 = 1.17 GB     the default: the largest power of two within 1.3 GB

In the FP32 head of an unsharded model the sum is the gradient, and l has 4 bytes: 2,048 tokens, 1.25 GB. Each chunk
reads and writes dhead once: 8.7 GB in 4 chunks, 17.4 GB in 8. Other implementations choose 64 to 128 chunks here
(docs/kernels.md).

Compared with: Liger-Kernel's fused_linear_cross_entropy (arXiv 2410.10989), Cut Cross-Entropy (arXiv 2411.09009),
torch.nn.functional.linear_cross_entropy.

Shape suffixes: N tokens, C of those in a chunk, D hidden_size, V classes.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.autograd import Function
from torch.nn import functional as F

from kernels.launch import Cost, jit, next_power_of_2, runs_triton, tl

IGNORED = -100
CHUNK_TOKENS = 4096
"""At most: larger products gain nothing any more."""
MEMORY = 1_300_000_000
"""Bytes that a default chunk may take, beyond the gradients."""


def linear_cross_entropy(
    hidden_ND: Tensor,
    head_VD: Tensor,
    targets_N: Tensor,
    *,
    ignore_index: int = IGNORED,
    scale: float = 1.0,
    z_loss: float = 0.0,
    chunk: int | None = None,
    each_N: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """(loss as above, to differentiate; the sum of -log p alone), FP32 scalars. `each_N`: FP32, filled with every
    token's -log p (0 where it has no target).

    hidden [N, D] and head [V, D] of one dtype, targets int64 [N]. `chunk` tokens at a time, None: `default_chunk`.
    A target that is neither in [0, V) nor `ignore_index` is an error, on CUDA a device-side one as with F.cross_entropy.
    """
    if not runs_triton(hidden_ND):
        return linear_cross_entropy_definition(
            hidden_ND,
            head_VD,
            targets_N,
            ignore_index=ignore_index,
            scale=scale,
            z_loss=z_loss,
            each_N=each_N,
        )
    if len(targets_N) != len(hidden_ND):
        raise ValueError(
            f"hidden states and targets differ in size: {len(hidden_ND)} and {len(targets_N)} tokens"
        )
    known_N = (targets_N == ignore_index) | ((targets_N >= 0) & (targets_N < head_VD.shape[0]))
    # the kernel would read another row's logits; asked on the device, so nothing waits
    torch._assert_async(
        known_N.all(), "a target of the loss is out of bounds: neither a class nor ignore_index"
    )
    if chunk is None:
        chunk = default_chunk(len(hidden_ND), head_VD.shape[0], head_VD.shape[1], head_VD.element_size())
    return _LinearCrossEntropy.apply(
        hidden_ND, head_VD, targets_N, ignore_index, scale, z_loss, chunk, each_N
    )


def linear_cross_entropy_definition(
    hidden_ND: Tensor,
    head_VD: Tensor,
    targets_N: Tensor,
    *,
    ignore_index: int = IGNORED,
    scale: float = 1.0,
    z_loss: float = 0.0,
    each_N: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """The plain definition, all logits at once."""
    logits_NV = hidden_ND @ head_VD.t()
    logits_NV = logits_NV.to(torch.promote_types(logits_NV.dtype, torch.float32))
    nll = F.cross_entropy(logits_NV, targets_N, ignore_index=ignore_index, reduction="sum")
    lse_N = torch.logsumexp(logits_NV, dim=-1).masked_fill(targets_N == ignore_index, 0.0)
    if each_N is not None:
        each_N.copy_(
            F.cross_entropy(logits_NV.detach(), targets_N, ignore_index=ignore_index, reduction="none")
        )
    return scale * (nll + z_loss * lse_N.square().sum()), nll.detach()


def default_chunk(tokens: int, classes: int, hidden: int, size: int) -> int:
    """The largest power of two up to CHUNK_TOKENS whose `extra_bytes` are within MEMORY (at least 256)."""
    chunk = CHUNK_TOKENS
    while chunk > 256 and extra_bytes(tokens, classes, hidden, size, chunk) > MEMORY:
        chunk //= 2
    return chunk


def extra_bytes(tokens: int, classes: int, hidden: int, size: int, chunk: int) -> int:
    """Peak memory beyond inputs and gradients, at `size` bytes a number: the larger of forward's (a chunk's logits, the
    FP32 sum, dh; the final gradients are not there yet) and backward's (the FP32 sum and dh, beside the final ones)."""
    head, states = classes * hidden, tokens * hidden * size
    rows = 12 * tokens  # -log p and lse of each token, and what is added up of them
    forward = min(chunk, tokens) * classes * size + 4 * head - head * size + rows
    return max(forward, 4 * head + states + rows)


def cost(tokens: int, classes: int, hidden: int, size: int) -> Cost:
    """Forward and backward: three products; hidden, head and both gradients moved once, no logits."""
    return Cost(2 * size * (tokens + classes) * hidden, 6 * tokens * classes * hidden)


@jit
def _softmax_gradient(
    logits, targets, nll, square, classes, ignore_index, scale, z_loss,
    GRADIENT: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    row = tl.program_id(0).to(tl.int64)
    logits += row * classes
    target = tl.load(targets + row)
    live = target != ignore_index
    # read before anything is overwritten: the reductions below stand between
    own = tl.load(logits + tl.where(live, target, 0)).to(tl.float32)
    i = tl.arange(0, BLOCK)
    blocks = tl.cdiv(classes, BLOCK)
    largest = float("-inf")
    total = 0.0
    for block in range(blocks):
        v = block * BLOCK + i
        value = tl.load(logits + v, mask=v < classes, other=float("-inf")).to(tl.float32)
        larger = tl.maximum(largest, tl.max(value, axis=0))
        total = total * tl.exp(largest - larger) + tl.sum(tl.exp(value - larger), axis=0)
        largest = larger
    lse = largest + tl.log(total)
    tl.store(nll + row, tl.where(live, lse - own, 0.0))
    tl.store(square + row, tl.where(live, lse * lse, 0.0))
    if GRADIENT:
        hit = tl.where(live, scale, 0.0)
        factor = hit * (1.0 + 2.0 * z_loss * lse)
        for block in range(blocks):
            v = (blocks - 1 - block) * BLOCK + i
            value = tl.load(logits + v, mask=v < classes, other=float("-inf")).to(tl.float32)
            grad = factor * tl.exp(value - lse) - tl.where(v == target, hit, 0.0)
            tl.store(logits + v, grad.to(logits.dtype.element_ty), mask=v < classes)


class _LinearCrossEntropy(Function):
    @staticmethod
    def forward(ctx, hidden_ND, head_VD, targets_N, ignore_index, scale, z_loss, chunk, each_N):
        hidden_ND, head_VD = hidden_ND.contiguous(), head_VD.contiguous()
        tokens, classes = hidden_ND.shape[0], head_VD.shape[0]
        need = ctx.needs_input_grad[0] or ctx.needs_input_grad[1]
        nll_N, square_N = hidden_ND.new_zeros(2, tokens, dtype=torch.float32)
        if each_N is not None:
            nll_N = each_N.zero_()
        logits_CV = hidden_ND.new_empty(min(chunk, tokens), classes)
        grad_hidden_ND = torch.empty_like(hidden_ND) if need else None
        grad_head_VD = torch.zeros_like(head_VD, dtype=torch.float32) if need else None
        for begin in range(0, tokens, chunk):
            part = slice(begin, min(begin + chunk, tokens))
            h_CD, l_CV = hidden_ND[part], logits_CV[: part.stop - part.start]
            torch.mm(h_CD, head_VD.t(), out=l_CV)
            block = min(8192, next_power_of_2(classes))
            _softmax_gradient[(len(h_CD),)](
                l_CV, targets_N[part], nll_N[part], square_N[part], classes, ignore_index, scale, z_loss,
                GRADIENT=need, BLOCK=block, num_warps=max(1, min(16, block // 512)),
            )  # fmt: skip
            if need:
                torch.mm(l_CV, head_VD, out=grad_hidden_ND[part])
                _add_product(grad_head_VD, l_CV, h_CD)
        if need:
            ctx.save_for_backward(grad_hidden_ND, grad_head_VD)
            ctx.head_dtype = head_VD.dtype
        nll = nll_N.sum(dtype=torch.float64)
        penalty = square_N.sum(dtype=torch.float64)
        nll_sum = nll.float()
        ctx.mark_non_differentiable(nll_sum)
        return (scale * (nll + z_loss * penalty)).float(), nll_sum

    @staticmethod
    def backward(ctx, grad_loss, _):
        grad_hidden_ND, grad_head_VD = ctx.saved_tensors
        # multiplied and rounded in one pass: no second FP32 tensor of the head's size
        final_VD = torch.empty_like(grad_head_VD, dtype=ctx.head_dtype)
        torch.mul(grad_head_VD, grad_loss, out=final_VD)
        grad_hidden_ND = grad_hidden_ND * grad_loss.to(grad_hidden_ND.dtype)
        return grad_hidden_ND, final_VD, None, None, None, None, None, None


def _add_product(sum_VD: Tensor, grad_CV: Tensor, h_CD: Tensor) -> None:
    """sum += grad^T h with the sum in FP32, whatever the operands (on CUDA: torch >= 2.10, pytorch PR 167931)."""
    if grad_CV.dtype == sum_VD.dtype:
        sum_VD.addmm_(grad_CV.t(), h_CD)
    elif sum_VD.is_cuda:
        torch.addmm(sum_VD, grad_CV.t(), h_CD, out_dtype=torch.float32, out=sum_VD)
    else:
        sum_VD.addmm_(grad_CV.t().float(), h_CD.float())
