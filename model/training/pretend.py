"""The engine's code on the paths that it takes on a GPU, where there is none: to see what it would hold in memory.

Used under fake tensors (torch._subclasses.fake_tensor), which have shapes and no content. Inside `gpu()`

- attention, operators, the loss's chunks and the count of targets are chosen as on CUDA;
- a Triton kernel does nothing; the Python around it, which allocates, runs as it stands;
- flash attention allocates what the library does: the output and the logsumexp forward; in the backward pass an FP32
  sum of dq and one number a query, each document rounded up by 128 queries (flash-attn 2, csrc/flash_attn/flash_api.cpp);
- `sdpa` allocates what torch's CPU kernel does: output and logsumexp, as the memory-efficient one on CUDA.

`sizes()` answers what only content can tell: how many segments and tokens the FFN kind `merge` finds. The same code runs
once on a narrow model with real documents; the counts are read off and given back in that order.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from types import ModuleType
from typing import Any

import torch
from torch import Tensor
from torch.autograd import Function
from torch.utils._python_dispatch import TorchDispatchMode, _disable_current_modes

from kernels import cross_entropy, experts, prefix, rms_norm, rope
from model.steel import attention, modeling
from model.steel.ops import PLAIN
from model.training import fused, loss, objectives, parallel
from model.training.loader import IGNORED

MULTIPROCESSORS = 132
"""Of an H100: the RMSNorm kernel's partial sums are four rows for each."""
_KERNELS = {
    experts: ("_forward", "_backward"),
    prefix: ("_forward", "_backward"),
    rms_norm: ("_forward", "_backward"),
    rope: ("_turn",),
    cross_entropy: ("_softmax_gradient",),
}
_OPERATORS = {
    experts: ("_combine", "_combine_backward"),
    prefix: ("_slots", "_slots_backward"),
    rms_norm: ("_norm", "_norm_backward"),
    rope: ("_rotate", None),
}
"""The operator that autograd sees, and the one that its backward pass calls."""


@contextmanager
def gpu() -> Iterator[None]:
    """Compute as on CUDA: `attention: auto` is varlen, `kernels: auto` is on."""
    with ExitStack() as stack:

        def swap(owner: Any, name: str, value: Any) -> None:
            stack.callback(setattr, owner, name, getattr(owner, name))
            setattr(owner, name, value)

        for module in (parallel, modeling):
            swap(module, "choose", lambda name, *_: "varlen" if name == "auto" else name)
        swap(attention, "KERNELS", dict.fromkeys(attention.KERNELS, _flash))
        swap(parallel, "operators", lambda setting, _: PLAIN if setting == "off" else fused.FUSED)
        swap(parallel, "fill", lambda *_: None)  # weights have no content here
        swap(parallel, "prepare", _as_it_is(parallel.prepare))
        swap(loss, "chunk_size", lambda *_: loss.CHUNK_TOKENS)
        swap(objectives, "target_rows", _target_rows)
        swap(torch, "_assert_async", lambda *_: None)
        swap(cross_entropy, "_add_product", lambda *_: None)  # on CUDA it is one product into the sum
        swap(rms_norm, "programs", lambda _, per: per * MULTIPROCESSORS)
        for module, names in _KERNELS.items():
            swap(module, "runs_triton", lambda _: True)
            for name in names:
                swap(module, name, _Nothing())
        for module, (name, backward) in _OPERATORS.items():
            opened = _opened(module, getattr(module, name))
            swap(module, name, opened)
            if backward is not None:
                swap(module, backward, getattr(module, backward)._init_fn)
        yield


def sizes(run: Callable[[], Any]) -> list[int]:
    """The counts that `run` asks of real tensors, in order."""
    with torch.no_grad(), _Asked() as asked:
        run()
    return asked.answers


class Answers(TorchDispatchMode):
    """Answers `nonzero` and `item` of fake tensors with counts of `sizes`, from the first one at each `rewind`."""

    def __init__(self, answers: list[int]):
        super().__init__()
        self._answers, self._next = answers, 0

    def rewind(self) -> None:
        self._next = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        if func is torch.ops.aten.nonzero.default:
            return args[0].new_empty(self._answer(), args[0].dim(), dtype=torch.long)
        if func is torch.ops.aten._local_scalar_dense.default:
            return 1.0 if args[0].is_floating_point() else self._answer()  # the gradient's norm, or a count
        return func(*args, **(kwargs or {}))

    def _answer(self) -> int:
        if not self._answers:
            raise RuntimeError("the code asks for a count that no run has shown")
        answer = self._answers[self._next % len(self._answers)]  # every layer asks the same
        self._next += 1
        return answer


class _Asked(TorchDispatchMode):
    def __init__(self) -> None:
        super().__init__()
        self.answers: list[int] = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        if func is torch.ops.aten.nonzero.default:
            self.answers.append(len(out))
        if func is torch.ops.aten._local_scalar_dense.default and not args[0].is_floating_point():
            self.answers.append(out)
        return out


def _as_it_is(prepare: Callable[..., None]) -> Callable[..., None]:
    """On the meta device, where nothing is fake: a mesh of two dimensions looks its ranks up in real tensors."""

    def outside(*args: Any, **more: Any) -> None:
        with _disable_current_modes():
            prepare(*args, **more)

    return outside


class _Nothing:
    """A kernel that is not started: kernel[grid](...) does nothing."""

    def __getitem__(self, grid: Any) -> Callable[..., None]:
        return lambda *args, **constants: None


def _opened(module: ModuleType, operator: Any) -> Callable[..., Any]:
    """An operator of torch.library as a plain autograd function, so that what its body allocates is seen."""

    class Opened(Function):
        @staticmethod
        def forward(ctx, *inputs):
            output = operator._init_fn(*inputs)
            module._keep(ctx, inputs, output)
            return output

        @staticmethod
        def backward(ctx, *grads):
            return module._gradients(ctx, *grads)

    return Opened.apply


def _target_rows(labels: Tensor, count: int | None) -> Tensor:
    """objectives.target_rows; where it would count, every label is a target."""
    return torch.nonzero_static(labels != IGNORED, size=labels.numel() if count is None else count).squeeze(1)


def _flash(q: Tensor, k: Tensor, v: Tensor, edges: Tensor, longest: int, scaling: float) -> Tensor:
    if k.shape[1] != q.shape[1]:
        k, v = (x.repeat_interleave(q.shape[1] // k.shape[1], dim=1) for x in (k, v))
    return _Flash.apply(q, k, v, edges)


class _Flash(Function):
    """The memory of flash attention: q, k, v [N, H, head_dim]."""

    @staticmethod
    def forward(ctx, q, k, v, edges):
        out, lse = torch.empty_like(q), q.new_empty(q.shape[1], q.shape[0], dtype=torch.float32)
        ctx.save_for_backward(q, k, v, out, lse)
        ctx.padded = q.shape[0] + 128 * (len(edges) - 1)
        return out

    @staticmethod
    def backward(ctx, grad):
        q, k, v, *_ = ctx.saved_tensors
        width = -(-q.shape[2] // 32) * 32
        sums = [
            q.new_empty(ctx.padded, q.shape[1], width, dtype=torch.float32),
            q.new_empty(q.shape[1], ctx.padded, dtype=torch.float32),
        ]
        grads = tuple(torch.empty_like(x) for x in (q, k, v))
        del sums
        return *grads, None
