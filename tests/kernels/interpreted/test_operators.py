"""The Triton kernels in the interpreter, against the definitions in float64."""

from __future__ import annotations

import pytest
import torch

from kernels import cross_entropy, experts, launch, prefix, rms_norm, rope
from tests.support.cases import SHAPES, case, check


@pytest.mark.parametrize("shape", ["normal", "awkward"])
@pytest.mark.parametrize("name", list(SHAPES))
def test_a_kernel_computes_its_definition(name, shape):
    assert launch.INTERPRETED
    check(*case(name, SHAPES[name][shape], torch.float32))


@pytest.mark.parametrize("name", list(SHAPES))
def test_and_in_half_precision(name):
    check(*case(name, SHAPES[name]["awkward"], torch.float16))


@pytest.mark.slow
def test_the_widths_of_steel_1b():
    check(*case("rms_norm_residual", (3, 1792), torch.float32))
    check(*case("rotate", (1, 3, 32, 32, 56), torch.float16))
    check(*case("combine_experts", (20, 6, 448, 96), torch.float32))
    check(*case("prefix_slots", (1, 300, 64, 6), torch.float32))


def test_bfloat16_is_refused_here_instead_of_being_computed_wrong():
    with pytest.raises(TypeError, match="computes torch.bfloat16 wrong"):
        rms_norm.rms_norm(torch.ones(2, 16, dtype=torch.bfloat16), torch.ones(16), 1e-6)


def test_the_loss_over_all_151936_classes_is_that_of_torch():
    generator = torch.Generator().manual_seed(0)
    hidden, head = torch.randn(3, 8, generator=generator), torch.randn(151_936, 8, generator=generator)
    targets = torch.tensor([151_935, cross_entropy.IGNORED, 0])
    loss, nll = cross_entropy.linear_cross_entropy(hidden, head, targets)
    wanted = torch.nn.functional.cross_entropy(hidden @ head.t(), targets, reduction="sum")
    torch.testing.assert_close(loss, wanted)
    assert nll == loss


def test_the_loss_does_not_depend_on_the_chunk_and_needs_no_gradient():
    operator, _, (hidden, head) = case("linear_cross_entropy", (21, 50, 1003), torch.float32)
    targets = torch.arange(21)
    found = [cross_entropy.linear_cross_entropy(hidden, head, targets, chunk=c)[0] for c in (1, 8, 21, 4096)]
    assert torch.stack(found).std() < 1e-4
    with torch.no_grad():
        assert not operator(hidden, head)[0].requires_grad


def test_every_token_ignored_is_a_loss_of_zero_without_gradient():
    hidden, head = torch.randn(4, 16, requires_grad=True), torch.randn(64, 16, requires_grad=True)
    loss, _ = cross_entropy.linear_cross_entropy(hidden, head, torch.full((4,), -100), z_loss=1.0)
    loss.backward()
    assert loss == 0
    assert not hidden.grad.any()
    assert not head.grad.any()


@pytest.mark.parametrize("target", [64, -1, -99, 2**40])
def test_a_target_that_is_no_class_is_refused_as_by_the_definition(target):
    hidden, head = torch.randn(4, 16), torch.randn(64, 16)
    targets = torch.tensor([0, 63, cross_entropy.IGNORED, target])
    for loss in (cross_entropy.linear_cross_entropy, cross_entropy.linear_cross_entropy_definition):
        with pytest.raises((IndexError, RuntimeError), match="out of bounds"):
            loss(hidden, head, targets)
        assert loss(hidden[:3], head, targets[:3])[0] > 0
        with pytest.raises(ValueError, match="size"):
            loss(hidden, head, targets[:3])


@pytest.mark.parametrize("dtype", [torch.float16, torch.float32])
def test_the_experts_weights_may_have_the_dtype_of_h(dtype):
    operator, definition, (h, c, gate, value) = case("combine_experts", (21, 3, 28, 90), dtype)
    check(operator, definition, [h, c.to(dtype), gate, value])


