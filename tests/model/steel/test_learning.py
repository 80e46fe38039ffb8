"""What training does to the kinds: leaks show as knowledge of random tokens, dead experts as gradients of nought."""

import math

import pytest
import torch

from model.steel import SteelConfig, SteelForCausalLM
from tests.support.kinds import CAUSAL, config


# ------------------------------------------------------------------------------ random tokens
def excess_over_chance(kind: str, steps: int = 80, classes: int = 16) -> float:
    """Loss on fresh, uniformly random tokens less ln(classes), mean of the last steps: every batch is new."""
    torch.manual_seed(0)
    lm = SteelForCausalLM(
        config(ffn=kind, vocab_size=classes, num_hidden_layers=1, expert="swiglu", merge_segment=2)
    )
    optimizer = torch.optim.AdamW(lm.parameters(), lr=0.01, weight_decay=0.0)
    generator, losses = torch.Generator().manual_seed(7), []
    for _ in range(steps):
        x = torch.randint(0, classes, (64, 4), generator=generator)
        loss = lm(x, labels=x, use_cache=False).loss
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    return sum(losses[-20:]) / 20 - math.log(classes)


@pytest.mark.parametrize("kind", CAUSAL)
def test_random_tokens_cannot_be_learned(kind):
    assert excess_over_chance(kind) > -0.02


def test_a_leak_learns_them():
    assert excess_over_chance("paper") < -0.3


# -------------------------------------------------------------------------------- gradients
def wide(kind: str) -> SteelForCausalLM:
    """One block at Steel-1B's width, a small vocabulary."""
    torch.manual_seed(0)
    return SteelForCausalLM(SteelConfig(vocab_size=256, num_hidden_layers=1, ffn=kind, merge_segment=16))


def text(rows: int = 1, length: int = 32) -> torch.Tensor:
    return torch.randint(0, 256, (rows, length), generator=torch.Generator().manual_seed(1))


def shares(lm: SteelForCausalLM, loss: torch.Tensor, *, keep: bool = False) -> tuple[float, float]:
    """Gradient RMS of the quietest expert matrix, and of the loudest of attention's value and output matrices."""
    chosen = {
        n: p
        for n, p in lm.named_parameters()
        if "experts" in n or n.endswith(("v_proj.weight", "o_proj.weight"))
    }
    grads = torch.autograd.grad(loss, list(chosen.values()), retain_graph=keep)
    rms = {name: g.square().mean().sqrt().item() for name, g in zip(chosen, grads, strict=True)}
    experts = [value for name, value in rms.items() if "experts" in name]
    return min(experts), max(value for name, value in rms.items() if "experts" not in name)


@pytest.mark.parametrize("kind", ["dense", "token", "merge"])
def test_experts_are_alive_from_the_start_at_real_width(kind):
    lm, x = wide(kind), text()
    experts, attention = shares(lm, lm(x, labels=x).loss)
    assert experts > 1e-3 * attention


@pytest.mark.parametrize("kind", ["prefix", "paper"])
def test_slots_are_alive_at_every_position_at_real_width(kind):
    lm, x = wide(kind), text(length=65)
    logits = lm(x[:, :-1], use_cache=False).logits
    for t in (0, 3, 15, 63):
        loss = torch.nn.functional.cross_entropy(logits[:, t], x[:, t + 1])
        experts, attention = shares(lm, loss, keep=True)
        assert experts > 1e-3 * attention, t


def test_the_released_layer_is_dead_at_real_width():
    lm, x = wide("released"), text()
    experts, attention = shares(lm, lm(x, labels=x).loss)
    assert experts < 1e-7 * attention
    assert experts < 1e-8  # AdamW's eps swallows it


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["dense", "token", "merge", "prefix", "released"])
def test_experts_stay_alive_while_the_released_ones_only_decay(kind):
    lm, decay, lr = wide(kind), 0.05, 3e-4
    before = lm.model.layers[0].mlp.experts.up_proj.square().mean().sqrt().item()
    optimizer = torch.optim.AdamW(lm.parameters(), lr=lr, betas=(0.9, 0.95), weight_decay=decay)
    generator, steps = torch.Generator().manual_seed(2), 12
    for _ in range(steps):
        x = torch.randint(0, 256, (2, 32), generator=generator)
        lm.zero_grad()
        lm(x, labels=x).loss.backward()
        optimizer.step()
    after = lm.model.layers[0].mlp.experts.up_proj.square().mean().sqrt().item()
    decayed = (1 - lr * decay) ** steps
    if kind == "released":
        assert after / before == pytest.approx(decayed, abs=2e-6)
        return
    assert abs(after / before - decayed) > 2e-5
    x = text()
    experts, attention = shares(lm, lm(x, labels=x).loss)
    assert experts > 1e-3 * attention


# -------------------------------------------------------------------------------- precision
@pytest.mark.parametrize("kind", [*CAUSAL, "paper"])
@torch.inference_mode()
def test_bf16_is_fp32_but_for_rounding(kind):
    torch.manual_seed(0)
    lm = SteelForCausalLM(config(ffn=kind, hidden_size=64, initializer_range=0.1)).eval()
    x = torch.randint(0, 97, (2, 60), generator=torch.Generator().manual_seed(1))
    exact = torch.log_softmax(lm(x, use_cache=False).logits, -1)
    rounded = torch.log_softmax(lm.to(torch.bfloat16)(x, use_cache=False).logits.float(), -1)
    error = (rounded - exact).square().mean().sqrt()
    assert error < 0.02 * exact.std()
    assert error > 0
