"""What a run would cost on GPUs that may not be here: memory, time, disk. No data is needed, and no torch in this process.

Memory of Steel's own models is measured, not estimated: model.training.memory runs the engine's step under fake tensors,
in a process of its own for each stage; that of other models is estimated by model.training.memory_estimate. An answer
is kept as soon as it is there, by a digest of the question and of the code of model/ and kernels/. Time is arithmetic on
data sheets and on what comparable trainings reach; nothing of it has been measured with this code.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from hashlib import sha256
from importlib.metadata import version
from pathlib import Path
from typing import Any

from tasks.inspect.gpus import Fleet
from tasks.settings.config import Runtime, SteelRun, Train
from tasks.settings.errors import NodeError
from tasks.settings.files import write_json
from tasks.settings.paths import ROOT
from tasks.training.pretrain import beginning, rounded_vocab

STAGES = ("pretrain", "sft", "dpo", "rl")
TRACKER, ESTIMATE = "model.training.memory", "model.training.memory_estimate"
RECOMPUTED = {"none": 0.0, "selective": 0.5, "full": 1.0}
"""Share of the blocks whose forward pass, a third of the FLOPs, is computed twice."""
BATCH_ROWS = 128
"""Replies that are sampled side by side (model.sampling, which this process does not load)."""
DOCUMENTS = 4
"""A row's; the memory of attention depends on it a little, that of the FFN kind `merge` more."""


def _silent(line: str) -> None:
    """Whoever asks wants no lines."""


