"""Tiny models of every kind, and measurements of what a model knows that it should not.

Each measurement is used twice: it is nought for the causal kinds, and it is not for `paper`, so that it can tell.
"""

from __future__ import annotations

import torch
from torch import Tensor

from model.steel import SteelConfig, SteelForCausalLM

CAUSAL = ("dense", "token", "prefix", "merge")
LEAKY = ("paper", "released")
SEGMENT = 8


def config(**fields) -> SteelConfig:
    small = {
        "vocab_size": 97,
        "hidden_size": 32,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_experts": 3,
        "initializer_range": 0.15,
        "merge_segment": SEGMENT,
    }
    return SteelConfig(**(small | fields))


def model(ffn: str, *, louder: float = 1.0, seed: int = 0, **fields) -> SteelForCausalLM:
    """Ready to measure: a router that prefers, experts that are heard (times `louder`)."""
    torch.manual_seed(seed)
    lm = SteelForCausalLM(config(ffn=ffn, **fields)).eval()
    with torch.no_grad():
        for name, parameter in lm.named_parameters():
            if name.endswith("mlp.scale"):
                parameter.fill_(4.0)
            if "experts" in name:
                parameter.mul_(louder)
    return lm


def tokens(rows: int, length: int, seed: int = 0) -> Tensor:
    return torch.randint(0, 97, (rows, length), generator=torch.Generator().manual_seed(seed))


def packed(lengths: list[int]) -> dict[str, Tensor]:
    """doc_index and position_ids of one row with documents of these lengths."""
    doc = torch.cat([torch.full((n,), i, dtype=torch.int32) for i, n in enumerate(lengths)])
    return {"doc_index": doc[None], "position_ids": torch.cat([torch.arange(n) for n in lengths])[None]}


@torch.inference_mode()
def future_leak(lm: SteelForCausalLM, cut: int = 13, length: int = 24, **layout: Tensor) -> float:
    """Largest change of the logits before `cut` when every token from there on is another."""
    first = tokens(2, length)
    second = first.clone()
    second[:, cut:] = (second[:, cut:] + 1) % 97
    layout = {name: t.expand(2, -1) for name, t in layout.items()}
    before, after = lm(first, **layout).logits, lm(second, **layout).logits
    assert not torch.equal(before[:, cut:], after[:, cut:])
    return (before - after)[:, :cut].abs().max().item()


@torch.inference_mode()
def prefix_gap(lm: SteelForCausalLM, lengths: tuple[int, ...], length: int = 70) -> float:
    """Largest difference between model(x[:t]) and model(x) at t - 1."""
    x = tokens(1, length)
    full = lm(x, use_cache=False).logits
    parts = [lm(x[:, :t], use_cache=False).logits[:, -1] - full[:, t - 1] for t in lengths]
    return max(part.abs().max().item() for part in parts)


@torch.inference_mode()
def decode_gap(lm: SteelForCausalLM, prompt: int = 7, length: int = 40, chunk: int = 1) -> float:
    """Largest difference between cached steps of `chunk` tokens and one full forward."""
    x = tokens(2, length)
    cache, steps = None, []
    for part in (x[:, :prompt], *x[:, prompt:].split(chunk, dim=1)):
        out = lm(part, past_key_values=cache, use_cache=True)
        cache = out.past_key_values
        steps.append(out.logits)
    return (torch.cat(steps, 1) - lm(x, use_cache=False).logits).abs().max().item()
