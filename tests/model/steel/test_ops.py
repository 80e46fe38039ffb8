"""The operators' plain definitions, against what they mean, term by term."""

import dataclasses

import pytest
import torch

from model.steel import SteelConfig, SteelForCausalLM
from model.steel.ops import (
    PLAIN,
    combine_experts,
    prefix_scan,
    prefix_slots,
    rms_norm,
    rms_norm_residual,
    rotate,
)


def random(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float64) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def some_starts(rows: int, length: int) -> torch.Tensor:
    return torch.rand(rows, length, generator=torch.Generator().manual_seed(3)) < 0.08


def naive_slots(x: torch.Tensor, logits: torch.Tensor, starts: torch.Tensor) -> torch.Tensor:
    """One softmax a position and slot."""
    out = []
    for row, scores, begins in zip(x, logits, starts, strict=True):
        first = 0
        for t in range(len(row)):
            first = t if begins[t] else first
            out.append(torch.softmax(scores[first : t + 1], 0).T @ row[first : t + 1])
    return torch.stack(out).view(*logits.shape, x.shape[-1])


@pytest.mark.parametrize("length", [1, 5, 32, 33, 64, 100])
@pytest.mark.parametrize("scale", [1.0, 100.0, 1e4])
def test_prefix_slots_are_a_softmax_over_each_prefix(length, scale):
    x, logits = random(2, length, 8).requires_grad_(), (scale * random(2, length, 3, seed=1)).requires_grad_()
    starts, seen = some_starts(2, length), random(2, length, 3, 8, seed=2)
    got, expected = prefix_slots(x, logits, starts), naive_slots(x, logits, starts)
    torch.testing.assert_close(got, expected, atol=1e-12, rtol=1e-12)
    grads = [torch.autograd.grad((z * seen).sum(), (x, logits)) for z in (got, expected)]
    for a, b in zip(*grads, strict=True):
        torch.testing.assert_close(a, b, atol=1e-12, rtol=1e-9)


@pytest.mark.parametrize("cuts", [[1], [31, 32, 33], [40, 41, 97]])
def test_prefix_slots_go_on_from_a_state(cuts):
    x, logits, starts = random(2, 100, 8), 50 * random(2, 100, 3, seed=1), some_starts(2, 100)
    parts, state, edges = [], None, [0, *cuts, 100]
    for a, b in zip(edges, edges[1:], strict=False):
        slots, state = prefix_scan(x[:, a:b], logits[:, a:b], starts[:, a:b], state)
        parts.append(slots)
    torch.testing.assert_close(torch.cat(parts, 1), prefix_slots(x, logits, starts), atol=1e-12, rtol=1e-12)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_future_and_other_documents_leave_prefix_slots_bitwise_alone(dtype):
    x, logits = random(1, 150, 16, dtype=torch.float32).to(dtype), 30 * random(1, 150, 4, seed=1).float()
    starts = torch.zeros(1, 150, dtype=torch.bool)
    starts[:, [0, 40, 90]] = True
    other, other_logits = x.clone(), logits.clone()
    other[:, 40:90] *= -3
    other_logits[:, 40:90] += 500
    a, b = prefix_slots(x, logits, starts), prefix_slots(other, other_logits, starts)
    assert torch.equal(a[:, :40], b[:, :40])
    assert torch.equal(a[:, 90:], b[:, 90:])
    assert not torch.equal(a[:, 40:90], b[:, 40:90])


@pytest.mark.parametrize("scale", [0.0, 1.0, -300.0, 1e4, 1e30])
def test_prefix_slots_are_finite_for_any_scale(scale):
    x = random(1, 70, 8, dtype=torch.float32).requires_grad_()
    cosine = torch.rand(1, 70, 3, generator=torch.Generator().manual_seed(1)) * 2 - 1
    logits = (scale * cosine).requires_grad_()
    slots = prefix_slots(x, logits, torch.zeros(1, 70, dtype=torch.bool))
    slots.square().sum().backward()
    assert all(t.isfinite().all() for t in (slots, x.grad, logits.grad))
    assert slots.abs().max() <= x.abs().max() * (1 + 1e-5)


def test_a_token_that_is_not_there_has_no_weight():
    x, logits = random(1, 50, 8), random(1, 50, 3, seed=1)
    starts = torch.zeros(1, 50, dtype=torch.bool)
    gone = torch.zeros(1, 50, dtype=torch.bool)
    gone[:, :7] = gone[:, 20:25] = True
    slots = prefix_slots(x, logits.masked_fill(gone.unsqueeze(-1), float("-inf")), starts)
    alone = prefix_slots(x[~gone][None], logits[~gone][None], starts[~gone][None])
    torch.testing.assert_close(slots[~gone][None], alone, atol=1e-12, rtol=1e-12)
    assert slots[:, :7].abs().max() == 0


def test_the_norms_are_their_formula():
    x, residual, weight = random(3, 5, 16), random(3, 5, 16, seed=1), random(16, seed=2)
    exact = weight * x / (x.square().mean(-1, keepdim=True) + 1e-6).sqrt()
    torch.testing.assert_close(rms_norm(x, weight, 1e-6), exact, atol=1e-5, rtol=1e-5)
    normed, total = rms_norm_residual(x, residual, weight, 1e-6)
    assert torch.equal(total, residual + x)
    assert torch.equal(normed, rms_norm(total, weight, 1e-6))


def test_rotation_is_a_product_of_complex_numbers():
    q, k = random(2, 4, 6, 8), random(2, 2, 6, 8, seed=1)
    angle = random(2, 6, 4, seed=2)
    cos, sin = (f(angle).float().repeat(1, 1, 2) for f in (torch.cos, torch.sin))
    turn = torch.polar(torch.ones_like(angle), angle).unsqueeze(1)
    for got, x in zip(rotate(q, k, cos, sin), (q, k), strict=True):
        turned = torch.complex(x[..., :4], x[..., 4:]) * turn
        torch.testing.assert_close(got, torch.cat((turned.real, turned.imag), -1), atol=1e-5, rtol=1e-5)


def test_experts_are_combined_by_their_weights():
    h, c = random(7, 3, 5), torch.softmax(random(7, 3, seed=1), -1)
    gate, value = random(15, 8, seed=2), random(15, 8, seed=3)
    expected = torch.zeros(7, 8, dtype=torch.float64)
    for e in range(3):
        g, v = (w[5 * e : 5 * e + 5] for w in (gate, value))
        expected += c[:, e : e + 1] * torch.nn.functional.silu(h[:, e] @ g) * (h[:, e] @ v)
    torch.testing.assert_close(combine_experts(h, c, gate, value), expected)


@torch.inference_mode()
def test_a_model_computes_with_the_operators_it_is_given():
    torch.manual_seed(0)
    geometry = SteelConfig(vocab_size=97, hidden_size=32, num_hidden_layers=2, num_attention_heads=4)
    lm, ids = SteelForCausalLM(geometry).eval(), torch.arange(20)[None]
    before, called = lm(ids).logits, {}

    def counted(name):
        def operator(*args):
            called[name] = called.get(name, 0) + 1
            return getattr(PLAIN, name)(*args)

        return operator

    lm.set_ops(dataclasses.replace(PLAIN, **{f.name: counted(f.name) for f in dataclasses.fields(PLAIN)}))
    assert torch.equal(lm(ids).logits, before)
    assert called == {"rms_norm": 3, "rms_norm_residual": 2, "rotate": 2, "combine_experts": 2}
