"""What all operators share: when their Triton kernels run, how they are tuned, and what they cost.

Triton is optional. Without it the modules import, and every operator is its plain definition. With it the kernels
run on CUDA tensors, and on CPU tensors when the process was started with TRITON_INTERPRET=1 (read by Triton when
a kernel is defined, so it must be set before anything imports triton). The interpreter computes bfloat16 wrong
without saying so (triton-lang/triton issue 4972): such a call is refused here.

Tuning chooses by the clock, so another process may choose another tile. No kernel's program sums over what a tunable
constant cuts: products go over BLOCK_W, which is fixed, and the rest over fixed tiles. Within a tile the order of a sum
is the compiler's, by BLOCK_N and num_warps: experts.py's dc (a sum over 64 columns) may differ between tiles in its last
bits, and whether tl.dot does has not been tried. The same tile gives the same bytes; across processes nothing is promised
on a GPU.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

try:
    import triton
    import triton.language as tl
except ModuleNotFoundError as error:
    if error.name != "triton":
        raise
    triton = tl = None


INTERPRETED = triton is not None and bool(triton.knobs.runtime.interpret)
"""Whether kernels run in Triton's interpreter: fixed when they are defined."""


@dataclass(frozen=True)
class Cost:
    """What an operator cannot do without: every operand read once, every result written once."""

    bytes: int
    flops: int
    """Products and sums of matrix products, two a term; pointwise work is not counted."""

    def seconds(self, bytes_per_second: float, flops_per_second: float) -> float:
        """The roofline: the longer of moving the bytes and computing the products, at the given ceilings."""
        return max(self.bytes / bytes_per_second, self.flops / flops_per_second)


def jit(kernel: Callable) -> Any:
    """triton.jit, or the function itself (never called then) where triton is missing."""
    return kernel if triton is None else triton.jit(kernel)


def tuned(tiles: list[dict[str, int]], interpreted: dict[str, int], key: list[str]) -> Callable:
    """triton.autotune over `tiles` (constants of the kernel, num_warps, num_stages), once per value of `key`.

    The interpreter has no clock to choose by and refuses more than one: it takes `interpreted`.
    """

    def decorate(kernel: Callable) -> Callable:
        if triton is None:
            return kernel
        chosen = [interpreted] if INTERPRETED else tiles
        return triton.autotune([_config(dict(tile)) for tile in chosen], key=key)(kernel)

    return decorate


def _config(tile: dict[str, int]) -> triton.Config:
    options = {name: tile.pop(name) for name in ("num_warps", "num_stages") if name in tile}
    return triton.Config(tile, **options)


def runs_triton(x: Tensor) -> bool:
    """Whether an operator on x runs its kernels here; else its definition."""
    if triton is None:
        return False
    if not INTERPRETED:
        return x.is_cuda
    if x.dtype not in (torch.float32, torch.float16):
        raise TypeError(f"Triton's interpreter computes {x.dtype} wrong: give float32 or float16.")
    return True


def programs(x: Tensor, per_multiprocessor: int) -> int:
    """Size of a persistent grid on x's device (4 in the interpreter)."""
    if not x.is_cuda:
        return 4
    return per_multiprocessor * torch.cuda.get_device_properties(x.device).multi_processor_count


def next_power_of_2(n: int) -> int:
    """The block that covers n: Triton's ranges are powers of two."""
    return 1 << max(0, n - 1).bit_length()
