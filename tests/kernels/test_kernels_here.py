"""What holds without a GPU and without the interpreter: definitions, memory, and the choice of an implementation."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from bench.device import peak_bytes
from kernels import cross_entropy, experts, launch, prefix, rms_norm, rope
from model.steel import ops
from tests.support.cases import SHAPES, case, check

ROOT = Path(__file__).parents[2]
STEEL_1B = {"tokens": 16_384, "classes": 151_936, "hidden": 1792}


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("name", [n for n in SHAPES if n != "linear_cross_entropy"])
def test_on_a_cpu_an_operator_is_the_models_own(name, dtype):
    operator, _, inputs = case(name, SHAPES[name]["awkward"], dtype)
    mine, models = operator(*inputs), getattr(ops, name)(*inputs, *operator.rest)
    if name == "prefix_slots":  # the model's runs in chunks: another order of the same sums
        torch.testing.assert_close(mine, models, rtol=1e-5 if dtype == torch.float32 else 1e-2, atol=1e-5)
    else:
        pairs = zip(mine, models, strict=True) if isinstance(mine, tuple) else [(mine, models)]
        assert all(torch.equal(a, b) for a, b in pairs)


@pytest.mark.parametrize("name", list(SHAPES))
def test_a_definition_in_float32_is_close_to_itself_in_float64(name):
    check(*case(name, SHAPES[name]["normal"], torch.float32))


def test_importing_kernels_neither_needs_triton_nor_changes_how_it_runs():
    script = """
import sys
sys.modules["triton"] = None  # any import of it fails
try:
    import triton
except ModuleNotFoundError as error:
    assert error.name == "triton"
import torch
from kernels import cross_entropy, experts, launch, prefix, rms_norm, rope
assert launch.triton is None
assert not launch.runs_triton(torch.ones(1))
print(rms_norm.rms_norm(torch.full((1, 4), 2.0), torch.ones(4), 0.0).tolist())
"""
    done = subprocess.run(
        [sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True, check=True
    )
    assert done.stdout == "[[1.0, 1.0, 1.0, 1.0]]\n"


def test_the_interpreter_stays_in_its_own_process():
    """tests/kernels/interpreted starts one: this process, and so every other test, has compiled kernels."""
    assert not launch.INTERPRETED
    assert "TRITON_INTERPRET" not in os.environ


def test_the_loss_keeps_to_its_memory_at_16384_tokens():
    for size in (2, 4):
        chunk = cross_entropy.default_chunk(**STEEL_1B, size=size)
        assert chunk == 2048
        assert cross_entropy.extra_bytes(**STEEL_1B, size=size, chunk=chunk) <= 1.3e9
    # a larger chunk is possible where the FP32 sum is counted as the gradient, as other implementations do
    strict = cross_entropy.extra_bytes(**STEEL_1B, size=2, chunk=4096)
    assert strict == pytest.approx(1.789e9, rel=1e-3)
    assert strict - STEEL_1B["classes"] * STEEL_1B["hidden"] * 2 < 1.3e9


def test_and_that_memory_is_what_torch_allocates(monkeypatch):
    class NoKernel:
        def __getitem__(self, grid):
            return lambda *arguments, **constants: None

    monkeypatch.setattr(cross_entropy, "_softmax_gradient", NoKernel())
    monkeypatch.setattr(cross_entropy, "runs_triton", lambda x: True)
    tokens, hidden, classes = 512, 64, 4096
    states, head = torch.randn(tokens, hidden).requires_grad_(), torch.randn(classes, hidden).requires_grad_()
    targets = torch.zeros(tokens, dtype=torch.long)
    for chunk in (32, 256):

        def step(chunk=chunk):
            states.grad = head.grad = None
            cross_entropy.linear_cross_entropy(states, head, targets, chunk=chunk)[0].backward()

        step()
        taken = peak_bytes(step) - 4 * (states.numel() + head.numel())
        said = cross_entropy.extra_bytes(tokens, classes, hidden, 4, chunk)
        assert 0.85 * said < taken <= 1.01 * said


def test_costs_are_those_of_the_roofline():
    head = cross_entropy.cost(**STEEL_1B, size=2)
    assert head.flops == 6 * 16_384 * 151_936 * 1792
    layer = [experts.cost(16_384, 6, 448, 1792, 2, backward=b).flops for b in (False, True)]
    assert layer[1] == 2 * layer[0] == 8 * 16_384 * 2688 * 1792
    assert experts.backward_bytes(16_384, 1792, 2) < 0.12e9
    assert rms_norm.cost(10, 8, 2).bytes == 2 * 160 + 40 + 16
    assert rope.cost(10, 4, 2, 8, 2).bytes == 10 * (2 * 6 * 8 * 2 + 4 * 8)
    assert prefix.cost(16_384, 6, 1792, 2).bytes > 7 * 16_384 * 1792 * 2
    assert head.seconds(3e12, 8e14) == head.flops / 8e14
