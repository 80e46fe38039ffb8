"""A whole training step as the engine makes it: forward, loss, backward, clipping, AdamW.

    python -m bench.train_step --engine [--quick]          # against Hugging Face's Trainer: bench/train_engine.py
    python -m bench.train_step [--quick] [--ffn token ...] [--compile] [--micro-batch 8] [--attention auto]
    torchrun --nproc-per-node 8 -m bench.train_step

Steel-1B with 8 x 2,048 tokens a micro-batch on a GPU; a small model on a CPU, where the plain operators run in either
case. Tokens per second are per device. `mfu` counts the products of one token, attention causally (half the square;
SteelConfig.num_flops_per_token), against the device's data-sheet BF16 peak; `share_of_ceiling` against a matrix product's
speed measured in the same run. Goals on one H100 or H200: docs/kernels.md.
"""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from statistics import median
from typing import Any

import torch
import torch.distributed as dist
from torch.distributed.tensor import DTensor

from bench import train_engine
from bench.common import arguments, finish, table
from bench.device import ceilings, peak_bytes, where
from model.training import parallel
from model.training.batch import Batch
from model.training.config import TrainConfig, from_dict
from model.training.loop import make_objective
from model.training.metrics import peak_flops
from model.training.objectives import Scorer
from model.training.optim import clip, local_gradients, make_optimizer
from model.training.parallel import World, start
from model.training.sharding import begin_micro_step

SMALL = {
    "vocab_size": 4096,
    "hidden_size": 224,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "expert_width": 56,
    "bos_token_id": 0,
    "eos_token_id": 0,
    "pad_token_id": 0,
}
"""For CPUs: heads of 56 as Steel-1B's."""


@dataclass(frozen=True)
class Plan:
    """What is timed."""

    name: str
    model: dict[str, Any]
    rows: int
    length: int
    kernels: str = "auto"
    compile: bool = False
    attention: str = "auto"
    micro_steps: int = 1
    documents: int = 4
    """A row."""


class Step:
    """One model on this rank, ready to make steps."""

    def __init__(self, plan: Plan, world: World, adjust: Callable[[Any], None] = lambda scorer: None):
        self.plan, self.world, self.config = plan, world, settings(plan)
        self.scorer = _built(self.config, world)
        adjust(self.scorer)
        self.objective = make_objective(self.config)
        self.optimizer = make_optimizer(self.scorer, self.config.optim, world.dtype)
        self.batches = [batch(plan, world.rank + i).to(world.device) for i in range(plan.micro_steps)]

    def __call__(self) -> None:
        units = sum(self.objective.units(b) for b in self.batches)
        stats = torch.zeros(1, dtype=torch.float64, device=self.world.device)
        for i, b in enumerate(self.batches):
            begin_micro_step(self.scorer, self.config, last=i == len(self.batches) - 1)
            loss, sums = self.objective(self.scorer, b, 1.0 / units)
            loss.backward()
            stats += sums
        clip(local_gradients(self.scorer), 1.0, stats)
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)

    def measure(self, steps: int, flops_ceiling: float) -> dict[str, Any]:
        """Median step, after a few to warm up; memory of one more step, model and optimizer included."""
        for _ in range(3):
            self()
        times = []
        for _ in range(steps):
            times.append(self._seconds())
        seconds = median(times)
        tokens = self.plan.rows * self.plan.length * self.plan.micro_steps
        flops = tokens * self.scorer.lm.config.num_flops_per_token(self.plan.length) / seconds
        peak = peak_flops(self.world.device)
        return {
            "ms": round(1e3 * seconds, 2),
            "tokens_per_s": round(tokens / seconds, 1),
            "peak_gb": round((peak_bytes(self) + self._held()) / 1e9, 3),
            "tflop_per_s": round(flops / 1e12, 4),
            "mfu": round(flops / peak, 4) if peak else None,
            "share_of_ceiling": round(flops / flops_ceiling, 4),
        }

    def _seconds(self) -> float:
        dist.barrier()
        self._wait()
        begin = time.perf_counter() if self.world.size > 1 or self._on_gpu else time.process_time()
        self()
        self._wait()
        end = time.perf_counter() if self.world.size > 1 or self._on_gpu else time.process_time()
        return end - begin

    @property
    def _on_gpu(self) -> bool:
        return self.world.device.type == "cuda"

    def _wait(self) -> None:
        if self._on_gpu:
            torch.cuda.synchronize()

    def _held(self) -> int:
        """What lies in memory between steps: weights, the optimizer's state."""
        if self._on_gpu:
            return torch.cuda.memory_allocated()
        states = [v for s in self.optimizer.state.values() for v in s.values() if isinstance(v, torch.Tensor)]
        return sum(
            t.numel() * t.element_size() // self.world.size for t in [*self.scorer.parameters(), *states]
        )


def _built(config: TrainConfig, world: World) -> Scorer:
    """The engine's model; on a GPU with weights drawn there, not on one CPU core, which takes 15 seconds at a billion."""
    if world.device.type != "cuda":
        return parallel.build(config, world)
    usual, parallel.fill = parallel.fill, _draw
    try:
        return parallel.build(config, world)
    finally:
        parallel.fill = usual


