"""A training of the engine, from the recipe to its metrics: what pretrain, sft, dpo and the ablation have in common.

    machine → ranks → settings → launch → finish → metrics → execution

The engine (model.training) knows nothing of recipes, artifacts or stages; it gets one JSON file with absolute paths.
Everything it writes goes into the node's folder.
"""

from __future__ import annotations

import math
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from model.training import lines
from model.training.config import ConfigError, TrainConfig, from_dict, unshardable
from model.training.machine import Machine
from tasks.settings.config import Train
from tasks.settings.errors import NodeError
from tasks.stage.node import Context
from tasks.training import launch

RUNTIME = (
    *("micro_batch_size", "compile", "attention", "kernels", "device", "keep_checkpoints"),
    *("keep_every", "watchdog_seconds", "backend_timeout_seconds", "allow_changed"),
    *("detail_every", "peak_tflops", "profile_steps"),
    *("export_every", "export_steps"),
    *(
        "activation_checkpointing",
        "reshard_after_forward",
        "parallel",
        "expandable_segments",
        "deterministic",
    ),
)
"""Fields of `runtime` that the engine has under the same name."""


CPU_RANKS = 2
"""Training processes on a machine without a GPU, where the settings name no number."""


@dataclass(frozen=True)
class Trained:
    """What is known of a finished training, beside the export in its folder."""

    metrics: list[dict[str, Any]]
    """The lines of metrics.jsonl."""
    execution: dict[str, Any]
    """How it was run: not part of what it means, but of what bit-identity is promised for."""

    def last(self, name: str) -> float | None:
        """The latest value of a metric."""
        return next((line[name] for line in reversed(self.metrics) if line.get(name) is not None), None)

    def headline(self) -> dict[str, float]:
        """The numbers a training is remembered by."""
        names = {
            "final_loss": "loss",
            "val_loss": "val_loss",
            "tokens": "tokens",
            "tokens_per_s": "tokens_per_s",
        }
        values = {name: self.last(metric) for name, metric in names.items()}
        return {name: float(value) for name, value in values.items() if value is not None}


# --------------------------------------------------------------------------------- trainings
def train(
    ctx: Context,
    objective: str,
    recipe: Train,
    files: Sequence[Mapping[str, Any]],
    *,
    nproc: int | None,
    scratch: Sequence[str] = (),
    keep_checkpoints: bool = False,
    **more: Any,
) -> Trained:
    """Train in `ctx.out` to the end; the export is then in `ctx.out / "export"`.

    `files`: shards or pairs, as model.training.config.FileConfig has them. `nproc`: ranks, if they are set.
    `scratch`: folders to drop when it has ended. `more`: what this objective needs of TrainConfig beside the recipe.
    NodeError when the settings cannot be run (before anything starts), or when the training fails.
    """
    execution = run(ctx, settings(ctx, objective, recipe, files, **more), recipe, nproc)
    finish(ctx.out, *scratch, keep_checkpoints=keep_checkpoints)
    return Trained(read_metrics(ctx.out), execution)


def run(ctx: Context, config: TrainConfig, recipe: Train, nproc: int | None) -> dict[str, Any]:
    """Run the engine once, whatever it leaves; returns how it was run."""
    ctx.progress(0.0, "looking at the machine")
    machine = launch.look(ctx, recipe.precision)
    asked, nproc = nproc, ranks(machine, nproc)
    if asked and asked > nproc:
        ctx.log.warning(
            "%d ranks are set, and there are %d GPUs: %d ranks are used", asked, machine.gpus, nproc
        )
    if reason := unshardable(config.parallel, nproc):
        raise NodeError(f"{ctx.name}: {reason}")
    if config.steps and config.optim.warmup_steps >= config.steps:
        ctx.log.warning(
            "warmup_steps %d is not below the %d steps of this training: the rate never reaches %g",
            config.optim.warmup_steps,
            config.steps,
            config.optim.lr,
        )
    launch.launch(ctx, config, nproc=nproc, machine=machine)
    return {
        "device": machine.device,
        "ranks": nproc,
        "micro_batch_size": ctx.runtime.micro_batch_size or recipe.batch_size // nproc,
        "threads_per_rank": ctx.runtime.threads_per_rank,
        "precision": machine.precision,
        "compile": ctx.runtime.compile,
        "kernels": ctx.runtime.kernels,
    }


# ----------------------------------------------------------------------------------- pieces
def settings(
    ctx: Context,
    objective: str,
    recipe: Train,
    files: Sequence[Mapping[str, Any]],
    *,
    val_files: Sequence[Mapping[str, Any]] = (),
    **more: Any,
) -> TrainConfig:
    """The engine's own config; `more` may override. NodeError names the first value that cannot be run."""
    runtime = ctx.runtime
    values = {
        "objective": objective,
        "work_dir": str(ctx.out),
        "tokenizer_dir": str(ctx.inputs["tokenizer"].path),
        "data": {
            "files": list(files),
            "val_files": list(val_files),
            "verify": runtime.verify_shards == "start",
        },
        "optim": recipe.optim.model_dump(mode="json"),
        **recipe.model_dump(mode="json", exclude={"optim", "steps", "epochs"}),
        **runtime.model_dump(mode="json", include=set(RUNTIME)),
        "seed": ctx.seed,
        **more,
    }
    try:
        return from_dict(values)
    except ConfigError as error:
        raise NodeError(f"{ctx.name}: the training cannot be started: {error}") from None


def ranks(machine: Machine, nproc: int | None) -> int:
    """Training processes: as set, or one per GPU, or 2 on a CPU. Never more than GPUs, where there are any."""
    if machine.gpus:
        return min(nproc or machine.gpus, machine.gpus)
    return nproc or CPU_RANKS


def steps(recipe: Train, items: int) -> int:
    """Optimizer steps over so many rows (or pairs) an epoch."""
    if items < 1:
        raise NodeError("there is nothing to train on")
    return recipe.steps or max(1, math.ceil(items * recipe.epochs / recipe.batch_size))


def finish(folder: Path, *scratch: str, keep_checkpoints: bool = False) -> None:
    """Leave the result, drop what only an unfinished training needs (or one that continues this)."""
    if not (folder / "export" / "config.json").exists():
        raise NodeError(f"the training ended without an export; see {folder / launch.LOG}")
    for name in scratch if keep_checkpoints else ("checkpoints", *scratch):
        shutil.rmtree(folder / name, ignore_errors=True)


def read_metrics(folder: Path) -> list[dict[str, Any]]:
    """The lines of metrics.jsonl, but for those that a crash has torn; NodeError if none of them has a loss."""
    metrics = list(lines.read(folder / launch.METRICS))
    if not any(line.get("loss") is not None for line in metrics):
        raise NodeError(f"{folder / launch.METRICS} holds no line with a loss; see {folder / launch.LOG}")
    return metrics
