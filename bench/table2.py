"""The paper's Table 2 again: which training technique gives how much speed, and what it takes in memory.

    python -m bench.table2 [--quick] [--model paper|steel-1b]
    torchrun --nproc-per-node 8 -m bench.table2

Eight experiments, the paper's, by five switches (arXiv 2502.06635, section 4): attention (flash, or written out in
torch), RoPE (fused or torch), RMSNorm (fused or torch), loss (fused, or torch on all logits at once), and whether the
gathered parameters are dropped between forward and backward (FSDP) or kept ("no share param"). The model of the paper's
table is dense, of 1.8 billion parameters; micro-batch 8 of 2,048 tokens. The switches are this repository's: kernels/
for the fused operators, model/steel/attention.py for attention, FSDP2.

On a CPU the model is small and every fused operator is its plain definition, so that the on and off columns differ by
nothing but noise there: it shows that the bench runs, and no more. Flash attention is SDPA there.
"""

from __future__ import annotations

import argparse
import json
from dataclasses import dataclass, replace
from typing import Any

import torch
import torch.distributed as dist
from torch.distributed.fsdp import FSDPModule

from bench.common import arguments, finish, table
from bench.device import ceilings, where
from bench.train_step import SMALL, Plan, Step, join
from kernels.cross_entropy import linear_cross_entropy_definition
from model.steel.ops import PLAIN
from model.training import objectives
from model.training.fused import operators
from model.training.objectives import Scorer

PAPER_MODEL = {
    "vocab_size": 151_936,
    "hidden_size": 2048,
    "num_hidden_layers": 24,
    "num_attention_heads": 16,
    "ffn": "dense",
    "expert": "swiglu",
    "num_experts": 1,
    "expert_width": 5504,
}
"""Qwen1.5-1.8B's geometry: 1.84 billion parameters, no Soft MoE."""


@dataclass(frozen=True)
class Experiment:
    """One column of the table; what the paper measured on A100s: tokens per second and GPU, GB."""

    flash: bool
    rope: bool
    norm: bool
    loss: bool
    dropped: bool
    """Gathered parameters between forward and backward (the paper's FSDP)."""
    paper: tuple[int, int]


EXPERIMENTS = (
    Experiment(True, True, False, True, True, (13_400, 65)),
    Experiment(True, False, False, True, True, (12_500, 65)),
    Experiment(False, True, False, True, True, (10_600, 69)),
    Experiment(True, True, False, True, False, (13_800, 69)),
    Experiment(True, True, True, True, True, (14_600, 61)),
    Experiment(True, True, False, False, True, (13_000, 75)),
    Experiment(True, True, True, True, False, (15_000, 66)),
    Experiment(False, False, False, False, True, (10_500, 75)),
)


def adjust(scorer: Scorer, experiment: Experiment, fused: Any) -> None:
    """Set the switches on a model that has been built."""
    chosen = {"combine_experts": fused.combine_experts, "prefix_slots": fused.prefix_slots}
    if experiment.rope:
        chosen["rotate"] = fused.rotate
    if experiment.norm:
        chosen |= {"rms_norm": fused.rms_norm, "rms_norm_residual": fused.rms_norm_residual}
    scorer.lm.set_ops(replace(PLAIN, **chosen))
    for module in scorer.modules():
        if isinstance(module, FSDPModule):
            module.set_reshard_after_forward(experiment.dropped, recurse=False)


def all_logits(hidden, head, targets, rows, scale=1.0, z_loss=0.0, **_) -> tuple[torch.Tensor, torch.Tensor]:
    """The loss without fusion or chunks, as the paper's "PyTorch"."""
    return linear_cross_entropy_definition(hidden[rows], head, targets, scale=scale, z_loss=z_loss)


def run(
    experiment: Experiment, model: dict[str, Any], rows: int, length: int, world: Any, ceiling: float
) -> Any:
    """The measured line, or None where the memory was too small."""
    attention = "auto" if experiment.flash else "eager"
    plan = Plan("", model, rows, length, "auto", False, attention)
    fused = operators("auto", world.device)
    usual = objectives.cross_entropy_sum
    objectives.cross_entropy_sum = usual if experiment.loss else all_logits
    try:
        step = Step(plan, world, lambda scorer: adjust(scorer, experiment, fused))
        return step.measure(10 if world.device.type == "cuda" else 3, ceiling)
    except torch.OutOfMemoryError:
        return None
    finally:
        objectives.cross_entropy_sum = usual
        if world.device.type == "cuda":
            torch.cuda.empty_cache()


def options() -> argparse.Namespace:
    parser = arguments(__doc__)
    parser.add_argument("--model", choices=("paper", "steel-1b"), default="paper", help="on a GPU")
    parser.add_argument("--micro-batch", type=int, default=8, help="rows of 2,048 tokens, on a GPU")
    return parser.parse_args()


def main() -> None:
    chosen = options()
    world = join()
    on_gpu = world.device.type == "cuda"
    model = PAPER_MODEL if chosen.model == "paper" else {"vocab_size": 151_936}
    if not on_gpu:
        model = {**SMALL, "ffn": "dense", "expert": "swiglu", "num_experts": 1, "expert_width": 608}
    rows, length = (chosen.micro_batch, 2048) if on_gpu else (2, 128) if chosen.quick else (4, 256)
    _, ceiling = ceilings(world.dtype)
    lines, results = [], []
    for number, experiment in enumerate(EXPERIMENTS, 1):
        found = run(experiment, model, rows, length, world, ceiling)
        switches = {
            "flash_attention": experiment.flash,
            "fused_rope": experiment.rope,
            "fused_rms_norm": experiment.norm,
            "fused_loss": experiment.loss,
            "parameters_dropped": experiment.dropped,
        }
        speed, memory = (found["tokens_per_s"], found["peak_gb"]) if found else ("out of memory", "")
        marks = ["yes" if on else "-" for on in switches.values()]
        lines.append([f"Exp {number}", *marks, speed, memory, *experiment.paper])
        results.append(
            {
                "experiment": number,
                **switches,
                **(found or dict.fromkeys(("ms", "peak_gb", "share_of_ceiling"))),
            }
        )
    if world.first:
        print(
            f"\n{where()}, {world.size} device(s), {world.dtype}; {rows} x {length} tokens a step and device"
        )
        print(f"model: {json.dumps(model)}")
        if not on_gpu:
            print(
                "On a CPU every fused operator is its plain definition: the switches of RoPE and RMSNorm do nothing."
            )
        head = ["", "flash", "RoPE", "RMSNorm", "loss", "dropped", "tokens/s", "GB", "paper: tokens/s", "GB"]
        print()
        print(table(head, lines))
        finish(
            {
                "bench": "table2",
                "device": where(),
                "devices": world.size,
                "model": model,
                "experiments": results,
            }
        )
    dist.destroy_process_group()


if __name__ == "__main__":
    main()