def test_no_slot_depends_on_a_later_token_by_a_single_bit():
    _, _, (x, logits) = case("prefix_slots", (2, 43, 70, 3), torch.float32)
    starts = torch.zeros(2, 43, dtype=torch.bool)
    starts[:, 0] = starts[1, 20] = True
    before = prefix.prefix_slots(x, logits, starts)
    x, logits = x.clone(), logits.clone()
    x[:, 30:], logits[:, 30:] = 1e4, 500.0
    after = prefix.prefix_slots(x, logits, starts)
    assert torch.equal(before[:, :30], after[:, :30])
    assert not torch.equal(before[:, 30:], after[:, 30:])
    # nor on another document
    x[1, :20], logits[1, :20] = -7.0, 80.0
    assert torch.equal(prefix.prefix_slots(x, logits, starts)[1, 20:], after[1, 20:])


def test_absent_tokens_leave_slots_at_zero_and_gradients_finite():
    generator = torch.Generator().manual_seed(3)
    x = torch.randn(1, 70, 16, generator=generator, requires_grad=True)
    logits = torch.randn(1, 70, 2, generator=generator) - 300
    logits[:, :40] = float("-inf")
    starts = torch.zeros(1, 70, dtype=torch.bool)
    starts[:, 0] = True
    logits.requires_grad_()
    slots = prefix.prefix_slots(x, logits, starts)
    assert not slots[:, :40].any()
    slots.square().sum().backward()
    assert x.grad.isfinite().all()
    assert logits.grad.isfinite().all()
    assert x.grad[:, 40:].any()
    assert not x.grad[:, :40].any()


@pytest.mark.slow
def test_the_same_bytes_every_time():
    for name in SHAPES:
        operator, _, inputs = case(name, SHAPES[name]["awkward"], torch.float32)
        runs = []
        for _ in range(2):
            leaves = [x.clone().requires_grad_() for x in inputs]
            outputs = operator(*leaves)
            outputs = outputs if isinstance(outputs, tuple) else (outputs,)
            loss = sum(y.sin().sum() for y in outputs if y.requires_grad)
            runs.append([*outputs, *torch.autograd.grad(loss, leaves)])
        assert all(torch.equal(a, b) for a, b in zip(*runs, strict=True)), name


def _samples():
    for name in ("rms_norm", "rms_norm_residual", "rotate", "combine_experts", "prefix_slots"):
        _, _, inputs = case(name, SHAPES[name]["awkward"], torch.float32)
        inputs = [x.requires_grad_() for x in inputs]
        if name == "rms_norm":
            yield rms_norm._norm, (inputs[0], None, inputs[1], 1e-5)
        elif name == "rms_norm_residual":
            yield rms_norm._norm, (*inputs, 1e-5)
        elif name == "rotate":
            tables = torch.randn(2, 1, 5, 56)
            yield rope._rotate, (*inputs, *tables, False)
        elif name == "combine_experts":
            yield experts._combine, tuple(inputs)
        else:
            yield prefix._slots, (*inputs, torch.eye(2, 43).bool())


def test_torch_may_trace_and_compile_the_operators():
    checks = ("test_schema", "test_autograd_registration", "test_faketensor")
    for operator, inputs in _samples():
        torch.library.opcheck(operator, inputs, test_utils=checks)


def test_a_block_of_operators_compiles_to_one_graph():
    def block(x, residual, weight, h, c, gate, value):
        normed, total = rms_norm.rms_norm_residual(x, residual, weight, 1e-5)
        return total + experts.combine_experts(h * normed[:, None, :28], c, gate, value)

    _, _, moe = case("combine_experts", (21, 3, 28, 90), torch.float32)
    inputs = [torch.randn(21, 90), torch.randn(21, 90), torch.randn(90), *moe]
    inputs = [x.requires_grad_() for x in inputs]
    plain = block(*inputs)
    compiled = torch.compile(block, fullgraph=True, backend="aot_eager")(*inputs)
    assert torch.equal(plain, compiled)
    for a, b in zip(
        torch.autograd.grad(plain.sum(), inputs), torch.autograd.grad(compiled.sum(), inputs), strict=True
    ):
        torch.testing.assert_close(a, b)
