"""BF16 products on a CPU without instructions for them: computed in FP32, rounded to BF16.

Such a CPU (AVX2 alone, say) multiplies BF16 matrices number by number, more than ten times slower than FP32 ones. FP32
holds every BF16 number and every product of two, and the sums are FP32 in either way: only their order differs. `precision:
auto` takes FP32 there; this is for runs that ask for BF16.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
from torch import Tensor

PROBES = ("_is_avx512_bf16_supported", "_is_amx_tile_supported")


def cpu_has_bf16() -> bool:
    """Whether this CPU has instructions for products of BF16 numbers."""
    return any(getattr(torch.cpu, probe, lambda: False)() for probe in PROBES)


@contextmanager
def widened(dtype: torch.dtype, device: torch.device) -> Iterator[None]:
    """While it lasts, products of BF16 matrices on the CPU are computed in FP32, where the CPU has no better way."""
    if dtype is not torch.bfloat16 or device.type != "cpu" or cpu_has_bf16():
        yield
        return
    library = torch.library.Library("aten", "IMPL")
    try:
        with warnings.catch_warnings(action="ignore", category=UserWarning):  # that an operator is replaced
            for name, product in PRODUCTS.items():
                library.impl(name, product, "CPU", allow_override=True)
        yield
    finally:
        library._destroy()


def _wide(*tensors: Tensor) -> list[Tensor]:
    return [tensor.float() for tensor in tensors]


def _plain(operator: Callable[..., Tensor]) -> Callable[..., Tensor]:
    """mm or bmm, by its form with `out`: that is another operator, which nothing here replaces."""

    def product(a: Tensor, b: Tensor) -> Tensor:
        if a.dtype is b.dtype is torch.bfloat16:
            return product(*_wide(a, b)).bfloat16()
        return operator(a, b, out=a.new_empty(*a.shape[:-1], b.shape[-1]))

    return product


def _adding(operator: Callable[..., Tensor]) -> Callable[..., Tensor]:
    """addmm or baddbmm."""

    def product(start: Tensor, a: Tensor, b: Tensor, *, beta: float = 1, alpha: float = 1) -> Tensor:
        if a.dtype is b.dtype is torch.bfloat16:
            return product(*_wide(start, a, b), beta=beta, alpha=alpha).bfloat16()
        out = a.new_empty(*a.shape[:-1], b.shape[-1])
        return operator(start, a, b, beta=beta, alpha=alpha, out=out)

    return product


def _adding_in_place(operator: Callable[..., Tensor]) -> Callable[..., Tensor]:
    """addmm_ or baddbmm_."""

    def product(start: Tensor, a: Tensor, b: Tensor, *, beta: float = 1, alpha: float = 1) -> Tensor:
        if a.dtype is b.dtype is torch.bfloat16:
            return start.copy_(product(*_wide(start, a, b), beta=beta, alpha=alpha))
        return operator(start, a, b, beta=beta, alpha=alpha, out=start)

    return product


PRODUCTS: dict[str, Callable[..., Tensor]] = {
    "mm": _plain(torch.ops.aten.mm.out),
    "bmm": _plain(torch.ops.aten.bmm.out),
    "addmm": _adding(torch.ops.aten.addmm.out),
    "baddbmm": _adding(torch.ops.aten.baddbmm.out),
    "addmm_": _adding_in_place(torch.ops.aten.addmm.out),
    "baddbmm_": _adding_in_place(torch.ops.aten.baddbmm.out),
}
