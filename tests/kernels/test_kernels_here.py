"""What holds without a GPU and without the interpreter: definitions, memory, and the choice of an implementation."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import torch

from kernels import attention, cross_entropy, experts, prefix, rms_norm, rope
from model.steel import ops
from tests.kernels.cases import SHAPES, case, check

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
from kernels import attention, cross_entropy, experts, launch, prefix, rms_norm, rope
assert launch.triton is None
assert not launch.runs_triton(torch.ones(1))
print(rms_norm.rms_norm(torch.full((1, 4), 2.0), torch.ones(4), 0.0).tolist())
"""
    done = subprocess.run(
        [sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True, check=True
    )
    assert done.stdout == "[[1.0, 1.0, 1.0, 1.0]]\n"


def test_the_loss_keeps_to_its_memory_at_16384_tokens():
    for size in (2, 4):
        chunk = cross_entropy.default_chunk(**STEEL_1B, size=size)
        assert chunk == 2048
        assert cross_entropy.extra_bytes(**STEEL_1B, size=size, chunk=chunk) <= 1.3e9
    # a larger chunk is possible where the FP32 sum is counted as the gradient, as other implementations do
    strict = cross_entropy.extra_bytes(**STEEL_1B, size=2, chunk=4096)
    assert strict == pytest.approx(1.789e9, rel=1e-3)
    assert strict - STEEL_1B["classes"] * STEEL_1B["hidden"] * 2 < 1.3e9


def test_costs_are_those_of_the_roofline():
    head = cross_entropy.cost(**STEEL_1B, size=2)
    assert head.flops == 6 * 16_384 * 151_936 * 1792
    layer = [experts.cost(16_384, 6, 448, 1792, 2, backward=b).flops for b in (False, True)]
    assert layer[1] == 2 * layer[0] == 8 * 16_384 * 2688 * 1792
    assert experts.backward_bytes(16_384, 1792, 2) < 0.12e9
    assert rms_norm.cost(10, 8, 2).bytes == 2 * 160 + 40 + 16
    assert rope.cost(10, 4, 2, 8, 2).bytes == 10 * (2 * 6 * 8 * 2 + 4 * 8)
    assert prefix.cost(16_384, 6, 1792, 2).bytes > 7 * 16_384 * 1792 * 2
    square = attention.cost(2048, 1, 32, 32, 56, 2).flops
    assert square == 4 * 1792 * 2048 * 2049 / 2
    assert head.seconds(3e12, 8e14) == head.flops / 8e14


def rows(*lengths: list[int]) -> torch.Tensor:
    return torch.tensor([[i for i, n in enumerate(row) for _ in range(n)] for row in lengths])


def test_lengths_of_documents_laid_end_to_end():
    index = rows([3, 5], [8], [1, 1, 6])
    exact = [0, 3, 8, 16, 17, 18, 24]
    assert attention.cumulative_lengths(index).tolist() == exact
    # a number that ended one row and begins the next is another document
    assert attention.cumulative_lengths(torch.zeros(2, 4)).tolist() == [0, 4, 8]
    assert attention.cumulative_lengths(index, capacity=9).tolist() == [*exact, 24, 24, 24]
    with pytest.raises(RuntimeError, match="more than 5 documents"):
        attention.cumulative_lengths(index, capacity=5)


def one_by_one(q, k, v, cu, longest, scaling):
    """What a flash kernel does with these arguments, a document at a time."""
    out = []
    for begin, end in zip(cu[:-1].tolist(), cu[1:].tolist(), strict=True):
        assert end - begin <= longest
        if end > begin:
            parts = [x[None, begin:end].transpose(1, 2).double() for x in (q, k, v)]
            mask = torch.ones(1, 1, end - begin, end - begin, dtype=torch.bool).tril()
            out.append(attention.document_attention_definition(*parts, mask, scaling)[0].to(q.dtype))
    return torch.cat(out)


@pytest.mark.parametrize("key_heads", [4, 2])
def test_all_attentions_agree_forward_and_backward(key_heads, monkeypatch):
    monkeypatch.setattr(attention, "_variable_length", lambda name: one_by_one)
    index = rows([7, 20, 13], [40], [1, 38, 1])
    shapes = [(3, 40, 4, 56), (3, 40, key_heads, 56), (3, 40, key_heads, 56)]
    inputs = [torch.randn(s).transpose(1, 2).requires_grad_() for s in shapes]
    weights = torch.randn(3, 40, 4, 56)
    varlen = attention.Documents("varlen", attention.cumulative_lengths(index, 12), 40)
    found = {}
    for name in ("eager", "sdpa", "varlen"):
        seen = varlen if name == "varlen" else attention.documents(index, torch.float32, name)
        out = attention.document_attention(*inputs, seen, 56**-0.5)
        found[name] = [out, *torch.autograd.grad((out * weights).sum(), inputs)]
    for name in ("sdpa", "varlen"):
        for a, b in zip(found[name], found["eager"], strict=True):
            torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5)


def test_attention_is_chosen_by_what_the_machine_has():
    cpu, cuda = torch.device("cpu"), torch.device("cuda")
    assert attention.choose("auto", cpu, torch.bfloat16) == "sdpa"
    for name in attention.FLASH:
        with pytest.raises(RuntimeError, match=f"{name} needs a CUDA device. Choose auto"):
            attention.choose(name, cpu, torch.bfloat16)
    with pytest.raises(ValueError, match="Choose one of auto, flash_attention_4"):
        attention.choose("flash", cpu, torch.bfloat16)
    assert "not torch.float32" in attention.lacking("varlen", cuda, torch.float32)


@pytest.mark.parametrize(
    ("generation", "installed", "picked"),
    [
        (9, {"flash_attn.cute", "torch.nn.attention.varlen"}, "varlen"),
        (9, {"flash_attn.flash_attn_interface", "torch.nn.attention.varlen"}, "flash_attention_2"),
        (8, {"torch.nn.attention.varlen"}, "varlen"),
        (8, set(), "sdpa"),
        (7, {"torch.nn.attention.varlen"}, "sdpa"),
    ],
)
def test_auto_never_picks_what_has_not_been_tried(generation, installed, picked, monkeypatch):
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (generation, 0))
    monkeypatch.setattr(attention, "_installed", installed.__contains__)
    device = torch.device("cuda")
    assert attention.choose("auto", device, torch.bfloat16) == picked
    if generation >= 9 and "flash_attn.cute" in installed:
        assert attention.choose("flash_attention_4", device, torch.bfloat16) == "flash_attention_4"
    else:
        with pytest.raises(RuntimeError, match="flash_attention_4 needs"):
            attention.choose("flash_attention_4", device, torch.bfloat16)
