"""The operators of kernels/, forward and backward together, beside torch eager, torch.compile and their peers.

    python -m bench.kernels [--quick] [--only linear_cross_entropy] [--no-compile]

Sizes are those of Steel-1B with 16,384 tokens on a GPU (less with --quick), and small ones on a CPU. On a CPU `steel`
is the plain definition, which is what runs there: Triton's interpreter is a test bed and is never timed.

`share_of_ceiling`: the time that the machine's measured copy and product speeds allow for the operator's own bytes and
FLOPs (kernels/*.cost), divided by the time taken. `peak_gb`: the most memory held beyond inputs and their gradients.
Peers (Liger-Kernel, cut-cross-entropy) take part where they are installed.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial

import torch
from torch import Tensor
from torch.nn import functional as F

from bench.common import arguments, finish, table
from bench.device import ceilings, device, fits, peak_bytes, timed, where
from kernels import cross_entropy, experts, launch, prefix, rms_norm, rope
from kernels.launch import Cost
from model.steel.attention import Documents, packed_attention
from model.steel.attention_choice import ATTENTIONS, choose
from model.training.loss import cross_entropy_sum


@dataclass
class Operator:
    """One operator at one size: who computes it, from what, and what it must cost."""

    name: str
    inputs: Sequence[Tensor]
    cost: Cost
    contenders: dict[str, Callable[..., Tensor | tuple[Tensor, ...]]] = field(default_factory=dict)

    def call(self, contender: str) -> Callable[[], None]:
        """Forward and backward once; the gradients to go back with are made by the first call."""
        function, wanted = self.contenders[contender], [x for x in self.inputs if x.requires_grad]
        incoming: list[Tensor] = []

        def run() -> None:
            outputs = function(*self.inputs)
            outputs = [y for y in (outputs if isinstance(outputs, tuple) else (outputs,)) if y.requires_grad]
            if not incoming:
                incoming.extend(torch.ones_like(y) for y in outputs)
            torch.autograd.grad(outputs, wanted, incoming)

        return run


@dataclass(frozen=True)
class Sizes:
    rows: int
    length: int
    hidden: int
    heads: int
    experts: int
    width: int
    slots: int
    classes: int
    documents: int
    """A row."""
    dtype: torch.dtype

    @property
    def tokens(self) -> int:
        return self.rows * self.length


def sizes(quick: bool) -> Sizes:
    if torch.cuda.is_available():
        rows = 2 if quick else 8
        return Sizes(rows, 2048, 1792, 32, 6, 448, 6, 151_936, 4, torch.bfloat16)
    if quick:
        return Sizes(2, 128, 224, 4, 6, 56, 6, 4096, 4, torch.float32)
    return Sizes(2, 512, 448, 8, 6, 112, 6, 16_384, 4, torch.float32)


def operators(s: Sizes) -> Iterator[Operator]:
    """All of them, each with its definition as `eager` and the public function as `steel`."""
    where, size = {"device": device(), "dtype": s.dtype}, s.dtype.itemsize

    def leaf(*shape: int, scale: float = 1.0) -> Tensor:
        return (scale * torch.randn(*shape, **where)).requires_grad_()

    def both(forward: Cost, backward: Cost) -> Cost:
        return Cost(forward.bytes + backward.bytes, forward.flops + backward.flops)

    yield Operator(
        "rms_norm_residual",
        [leaf(s.tokens, s.hidden), leaf(s.tokens, s.hidden), leaf(s.hidden)],
        both(*(rms_norm.cost(s.tokens, s.hidden, size, residual=True, backward=b) for b in (False, True))),
        {
            "steel": partial(rms_norm.rms_norm_residual, eps=1e-6),
            "eager": partial(rms_norm.rms_norm_residual_definition, eps=1e-6),
            **_liger("rms_norm"),
        },
    )

    angle = torch.rand(s.rows, s.length, s.hidden // s.heads, device=device())
    q, k = (leaf(s.rows, s.length, s.heads, s.hidden // s.heads) for _ in range(2))
    turn = rope.cost(s.tokens, s.heads, s.heads, s.hidden // s.heads, size)
    yield Operator(
        "rotate",
        [q.detach().transpose(1, 2).requires_grad_(), k.detach().transpose(1, 2).requires_grad_()],
        both(turn, turn),
        {
            "steel": partial(rope.rotate, cos=angle.cos(), sin=angle.sin()),
            "eager": partial(rope.rotate_definition, cos=angle.cos(), sin=angle.sin()),
            **_liger("rotate", angle),
        },
    )

    weight = s.width**-0.5
    yield Operator(
        "combine_experts",
        [
            leaf(s.tokens, s.experts, s.width),
            torch.rand(s.tokens, s.experts, device=device()).requires_grad_(),
            leaf(s.experts * s.width, s.hidden, scale=weight),
            leaf(s.experts * s.width, s.hidden, scale=weight),
        ],
        both(
            *(experts.cost(s.tokens, s.experts, s.width, s.hidden, size, backward=b) for b in (False, True))
        ),
        {"steel": experts.combine_experts, "eager": experts.combine_experts_definition},
    )

    starts = torch.zeros(s.rows, s.length, dtype=torch.bool, device=device())
    starts[:, :: s.length // s.documents] = True
    yield Operator(
        "prefix_slots",
        [
            leaf(s.rows, s.length, s.hidden),
            torch.randn(s.rows, s.length, s.slots, device=device(), requires_grad=True),
        ],
        both(*(prefix.cost(s.tokens, s.slots, s.hidden, size, backward=b) for b in (False, True))),
        {
            "steel": partial(prefix.prefix_slots, starts=starts),
            "eager": partial(prefix.prefix_slots_definition, starts=starts),
        },
    )

    hidden, head = leaf(s.tokens, s.hidden), leaf(s.classes, s.hidden, scale=0.02)
    targets = torch.randint(s.classes, (s.tokens,), device=device())
    loss = cross_entropy.linear_cross_entropy
    yield Operator(
        "linear_cross_entropy",
        [hidden, head],
        cross_entropy.cost(s.tokens, s.classes, s.hidden, size),
        {
            "steel": partial(loss, targets_N=targets),
            **(
                {"steel, chunks of 4096": partial(loss, targets_N=targets, chunk=4096)}
                if head.is_cuda
                else {}
            ),
            "eager": partial(cross_entropy.linear_cross_entropy_definition, targets_N=targets),
            "chunked torch": partial(_chunked_loss, targets=targets),
            **_loss_peers(targets),
        },
    )

    index = starts.cumsum(1)
    shape = (s.rows, s.length, s.heads, s.hidden // s.heads)
    seen = {}
    for name in ATTENTIONS[1:]:
        try:
            seen[name] = Documents.of(index, s.dtype, choose(name, device(), s.dtype))
        except ValueError:
            continue  # not on this machine: it is missing from the table
    yield Operator(
        "attention",
        [leaf(*shape).detach().transpose(1, 2).requires_grad_() for _ in range(3)],
        attention_cost(s),
        {
            name: partial(packed_attention, documents=documents, scaling=shape[3] ** -0.5)
            for name, documents in seen.items()
        },
    )


def attention_cost(s: Sizes) -> Cost:
    """Causally, half of every document's square; two products forward, five backward."""
    pairs = s.tokens * (s.length / s.documents + 1) / 2
    return Cost(12 * s.tokens * s.hidden * s.dtype.itemsize, int(3.5 * 4 * s.hidden * pairs))


