"""The head and its loss, over the positions that have a target, a chunk at a time.

The logits of a whole batch are the largest tensor of training (16,384 tokens times 151,936 classes: 10 GB in FP32);
nobody needs them at once. Both functions walk over chunks of tokens, with the softmax in FP32:

- `cross_entropy_sum` computes the gradient during the forward pass (the loss is a plain sum, so the gradient of
  every logit is known): 6 N D V operations, no logits kept;
- `token_logprobs` gives one differentiable log-probability per target and computes the logits again in the
  backward pass: 8 N D V operations, for losses such as DPO's that weigh sequences by their sums.

A soft cap makes of a logit l what the model calls its logit, cap tanh(l / cap), whose derivative is 1 - tanh(l / cap)^2.

Shape suffixes: P positions, N targets among them, C of those in a chunk, D hidden_size, V classes.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor
from torch.autograd import Function

from kernels.cross_entropy import linear_cross_entropy

CHUNK_LOGITS = 1 << 20
"""Logits of a chunk on a CPU: 4 MB in FP32, about what stays in a core's caches. At least 256 tokens, though: each chunk
adds to the gradient of the whole head once."""
CHUNK_TOKENS = 4096
"""Tokens of a chunk on an accelerator: few, large products (1.2 GB of BF16 logits at 151,936 classes)."""


def chunk_size(hidden_PD: Tensor, classes: int) -> int:
    """Tokens per chunk."""
    return CHUNK_TOKENS if hidden_PD.is_cuda else max(256, CHUNK_LOGITS // classes)


def cross_entropy_sum(
    hidden_PD: Tensor,
    head_VD: Tensor,
    targets_N: Tensor,
    rows_N: Tensor,
    scale: float = 1.0,
    z_loss: float = 0.0,
    *,
    fused: bool = False,
    each_N: Tensor | None = None,
    cap: float | None = None,
) -> tuple[Tensor, Tensor]:
    """scale * sum over the targets of (-log p + z_loss * logsumexp^2), to differentiate; and the sum of -log p alone.
    `each_N`: FP32, filled with every target's -log p.

    `rows_N`: which position each target belongs to, without repetition. The scale belongs in here, so that it meets
    the gradient while that is FP32. `fused`: by the kernel, which takes the positions with a target gathered, and has no
    soft cap `cap` (ValueError).
    """
    if fused and cap is not None:
        raise ValueError("the fused loss has no soft cap")
    if fused:
        if len(rows_N) < len(hidden_PD):
            hidden_PD = hidden_PD.index_select(0, rows_N)
        return linear_cross_entropy(hidden_PD, head_VD, targets_N, scale=scale, z_loss=z_loss, each_N=each_N)
    return _CrossEntropySum.apply(hidden_PD, head_VD, targets_N, rows_N, scale, z_loss, each_N, cap)


def token_logprobs(
    hidden_PD: Tensor, head_VD: Tensor, targets_N: Tensor, rows_N: Tensor, cap: float | None = None
) -> Tensor:
    """log p of each target, FP32 [N]; `rows_N`, `cap` as above."""
    return _TokenLogprobs.apply(hidden_PD, head_VD, targets_N, rows_N, cap)


class _CrossEntropySum(Function):
    @staticmethod
    def forward(ctx, hidden_PD, head_VD, targets_N, rows_N, scale, z_loss, each_N, cap):
        need = any(ctx.needs_input_grad)
        grad_hidden_PD = torch.zeros_like(hidden_PD) if need else None
        grad_head_VD = torch.zeros_like(head_VD, dtype=torch.float32) if need else None
        nll = hidden_PD.new_zeros((), dtype=torch.float64)
        penalty = hidden_PD.new_zeros((), dtype=torch.float64)
        done = 0
        for rows_C, t_C1 in _chunks(hidden_PD, head_VD, targets_N, rows_N):
            h_CD = hidden_PD[rows_C]
            logits_CV = _logits(h_CD, head_VD, cap)
            prob_CV = torch.softmax(logits_CV, dim=-1, dtype=torch.float32)
            # one exponential per logit: -log p is taken of the targets alone (FP32 reaches down to p = 1e-38)
            nll_C1 = -prob_CV.gather(1, t_C1).clamp_(min=torch.finfo(torch.float32).tiny).log_()
            nll += nll_C1.double().sum()
            if each_N is not None:
                each_N[done : done + len(rows_C)] = nll_C1.squeeze(1)
                done += len(rows_C)
            if z_loss:
                lse_C1 = logits_CV.gather(1, t_C1).float() + nll_C1
                penalty += (lse_C1.double() ** 2).sum()
            if not need:
                continue
            grad_CV = prob_CV
            if z_loss:
                grad_CV *= 1 + 2 * z_loss * lse_C1
            grad_CV.scatter_add_(1, t_C1, grad_CV.new_full(t_C1.shape, -1.0))
            _through_cap(grad_CV, logits_CV, cap)
            grad_CV = grad_CV.mul_(scale).to(h_CD.dtype)
            grad_hidden_PD.index_copy_(0, rows_C, grad_CV @ head_VD)
            _add_product(grad_head_VD, grad_CV, h_CD)
        if need:
            ctx.save_for_backward(grad_hidden_PD, grad_head_VD)
            ctx.head_dtype = head_VD.dtype
        nll_sum = nll.float()
        ctx.mark_non_differentiable(nll_sum)
        return (scale * (nll + z_loss * penalty)).float(), nll_sum

    @staticmethod
    def backward(ctx, grad_loss, _):
        grad_hidden_PD, grad_head_VD = ctx.saved_tensors
        grad_head_VD = (grad_head_VD * grad_loss).to(ctx.head_dtype)
        grad_hidden_PD = grad_hidden_PD * grad_loss.to(grad_hidden_PD.dtype)
        return grad_hidden_PD, grad_head_VD, None, None, None, None, None, None


class _TokenLogprobs(Function):
    @staticmethod
    def forward(ctx, hidden_PD, head_VD, targets_N, rows_N, cap):
        out = [
            _logits(hidden_PD[rows_C], head_VD, cap).float().log_softmax(-1).gather(1, t_C1).squeeze(1)
            for rows_C, t_C1 in _chunks(hidden_PD, head_VD, targets_N, rows_N)
        ]
        ctx.save_for_backward(hidden_PD, head_VD, targets_N, rows_N)
        ctx.cap = cap
        return torch.cat(out) if out else hidden_PD.new_zeros(0, dtype=torch.float32)

    @staticmethod
    def backward(ctx, grad_N):
        hidden_PD, head_VD, targets_N, rows_N = ctx.saved_tensors
        grad_hidden_PD = torch.zeros_like(hidden_PD)
        grad_head_VD = torch.zeros_like(head_VD, dtype=torch.float32)
        done = 0
        for rows_C, t_C1 in _chunks(hidden_PD, head_VD, targets_N, rows_N):
            h_CD, g_C1 = hidden_PD[rows_C], grad_N[done : done + len(rows_C), None]
            done += len(rows_C)
            logits_CV = _logits(h_CD, head_VD, ctx.cap).float()
            grad_CV = torch.log_softmax(logits_CV, dim=-1).exp_().mul_(-g_C1)
            grad_CV.scatter_add_(1, t_C1, g_C1)
            _through_cap(grad_CV, logits_CV, ctx.cap)
            grad_CV = grad_CV.to(h_CD.dtype)
            grad_hidden_PD.index_copy_(0, rows_C, grad_CV @ head_VD)
            _add_product(grad_head_VD, grad_CV, h_CD)
        return grad_hidden_PD, grad_head_VD.to(head_VD.dtype), None, None, None


def _chunks(
    hidden_PD: Tensor, head_VD: Tensor, targets_N: Tensor, rows_N: Tensor
) -> Iterator[tuple[Tensor, Tensor]]:
    """(positions [C], targets [C, 1]) of every chunk."""
    step = chunk_size(hidden_PD, head_VD.shape[0])
    for i in range(0, len(rows_N), step):
        yield rows_N[i : i + step], targets_N[i : i + step, None]


def _add_product(sum_VD: Tensor, grad_CV: Tensor, h_CD: Tensor) -> None:
    """sum += grad^T h, the sum in FP32."""
    if grad_CV.dtype == sum_VD.dtype:
        sum_VD.addmm_(grad_CV.t(), h_CD)
    else:
        sum_VD += grad_CV.t() @ h_CD


def _logits(hidden_CD: Tensor, head_VD: Tensor, cap: float | None) -> Tensor:
    logits_CV = hidden_CD @ head_VD.t()
    return logits_CV if cap is None else logits_CV.div_(cap).tanh_().mul_(cap)


def _through_cap(grad_CV: Tensor, logits_CV: Tensor, cap: float | None) -> None:
    """The gradient of capped logits becomes that of the products, in place."""
    if cap is not None:
        grad_CV.mul_(1 - (logits_CV.float() / cap) ** 2)
