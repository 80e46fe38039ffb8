"""From the recipe to the training engine's own config: what pretrain, sft and dpo have in common.

The engine (model.training) knows nothing of recipes, artifacts or stages; it gets one flat JSON with
absolute paths. Everything it writes goes into the node's folder.
"""

from __future__ import annotations

import math
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import orjson

from tasks.settings.config import Train
from tasks.settings.errors import NodeError
from tasks.stage.node import Context

CODE = ("tasks.training.engine", "model.training", "model.steel", "kernels")
"""Modules that decide what a training gives, beside the node's own."""


@dataclass(frozen=True)
class Machine:
    """What a training would run on."""

    device: str
    gpus: int
    precision: str


def machine(device: str, precision: str) -> Machine:
    """Look, in a worker process: the flow's own need not load torch for it."""
    import torch

    from model.scoring import resolve_device
    from model.training.parallel import compute_dtype

    device = resolve_device(device)
    resolved = "bf16" if compute_dtype(precision, device) is torch.bfloat16 else "fp32"
    return Machine(device, torch.cuda.device_count() if device == "cuda" else 0, resolved)


def ranks(found: Machine, *wanted: int | None) -> int:
    """Training processes: the first number that is set, or one per GPU, or 2 on a CPU."""
    return next((n for n in wanted if n), found.gpus or 2)


def steps(train: Train, items: int) -> int:
    """Optimizer steps over so many rows (or pairs) an epoch."""
    if items < 1:
        raise NodeError("there is nothing to train on")
    return train.steps or max(1, math.ceil(items * train.epochs / train.batch_size))


def settings(
    ctx: Context, objective: str, train: Train, files: Sequence[Mapping], **more: Any
) -> dict[str, Any]:
    """What every objective needs; `more` is what this one adds, and it may override."""
    runtime = ctx.runtime
    return {
        "objective": objective,
        "work_dir": str(ctx.out),
        "tokenizer_dir": str(ctx.inputs["tokenizer"].path),
        "data": {
            "files": list(files),
            "val_files": list(more.pop("val_files", ())),
            "verify": runtime.verify_shards == "start",
        },
        "batch_size": train.batch_size,
        "micro_batch_size": runtime.micro_batch_size,
        "optim": train.optim.model_dump(mode="json"),
        "precision": train.precision,
        "compile": runtime.compile,
        "attention": runtime.attention,
        "kernels": runtime.kernels,
        "seed": ctx.seed,
        "device": runtime.device,
        "log_every": train.log_every,
        "eval_every": train.eval_every,
        "save_every": train.save_every,
        "keep_checkpoints": runtime.keep_checkpoints,
        "keep_every": runtime.keep_every,
        "watchdog_seconds": runtime.watchdog_seconds,
        "backend_timeout_seconds": runtime.backend_timeout_seconds,
        **more,
    }


def read_metrics(folder: Path) -> list[dict[str, Any]]:
    """The lines of metrics.jsonl."""
    with (folder / "metrics.jsonl").open("rb") as lines:
        return [orjson.loads(line) for line in lines if line.strip()]


def last(metrics: list[dict[str, Any]], name: str) -> float | None:
    """The latest value of a metric."""
    return next((line[name] for line in reversed(metrics) if line.get(name) is not None), None)


def finish(folder: Path, *scratch: str, keep_checkpoints: bool = False) -> None:
    """Leave the result, drop what only an unfinished training needs (or one that continues this)."""
    if not (folder / "export" / "config.json").exists():
        raise NodeError(f"the training ended without an export; see {folder / 'train.log'}")
    for name in scratch if keep_checkpoints else ("checkpoints", *scratch):
        shutil.rmtree(folder / name, ignore_errors=True)


def headline_metrics(metrics: list[dict[str, Any]]) -> dict[str, float]:
    """The numbers a training is remembered by."""
    found = {
        "final_loss": last(metrics, "loss"),
        "val_loss": last(metrics, "val_loss"),
        "tokens": last(metrics, "tokens"),
        "tokens_per_s": last(metrics, "tokens_per_s"),
    }
    return {name: float(value) for name, value in found.items() if value is not None}


def execution(ctx: Context, train: Train, found: Machine, nproc: int) -> dict[str, Any]:
    """How it was run: not part of what it means, but of what bit-identity is promised for."""
    return {
        "device": found.device,
        "ranks": nproc,
        "micro_batch_size": ctx.runtime.micro_batch_size or train.batch_size // nproc,
        "threads_per_rank": ctx.runtime.threads_per_rank,
        "precision": found.precision,
        "compile": ctx.runtime.compile,
        "kernels": ctx.runtime.kernels,
    }