@torch.no_grad()
def _draw(model: torch.nn.Module, *_: Any) -> None:
    """Random matrices, ones for norms, zeros for biases: a step's time does not depend on which."""
    for name, parameter in model.named_parameters():
        local = parameter.to_local() if isinstance(parameter, DTensor) else parameter
        if parameter.dim() > 1:
            local.normal_(0.0, 0.02)
        else:
            local.fill_(0.0 if name.endswith("bias") else 1.0)


def settings(plan: Plan) -> TrainConfig:
    return from_dict(
        {
            "objective": "pretrain",
            "work_dir": "-",
            "model": plan.model,
            "data": {"files": [{"path": "-"}]},
            "steps": 1,
            "kernels": plan.kernels,
            "compile": plan.compile,
            "attention": plan.attention,
            "optim": {"lr": 1e-4, "z_loss": 1e-5},
        }
    )


def batch(plan: Plan, seed: int) -> Batch:
    """Random tokens; every row holds `documents` of unequal length, and no padding."""
    generator = torch.Generator().manual_seed(seed)
    width = plan.length + 1
    tokens = torch.randint(plan.model["vocab_size"], (plan.rows, width), generator=generator).int()
    cuts = torch.rand(plan.rows, plan.documents - 1, generator=generator).mul(plan.length - 1).long() + 1
    starts = torch.cat([torch.zeros(plan.rows, 1, dtype=torch.long), cuts], dim=1)
    starts += torch.arange(plan.rows).unsqueeze(1) * width
    starts = starts.flatten().unique()
    made = Batch(
        tokens=tokens,
        starts=starts,
        valid=torch.full((plan.rows,), width, dtype=torch.int32),
        loss_mask=None,
        targets=0,
        blocks=torch.arange(plan.rows),
        files=torch.zeros(plan.rows, dtype=torch.int32),
    )
    return replace(made, targets=int((made.labels >= 0).sum()))


def join() -> World:
    """This process among torchrun's, or alone."""
    logging.basicConfig(level=logging.INFO if os.environ.get("RANK", "0") == "0" else logging.WARNING)
    return start(from_dict({**_NO_RUN, "model": SMALL}))


_NO_RUN = {"objective": "pretrain", "work_dir": "-", "data": {"files": [{"path": "-"}]}, "steps": 1}


def main() -> None:
    parser = arguments(__doc__)
    parser.add_argument("--ffn", nargs="+", default=["token"], help="kinds of FFN")
    parser.add_argument("--compile", action="store_true", help="each block compiled, beside not")
    parser.add_argument("--attention", default="auto")
    parser.add_argument(
        "--kernels", nargs="+", default=["auto", "off"], help="on a GPU; a CPU has the plain ones"
    )
    parser.add_argument("--micro-batch", type=int, default=8, help="rows of 2,048 tokens, on a GPU")
    parser.add_argument("--layers", type=int, help="fewer than the model has")
    parser.add_argument("--engine", action="store_true", help="the engine against Hugging Face's Trainer")
    options = parser.parse_args()
    if options.engine:
        train_engine.compare(quick=options.quick)
        return
    world = join()
    on_gpu = world.device.type == "cuda"
    model = {"vocab_size": 151_936} if on_gpu else dict(SMALL)
    if options.layers:
        model["num_hidden_layers"] = options.layers
    rows, length = (options.micro_batch, 2048) if on_gpu else (2, 128) if options.quick else (4, 256)
    _, flops_ceiling = ceilings(world.dtype)
    lines, results = [], {}
    for ffn in options.ffn:
        for kernels in options.kernels if on_gpu else ("auto",):
            for compiled in (False, True) if options.compile else (False,):
                name = f"{ffn}, kernels {kernels}{', compiled' if compiled else ''}"
                geometry = {**model, "ffn": ffn, "allow_future_leakage": True}
                plan = Plan(name, geometry, rows, length, kernels, compiled, options.attention)
                step = Step(plan, world)
                results[name] = step.measure(10 if on_gpu else 5, flops_ceiling)
                lines.append([name, *results[name].values()])
                del step
                if on_gpu:
                    torch.cuda.empty_cache()
    if world.first:
        print(
            f"\n{where()}, {world.size} device(s), {world.dtype}; {rows} x {length} tokens a step and device"
        )
        if not on_gpu:
            print("On a CPU the plain operators run; times are CPU time of a small model.")
        print(f"a matrix product reaches {flops_ceiling / 1e12:.3f} TFLOP/s\n")
        print(table(["step", "ms", "tokens/s", "peak GB", "TFLOP/s", "MFU", "share of ceiling"], lines))
        finish(
            {
                "bench": "train_step",
                "device": where(),
                "devices": world.size,
                "ceiling_tflop_per_s": flops_ceiling / 1e12,
                "steps": results,
            }
        )
    dist.destroy_process_group()


if __name__ == "__main__":
    main()
