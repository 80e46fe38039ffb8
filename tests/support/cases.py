"""What every operator is held against: its plain definition in float64, forward and every gradient.

Used in the interpreter (tests/kernels/interpreted) and on GPUs (test_on_gpu.py). A case is an operator, its definition,
and inputs of a normal or an awkward shape: nothing in the awkward ones is a multiple of a block.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from kernels import cross_entropy, experts, prefix, rms_norm, rope

SHAPES = {
    "rms_norm": {"normal": (16, 256), "awkward": (5, 3, 123)},
    "rms_norm_residual": {"normal": (16, 256), "awkward": (5, 3, 123)},
    "rotate": {"normal": (2, 8, 4, 4, 64), "awkward": (2, 5, 4, 2, 56)},  # B, T, H, heads of k, h
    "combine_experts": {"normal": (32, 2, 64, 64), "awkward": (21, 3, 28, 90)},  # N, E, W, D
    "prefix_slots": {"normal": (1, 64, 64, 4), "awkward": (2, 43, 70, 3)},  # B, T, D, P
    "linear_cross_entropy": {"normal": (32, 64, 512), "awkward": (21, 50, 1003)},  # N, D, V
}
TOLERANCE = {torch.float32: 5e-6, torch.float16: 3e-3, torch.bfloat16: 2e-2}
"""Largest difference, as a share of the largest number of that tensor."""


def case(
    name: str, shape: Sequence[int], dtype: torch.dtype, device: str = "cpu"
) -> tuple[Callable, Callable, list[Tensor]]:
    """(operator, definition, tensors to differentiate by); everything else is bound."""
    generator = torch.Generator().manual_seed(1234)

    def normal(*size: int, scale: float = 1.0) -> Tensor:
        return (scale * torch.randn(size, generator=generator)).to(device, dtype)

    if name == "rms_norm":
        inputs = [normal(*shape), 1 + normal(shape[-1], scale=0.3)]
        return _with(rms_norm.rms_norm, 1e-5), _with(rms_norm.rms_norm_definition, 1e-5), inputs
    if name == "rms_norm_residual":
        inputs = [normal(*shape), normal(*shape), 1 + normal(shape[-1], scale=0.3)]
        return (
            _with(rms_norm.rms_norm_residual, 1e-5),
            _with(rms_norm.rms_norm_residual_definition, 1e-5),
            inputs,
        )
    if name == "rotate":
        batch, length, heads, key_heads, width = shape
        angle = torch.randn(1, length, width // 2, generator=generator).repeat(1, 1, 2).to(device)
        # as a projection leaves them: tokens before heads in memory
        q = normal(batch, length, heads, width).transpose(1, 2)
        k = normal(batch, length, key_heads, width).transpose(1, 2)
        return (
            _with(rope.rotate, angle.cos(), angle.sin()),
            _with(rope.rotate_definition, angle.cos().double(), angle.sin().double()),
            [q, k],
        )
    if name == "combine_experts":
        tokens, count, width, hidden = shape
        weights = torch.rand(tokens, count, generator=generator).to(device)
        h = normal(tokens, count, width)
        gate = normal(count * width, hidden, scale=width**-0.5)
        value = normal(count * width, hidden, scale=width**-0.5)
        return _with(experts.combine_experts), experts.combine_experts_definition, [h, weights, gate, value]
    if name == "prefix_slots":
        batch, length, width, slots = shape
        starts = torch.rand(batch, length, generator=generator) < 0.06
        starts[:, 0] = True
        # steep logits: the running maximum rises by dozens at a time
        logits = 20 * torch.randn(batch, length, slots, generator=generator).to(device)
        starts = starts.to(device)
        return (
            _with(prefix.prefix_slots, starts),
            _with(prefix.prefix_slots_definition, starts),
            [normal(batch, length, width), logits],
        )
    tokens, hidden, classes = shape
    targets = torch.randint(classes, (tokens,), generator=generator)
    targets[torch.rand(tokens, generator=generator) < 0.2] = cross_entropy.IGNORED
    settings = {"scale": 0.25, "z_loss": 1e-2}
    targets = targets.to(device)
    return (
        lambda h, w: cross_entropy.linear_cross_entropy(h, w, targets, chunk=16, **settings),
        lambda h, w: cross_entropy.linear_cross_entropy_definition(h, w, targets, **settings),
        [normal(tokens, hidden), normal(classes, hidden, scale=hidden**-0.5)],
    )


def _with(function: Callable, *rest: object) -> Callable:
    """The function with `rest` behind its tensors, which stay visible as `.rest`."""

    def bound(*inputs: Tensor) -> Tensor | tuple[Tensor, ...]:
        return function(*inputs, *rest)

    bound.rest = rest
    return bound


def check(operator: Callable, definition: Callable, inputs: Sequence[Tensor]) -> None:
    """Outputs and gradients of the operator within TOLERANCE of the definition's in float64."""
    tolerance = TOLERANCE[inputs[0].dtype]
    mine = [x.detach().clone(memory_format=torch.preserve_format).requires_grad_() for x in inputs]
    exact = [x.detach().double().requires_grad_() for x in inputs]
    outputs, wanted = _tuple(operator(*mine)), _tuple(definition(*exact))
    assert len(outputs) == len(wanted)
    generator = torch.Generator().manual_seed(7)
    weights = [torch.randn(y.shape, generator=generator).to(y) for y in outputs]
    loss, wanted_loss = (
        sum((y.to(w.dtype) * w).sum() for y, w in zip(ys, ws, strict=True) if y.requires_grad)
        for ys, ws in ((outputs, weights), (wanted, [w.double() for w in weights]))
    )
    found = [*outputs, *torch.autograd.grad(loss, mine)]
    expected = [*wanted, *torch.autograd.grad(wanted_loss, exact)]
    names = [f"output {i}" for i in range(len(outputs))] + [f"gradient {i}" for i in range(len(mine))]
    for label, a, b in zip(names, found, expected, strict=True):
        assert a.shape == b.shape, label
        error = (a.double() - b).abs()
        limit = tolerance * b.abs().max()
        wrong = (error > limit) | error.isnan()
        assert not wrong.any(), (
            f"{label}: {int(wrong.sum())} of {wrong.numel()} differ by more than {limit:.2e} (largest {error.max():.2e}); "
            f"the first: {[(i.tolist(), a[tuple(i)].item(), b[tuple(i)].item()) for i in wrong.nonzero()[:5]]}"
        )


def _tuple(outputs: Tensor | tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    return outputs if isinstance(outputs, tuple) else (outputs,)
