"""The chunked head against the plain definition: values and gradients, masked rows, z-loss, sizes off the chunk."""

import pytest
import torch
from torch.nn import functional as F

from model.training import loss


@pytest.fixture
def problem(monkeypatch):
    monkeypatch.setattr(loss, "chunk_size", lambda hidden, classes: 7)
    g = torch.Generator().manual_seed(0)
    hidden = torch.randn(40, 16, generator=g, requires_grad=True)
    head = torch.randn(31, 16, generator=g, requires_grad=True)
    rows = torch.arange(40)[torch.rand(40, generator=g) < 0.7]
    targets = torch.randint(0, 31, (len(rows),), generator=g)
    return hidden, head, targets, rows


def capped(logits: torch.Tensor, cap: float | None) -> torch.Tensor:
    return logits if cap is None else cap * torch.tanh(logits / cap)


@pytest.mark.parametrize("z_loss", [0.0, 0.01])
@pytest.mark.parametrize("scale", [1.0, 0.125])
@pytest.mark.parametrize("cap", [None, 2.0])
def test_cross_entropy_sum(problem, z_loss, scale, cap):
    hidden, head, targets, rows = problem
    logits = capped(hidden[rows] @ head.t(), cap)
    nll = F.cross_entropy(logits, targets, reduction="sum")
    expected = scale * (nll + z_loss * torch.logsumexp(logits, -1).square().sum())
    grads = torch.autograd.grad(expected * 3, [hidden, head])
    value, shown = loss.cross_entropy_sum(hidden, head, targets, rows, scale, z_loss, cap=cap)
    torch.testing.assert_close(value, expected)
    torch.testing.assert_close(shown, nll.detach())
    for a, b in zip(torch.autograd.grad(value * 3, [hidden, head]), grads, strict=True):
        torch.testing.assert_close(a, b, atol=1e-5, rtol=1e-4)


def test_the_fused_loss_has_no_soft_cap(problem):
    with pytest.raises(ValueError, match="soft cap"):
        loss.cross_entropy_sum(*problem, fused=True, cap=2.0)


@pytest.mark.parametrize("cap", [None, 2.0])
def test_token_logprobs(problem, cap):
    hidden, head, targets, rows = problem
    expected = capped(hidden[rows] @ head.t(), cap).log_softmax(-1).gather(1, targets[:, None]).squeeze(1)
    weight = torch.linspace(-1, 2, len(rows))
    grads = torch.autograd.grad((expected * weight).sum(), [hidden, head])
    value = loss.token_logprobs(hidden, head, targets, rows, cap)
    torch.testing.assert_close(value, expected)
    for a, b in zip(torch.autograd.grad((value * weight).sum(), [hidden, head]), grads, strict=True):
        torch.testing.assert_close(a, b, atol=1e-5, rtol=1e-4)


def test_no_target_at_all_gives_zero_and_no_gradient(problem):
    hidden, head, targets, rows = problem
    value, _ = loss.cross_entropy_sum(hidden, head, targets[:0], rows[:0])
    logp = loss.token_logprobs(hidden, head, targets[:0], rows[:0])
    for grad in torch.autograd.grad(value + logp.sum(), [hidden, head]):
        assert grad.abs().max() == 0
    assert value == 0
