"""The kernels themselves, on a CUDA device: what the interpreter cannot show. Skipped with a reason elsewhere."""

from __future__ import annotations

import pytest
import torch

from kernels import cross_entropy
from model.steel.attention import Documents, packed_attention
from model.steel.attention_choice import choose
from tests.support.cases import SHAPES, case, check

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(
        not torch.cuda.is_available(), reason="torch sees no CUDA GPU: run pytest -m gpu where there is one"
    ),
]
STEEL_1B = {
    "rms_norm": (512, 1792),
    "rms_norm_residual": (512, 1792),
    "rotate": (2, 300, 32, 32, 56),
    "combine_experts": (300, 6, 448, 1792),
    "prefix_slots": (2, 300, 1792, 6),
    "linear_cross_entropy": (40, 1792, 151_936),
}


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32], ids=str)
@pytest.mark.parametrize("shape", ["normal", "awkward", "steel-1b"])
@pytest.mark.parametrize("name", list(SHAPES))
def test_a_kernel_computes_its_definition(name, shape, dtype):
    sizes = STEEL_1B[name] if shape == "steel-1b" else SHAPES[name][shape]
    check(*case(name, sizes, dtype, "cuda"))


@pytest.mark.parametrize("name", list(SHAPES))
def test_the_same_bytes_every_time(name):
    operator, _, inputs = case(name, STEEL_1B[name], torch.bfloat16, "cuda")
    runs = []
    for _ in range(2):
        leaves = [x.clone().requires_grad_() for x in inputs]
        outputs = operator(*leaves)
        outputs = outputs if isinstance(outputs, tuple) else (outputs,)
        loss = sum(y.float().sin().sum() for y in outputs if y.requires_grad)
        runs.append([*outputs, *torch.autograd.grad(loss, leaves)])
    assert all(torch.equal(a, b) for a, b in zip(*runs, strict=True))


def test_the_loss_takes_the_memory_that_it_says():
    sizes = {"tokens": 16_384, "classes": 151_936, "hidden": 1792}
    hidden = torch.randn(16_384, 1792, device="cuda", dtype=torch.bfloat16, requires_grad=True)
    head = (0.02 * torch.randn(151_936, 1792, device="cuda")).bfloat16().requires_grad_()
    targets = torch.randint(151_936, (16_384,), device="cuda")
    cross_entropy.linear_cross_entropy(hidden, head, targets)[0].backward()  # cuBLAS takes its workspace
    hidden.grad = head.grad = None
    torch.cuda.synchronize()
    before = torch.cuda.memory_allocated()
    torch.cuda.reset_peak_memory_stats()
    cross_entropy.linear_cross_entropy(hidden, head, targets)[0].backward()
    taken = torch.cuda.max_memory_allocated() - before - 2 * (hidden.numel() + head.numel())
    assert taken <= 1.3e9
    assert taken <= 1.01 * cross_entropy.extra_bytes(**sizes, size=2, chunk=2048)


@pytest.mark.parametrize("name", list(SHAPES))
def test_no_operator_waits_for_the_device(name):
    operator, _, inputs = case(name, SHAPES[name]["normal"], torch.bfloat16, "cuda")
    leaves = [x.requires_grad_() for x in inputs]

    def run() -> None:
        outputs = operator(*leaves)
        outputs = outputs if isinstance(outputs, tuple) else (outputs,)
        torch.autograd.grad([y.sum() for y in outputs if y.requires_grad], leaves)

    run()  # compiling and tuning wait, once
    torch.cuda.set_sync_debug_mode("error")
    try:
        run()
    finally:
        torch.cuda.set_sync_debug_mode("default")


@pytest.mark.parametrize("name", ["flash_attention_4", "flash_attention_2", "varlen", "sdpa"])
@pytest.mark.parametrize("key_heads", [32, 8])
@pytest.mark.parametrize("width", [56, 64])
def test_an_attention_computes_its_definition(name, key_heads, width):
    try:
        choose(name, torch.device("cuda"), torch.bfloat16)
    except ValueError as error:
        pytest.skip(str(error))
    index = torch.randint(2, (2, 512)).cumsum(1).div(40, rounding_mode="floor").cuda()
    sizes = [(2, 512, heads, width) for heads in (32, key_heads, key_heads)]
    inputs = [torch.randn(s, device="cuda").bfloat16().transpose(1, 2) for s in sizes]
    seen = Documents.of(index, torch.bfloat16, name)
    exact = Documents.of(index, torch.float64, "eager")
    check(
        lambda *x: packed_attention(*x, seen, width**-0.5),
        lambda *x: packed_attention(*x, exact, width**-0.5),
        inputs,
    )