def _liger(name: str, angle: Tensor | None = None) -> dict[str, Callable]:
    try:
        from liger_kernel.ops.fused_add_rms_norm import LigerFusedAddRMSNormFunction
        from liger_kernel.ops.rope import LigerRopeFunction
    except ImportError:
        return {}
    if not torch.cuda.is_available():
        return {}
    if name == "rms_norm":
        return {"liger": lambda x, r, w: LigerFusedAddRMSNormFunction.apply(x, r, w, 1e-6)}
    return {"liger": lambda q, k: LigerRopeFunction.apply(q, k, angle.cos(), angle.sin())}


def _loss_peers(targets: Tensor) -> dict[str, Callable]:
    found = {}
    if hasattr(F, "linear_cross_entropy"):
        found["torch"] = lambda h, w: F.linear_cross_entropy(h, w, targets, reduction="sum")
    if not torch.cuda.is_available():
        return found
    try:
        from liger_kernel.ops.fused_linear_cross_entropy import LigerFusedLinearCrossEntropyFunction

        def liger(h: Tensor, w: Tensor) -> Tensor:
            return LigerFusedLinearCrossEntropyFunction.apply(
                h, w, targets, None, None, -100, 0.0, 0.0, "sum"
            )[0]

        found["liger"] = liger
    except ImportError:
        pass
    try:
        from cut_cross_entropy import linear_cross_entropy

        found["cut_cross_entropy"] = lambda h, w: linear_cross_entropy(h, w, targets, reduction="sum")
    except ImportError:
        pass
    return found