@dataclass(frozen=True)
class Training:
    """One trained stage on so many GPUs."""

    stage: str
    recipe: Train
    ranks: int
    length: int
    """Tokens of a row."""
    rows_each: int
    """Rows of one item of the batch: 2 for a pair, the group for a prompt of RL."""
    micro: int
    """As set, or the rank's share of the batch."""
    runtime: Runtime
    """How it is run: what saves memory."""
    passes: int = 1
    """Updates in a step of RL, all on the same rows."""
    sampled: int = 0
    """Tokens of a reply that RL samples, at most. 0: another stage."""

    @property
    def copies(self) -> int:
        """Of the model."""
        return self.runtime.parallel.replicate

    @property
    def gathers(self) -> int:
        """Times that all weights are gathered in an optimizer step."""
        return 2 * (self.share // self.micro) if self.runtime.reshard_after_forward else 1

    @property
    def share(self) -> int:
        return self.recipe.batch_size // self.ranks

    @property
    def tokens_per_step(self) -> int:
        return self.recipe.batch_size * self.rows_each * self.length

    @property
    def micro_batches(self) -> list[int]:
        """Those that deal the rank's share of the batch."""
        return [rows for rows in range(1, self.share + 1) if self.share % rows == 0]


@dataclass(frozen=True)
class Cost:
    """A training with the tracker's answer and the time that follows."""

    training: Training
    answer: dict[str, Any]
    limit: float
    """Bytes of a GPU that the step may fill."""

    @property
    def peak(self) -> dict[str, int]:
        """Part -> bytes, at the micro-batch that is set."""
        return self.answer["peaks"][str(self.training.micro)]

    @property
    def fits(self) -> bool:
        return self.peak["total"] <= self.limit


def reserve(memory: float) -> float:
    """GB of a GPU left to what is not counted: CUDA context, NCCL, cuBLAS, fragmentation. A guess."""
    return 2 + 0.04 * memory


def costs(config: SteelRun, fleet: Fleet, cache: Path, tell: Callable[[str], None] = _silent) -> list[Cost]:
    """Every trained stage's cost; `tell` is told of each that takes time. NodeError with one line where memory does not do.
    That the ranks can share batch and model is for preflight.complaints to say first."""
    trainings = list(_trainings(config, fleet))
    limit = 1e9 * (fleet.gpu.memory - reserve(fleet.gpu.memory))
    questions = {training.stage: _question(config, training, limit) for training in trainings}
    answers = ask(questions, cache, tell)
    found = [Cost(*pair, limit) for pair in zip(trainings, answers, strict=True)]
    for cost in found:
        if not cost.fits:
            raise NodeError(_too_large(cost, fleet))
    return found


def ask(
    questions: Mapping[str, dict[str, Any]], cache: Path, tell: Callable[[str], None] = _silent
) -> list[dict[str, Any]]:
    """Answers to the named questions, in their order. What is not in the folder `cache` is asked, a process for each
    question and one a core at once, and put there when it is known: a later failure or a stop does not cost it."""
    places = {name: cache / f"{_digest(question)}.json" for name, question in questions.items()}
    missing: dict[Path, list[str]] = {}  # equal questions are asked once
    for name, place in places.items():
        if not place.exists():
            missing.setdefault(place, []).append(name)
    if missing:
        asked = ", ".join(name for name, place in places.items() if place in missing)
        tell(f"working out the memory of {asked}: minutes for a large model, once")

    def find(place: Path) -> None:
        names, began = missing[place], time.monotonic()
        question = questions[names[0]]
        write_json(place, _track(question, _module(question)))
        tell(f"  {' and '.join(names)}: {time.monotonic() - began:.0f} s")

    with ThreadPoolExecutor(os.cpu_count()) as pool:
        list(pool.map(find, missing))
    return [json.loads(place.read_text("utf-8")) for place in places.values()]


def seconds_per_step(cost: Cost, fleet: Fleet) -> tuple[float, float]:
    """(at best, at worst) of an optimizer step.

    Best: the range's upper share of the peak, all communication behind computation. Worst: the lower share; then the
    gathering of BF16 weights, the summing of FP32 gradients in a copy and over the copies, and AdamW's 28 bytes a
    parameter, one after the other. Blocks that are computed twice cost either.
    """
    training, parameters = cost.training, cost.answer["parameters"]
    shards = training.ranks // training.copies
    flops = cost.answer["flops_per_token"] * training.tokens_per_step / training.ranks
    flops *= 1 + RECOMPUTED[training.runtime.activation_checkpointing] / 3
    low, high = (flops / (share * fleet.gpu.tflops * 1e12) for share in reversed(fleet.gpu.mfu))
    link = fleet.gpu.link if shards <= fleet.per_node else fleet.link
    in_copy = (shards - 1) / shards * parameters * (2 * training.gathers + 4) / (link * 1e9)
    between = 2 * (training.copies - 1) / training.copies * 4 * parameters / shards / (fleet.link * 1e9)
    update = 28 * parameters / shards / (fleet.gpu.bandwidth * 1e9)
    passes = training.passes
    few, many = _sampling(cost, fleet) if training.sampled else (0.0, 0.0)
    return passes * low + few, passes * (high + in_copy + between + update) + many


def _sampling(cost: Cost, fleet: Fleet) -> tuple[float, float]:
    """Seconds (at best, at worst) in which a rank samples a step's replies.

    A token of all replies of a batch costs one reading of the weights. Best: batches are full. Worst: every prompt has a
    length of its own, and so a batch of its own.
    """
    training = cost.training
    reading = 2 * cost.answer["parameters"] / (fleet.gpu.bandwidth * 1e9)
    full = -(-training.share * training.rows_each // BATCH_ROWS)
    return full * training.sampled * reading, training.share * training.sampled * reading


def disk(config: SteelRun, costs: list[Cost]) -> dict[str, float]:
    """Name -> bytes, at most. Only what training and its data take; downloads and cleaned records depend on the data."""
    found: dict[str, float] = {}
    keep = config.runtime.keep_checkpoints
    for cost in costs:
        recipe, parameters = cost.training.recipe, cost.answer["parameters"]
        stage, at_once, made = cost.training.stage, 1, 1
        if stage == "sft":
            made, at_once = len(config.sft.variants), config.runtime.parallel_trainings
        # the newest, one being written, and the one where the decay of wsd begins
        number = (keep + 1 + (recipe.optim.schedule == "wsd" and stage == "pretrain")) * at_once
        each, what = 12 * parameters, "weights and two moments in FP32"
        if recipe.optim.name == "muon":
            shards = cost.training.ranks // cost.training.copies
            each, what = 4 * parameters + cost.peak["optimizer"] * shards, "weights and moments in FP32"
        found[f"{stage}: {number} checkpoints ({what})"] = each * number
        size = 4 if recipe.export_dtype == "float32" else 2
        found[f"{stage}: {made} export{'s' if made > 1 else ''} ({recipe.export_dtype})"] = (
            size * parameters * made
        )
        if stage == "pretrain" and recipe.steps:
            tokens = recipe.steps * cost.training.tokens_per_step
            width = (cost.training.length + 1) / cost.training.length
            found["shards, if no token is read twice (4 bytes each)"] = 4 * tokens * width
    return found


# ------------------------------------------------------------------------------------ parts
def _trainings(config: SteelRun, fleet: Fleet) -> Iterator[Training]:
    runtime, tokens = config.runtime, config.tokenize
    for stage in STAGES:
        if not _reached(config, stage):
            continue
        recipe: Train = (config.pretrain if stage == "pretrain" else getattr(config, stage)).train
        rl = config.rl
        lengths = {
            "pretrain": tokens.block_size,
            "sft": config.sft.packed_tokens,
            "dpo": config.dpo.max_tokens,
            "rl": rl.max_prompt_tokens + rl.max_new_tokens,
        }
        rows_each = {"dpo": 2, "rl": rl.group}.get(stage, 1)
        more = {"passes": rl.inner_steps, "sampled": rl.max_new_tokens} if stage == "rl" else {}
        asked = runtime.nproc if stage == "pretrain" else runtime.sft_nproc or runtime.nproc
        ranks = fleet.nodes * min(asked or fleet.per_node, fleet.per_node)
        micro = runtime.micro_batch_size or recipe.batch_size // ranks
        yield Training(stage, recipe, ranks, lengths[stage], rows_each, micro, runtime, **more)


def _reached(config: SteelRun, stage: str) -> bool:
    asked = {"sft": config.sft.variants, "dpo": config.dpo.mixture, "rl": config.rl.mixture}
    return bool(asked.get(stage, True))


def _question(config: SteelRun, training: Training, limit: float) -> dict[str, Any]:
    """For model.training.memory; only what decides the answer."""
    runtime, recipe = config.runtime, training.recipe
    vocab_size = config.model.vocabulary
    if vocab_size is None and config.tokenize.tokenizer == "folder":
        field = "model.vocab_size" if config.model.own else "model.transformers.vocab_size"
        raise NodeError(f"the vocabulary is that of a tokenizer that is not known yet: set {field}")
    start = beginning(config.model, vocab_size or rounded_vocab(None, config.tokenize.vocab_size))
    return {
        "train": {
            "objective": "pretrain",
            "work_dir": "-",
            "data": {"files": [{"path": "-"}]},
            **start,
            "steps": 1,
            "batch_size": recipe.batch_size,
            "precision": recipe.precision,
            "attention": runtime.attention,
            "kernels": runtime.kernels,
            "optim": {"name": recipe.optim.name},
            "activation_checkpointing": runtime.activation_checkpointing,
            "reshard_after_forward": runtime.reshard_after_forward,
            "parallel": runtime.parallel.model_dump(),
        },
        "ranks": training.ranks,
        "rows": training.micro_batches,
        "micro": training.micro,
        "length": training.length,
        "documents": 1 if training.stage in ("dpo", "rl") else DOCUMENTS,
        "limit": limit,
        "dpo": training.stage == "dpo",
        "group": training.rows_each if training.sampled else 0,
        "reference": bool(training.sampled and config.rl.kl_weight),
    }


def _digest(question: Mapping[str, Any]) -> str:
    """Of the question, and of the code and the library that answer it."""
    digest = sha256(json.dumps(question, sort_keys=True).encode())
    digest.update(f"torch {version('torch')}, transformers {version('transformers')}".encode())
    for file in sorted([*(ROOT / "model").rglob("*.py"), *(ROOT / "kernels").rglob("*.py")]):
        digest.update(str(file.relative_to(ROOT)).encode())
        digest.update(file.read_bytes())
    return digest.hexdigest()[:24]


def _module(question: Mapping[str, Any]) -> str:
    """What answers it."""
    train = question.get("train", {})
    other = "init_from" in train or "model_type" in (train.get("model") or {})
    return ESTIMATE if other else TRACKER


def _track(question: dict[str, Any], module: str) -> dict[str, Any]:
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "questions.json"
        file.write_text(json.dumps([question]), "utf-8")
        command = [sys.executable, "-m", module, str(file)]
        environment = {**os.environ, "CUDA_VISIBLE_DEVICES": "", "OMP_NUM_THREADS": "1"}
        done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
    if done.returncode:
        lines = done.stderr.strip().splitlines() or ["no message"]
        raise NodeError(f"the memory of the training cannot be measured: {lines[-1]}")
    [answer] = json.loads(done.stdout.strip().splitlines()[-1])
    return answer


def _too_large(cost: Cost, fleet: Fleet) -> str:
    training, largest = cost.training, cost.answer["largest"]
    what = f"{training.stage}: micro-batch {training.micro} takes {cost.peak['total'] / 1e9:.1f} GB"
    room = f"of a {fleet.gpu.name}'s {fleet.gpu.memory:g} GB {cost.limit / 1e9:.1f} are free"
    if largest:
        return f"{what}, {room}: set runtime.micro_batch_size={largest}"
    smallest = min(map(int, cost.answer["peaks"]))
    least = cost.answer["peaks"][str(smallest)]["total"] / 1e9
    return f"{what}, {room}; even micro-batch {smallest} takes {least:.1f} GB: take more GPUs, or larger ones{_less(training.runtime)}"


def _less(runtime: Runtime) -> str:
    """What would take less memory and is not set."""
    options = {
        "activation_checkpointing=full": runtime.activation_checkpointing == "full",
        "reshard_after_forward=true": runtime.reshard_after_forward,
    }
    unset = [f"runtime.{option}" for option, is_set in options.items() if not is_set]
    return f", or set {' and '.join(unset)}" if unset else ""
