"""BF16 products on a CPU without instructions for them: those of FP32, rounded; all else as it was."""

from __future__ import annotations

import pytest
import torch

from model.training import wide_products
from model.training.wide_products import PRODUCTS, widened

CPU = torch.device("cpu")


@pytest.fixture
def without_bf16(monkeypatch):
    monkeypatch.setattr(wide_products, "cpu_has_bf16", lambda: False)


def products(dtype: torch.dtype) -> dict[str, torch.Tensor]:
    chance = torch.Generator().manual_seed(0)
    a, b, c = (
        torch.randn(shape, generator=chance).to(dtype) for shape in ((4, 33, 70), (4, 70, 25), (4, 33, 25))
    )
    return {
        "mm": a[0] @ b[0],
        "bmm": a @ b,
        "addmm": torch.addmm(c[0, 0], a[0], b[0], beta=0.5, alpha=2),  # a row for all
        "baddbmm": torch.baddbmm(c, a, b, beta=0.5, alpha=2),
        "addmm_": c[0].clone().addmm_(a[0], b[0], alpha=-1),
        "baddbmm_": c.clone().baddbmm_(a, b, beta=0, alpha=3),
    }


@pytest.mark.parametrize("name", PRODUCTS)
def test_a_product_is_that_of_fp32_rounded(name, without_bf16):
    exact = products(torch.float64)[name]
    narrow = products(torch.bfloat16)[name]
    with widened(torch.bfloat16, CPU):
        wide = products(torch.bfloat16)[name]
    assert wide.dtype is torch.bfloat16
    # BF16 of numbers that were BF16 before: the operators of torch are no closer
    assert (wide.double() - narrow.double()).abs().max() <= 2**-7 * exact.abs().max()
    torch.testing.assert_close(wide, narrow, rtol=2**-7, atol=2**-6)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.int64])
def test_other_numbers_are_multiplied_as_before(dtype, without_bf16):
    def made() -> dict[str, torch.Tensor]:
        if dtype.is_floating_point:
            return products(dtype)
        return {"mm": torch.ones(3, 4, dtype=dtype) @ torch.ones(4, 2, dtype=dtype)}

    before = made()
    with widened(torch.bfloat16, CPU):
        during = made()
    assert all(torch.equal(before[name], during[name]) for name in before)


def test_two_types_are_refused_as_before(without_bf16):
    with widened(torch.bfloat16, CPU), pytest.raises(RuntimeError, match="same dtype"):
        torch.ones(2, 2).bfloat16() @ torch.ones(2, 2)


def test_gradients_go_through_it_and_it_ends_with_the_training(without_bf16):
    x, w = (torch.ones(3, 3).bfloat16().requires_grad_() for _ in range(2))
    plain = products(torch.bfloat16)
    calls = []
    with pytest.MonkeyPatch.context() as patch:
        wide = wide_products._wide
        patch.setattr(wide_products, "_wide", lambda *tensors: calls.append(len(tensors)) or wide(*tensors))
        with widened(torch.bfloat16, CPU):
            torch.nn.functional.linear(x, w).sum().backward()
        assert calls == [2, 2, 2], "forward and both gradients"
        again = products(torch.bfloat16)
    assert calls == [2, 2, 2]
    assert all(torch.equal(plain[name], again[name]) for name in plain)
    assert torch.equal(x.grad, torch.full((3, 3), 3.0).bfloat16())


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_nothing_is_replaced_where_it_gains_nothing(dtype, monkeypatch):
    monkeypatch.setattr(wide_products, "cpu_has_bf16", lambda: dtype is torch.bfloat16)
    monkeypatch.setattr(wide_products, "PRODUCTS", {"mm": None})  # would fail
    with widened(dtype, CPU):
        pass
    with widened(torch.bfloat16, torch.device("cuda")):
        pass