def _chunked_loss(hidden: Tensor, head: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
    """What trainings use where the kernel does not run."""
    return cross_entropy_sum(hidden, head, targets, torch.arange(len(targets), device=targets.device))


def main() -> None:
    parser = arguments(__doc__)
    parser.add_argument("--only", help="one operator")
    parser.add_argument("--no-compile", action="store_true", help="leave torch.compile out")
    options = parser.parse_args()
    s = sizes(options.quick)
    torch.manual_seed(0)
    bytes_per_second, flops_per_second = ceilings(s.dtype)
    on_gpu = torch.cuda.is_available()
    runs = (
        "Triton kernels"
        if on_gpu and launch.triton
        else "the plain definitions (no kernel is timed on a CPU)"
    )
    print(f"{where()}\n`steel` runs {runs}; forward and backward; {s.tokens} tokens, {s.dtype}")
    print(f"ceilings: {bytes_per_second / 1e9:.1f} GB/s, {flops_per_second / 1e12:.3f} TFLOP/s\n")
    rows, results = [], {}
    for operator in operators(s):
        if options.only not in (None, operator.name):
            continue
        if not options.no_compile and "eager" in operator.contenders and operator.name != "attention":
            operator.contenders["compile"] = torch.compile(operator.contenders["eager"])
        calls = {name: operator.call(name) for name in operator.contenders}
        too_large = [name for name, run in calls.items() if not fits(run)]
        found = timed({n: run for n, run in calls.items() if n not in too_large}, 20 if on_gpu else 5)
        gradients = sum(x.numel() * x.element_size() for x in operator.inputs if x.requires_grad)
        results[operator.name] = dict.fromkeys(too_large)
        rows += [[operator.name, name, "out of memory", *[""] * 4] for name in too_large]
        for name, ms in found.items():
            line = {
                "ms": round(ms, 4),
                "peak_gb": round(max(0, peak_bytes(calls[name]) - gradients) / 1e9, 4),
                "gb_per_s": round(operator.cost.bytes / ms / 1e6, 2),
                "tflop_per_s": round(operator.cost.flops / ms / 1e9, 4),
                "share_of_ceiling": round(
                    1e3 * operator.cost.seconds(bytes_per_second, flops_per_second) / ms, 4
                ),
            }
            results[operator.name][name] = line
            rows.append([operator.name, name, *line.values()])
    head = ["operator", "by", "ms", "peak GB", "GB/s", "TFLOP/s", "share of ceiling"]
    print(table(head, rows))
    finish(
        {
            "bench": "kernels",
            "device": where(),
            "steel_runs": runs,
            "tokens": s.tokens,
            "ceiling_gb_per_s": bytes_per_second / 1e9,
            "ceiling_tflop_per_s": flops_per_second / 1e12,
            "operators": results,
        }
    )


if __name__ == "__main__":
    main()
