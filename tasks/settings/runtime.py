"""How a run is executed: paths, devices, process counts. None of it enters a fingerprint."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field, model_validator

from tasks.settings.paths import ROOT
from tasks.settings.section import Address, Section

Step = Annotated[int, Field(gt=0)]
"""Of a training, from 1."""
LONGEST = 1e9
"""Seconds, 31 years: clocks of C have an end."""
RUNS_MODEL = re.compile(r"([\w.-]+):(base|sft|dpo|rl)")
"""A model of a profile's last run, instead of a path."""


class Folders(Section):
    """Local data, for sources with `hub: folder`."""

    sources: Path | None = None
    """Folder of the pre-training data."""
    posttrain: Path | None = None
    """Folder of the instruction and preference data."""
    tokenizer: Path | None = None
    """Folder of the tokenizer (tokenizer.json), for tokenize.tokenizer `folder`."""
    models: Path | None = None
    """Folder of <lang>.sp.model and <lang>.arpa.bin, for clean.assets.models `folder`."""
    benchmarks: Path | None = None
    """Folder of the benchmarks."""


class Endpoints(Section):
    """Addresses of the hubs. Mirrors are tried in order; the token goes to each that is asked."""

    huggingface: list[Address] = Field(["https://huggingface.co"], min_length=1)
    """Addresses of Hugging Face and its mirrors, tried in this order."""
    modelscope: list[Address] = Field(["https://modelscope.cn"], min_length=1)
    """Addresses of ModelScope and its mirrors, tried in this order."""


class Parallel(Section):
    """How the ranks of a training share the model. model.training.config.ParallelConfig has the same fields."""

    replicate: int = Field(1, gt=0)
    """Number of copies of the model (HSDP). The ranks of a copy gather weights among themselves; the gradients are summed
    over all copies."""
    shard: int | None = Field(None, gt=0)
    """Number of ranks that a copy is cut into. Not set: all ranks divided by the copies."""


class Runtime(Section):
    """How the run is executed. Nothing here may change what an artifact means."""

    artifacts: Path = Path("artifacts")
    """Folder of all results."""
    models: dict[str, Path] = {}
    """Name -> folder or GGUF file of each model that the flow steel-compare asks, or one of a profile's last run: demo:base,
    demo:sft, demo:dpo, demo:rl. The content of the files counts, not their path."""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    """Device of training and scoring. `auto`: CUDA where there is a GPU, else the CPU."""
    nproc: int | None = Field(None, gt=0)
    """Number of training ranks on this node. Not set: one per GPU, or 2 on a CPU."""
    micro_batch_size: int | None = Field(None, gt=0)
    """Number of blocks per rank and micro-step. Not set: batch_size / ranks."""
    threads_per_rank: int = Field(1, gt=0)
    """Number of CPU threads of each training rank."""
    compile: bool = False
    """Compile each layer with torch.compile."""
    activation_checkpointing: Literal["none", "selective", "full"] = "none"
    """What a training computes a second time in the backward pass to save memory. `selective`: every second block;
    `full`: every block. The result stays the same."""
    reshard_after_forward: bool = False
    """Drop a block's gathered weights after its forward pass and gather them again in the backward pass. Saves memory,
    costs communication."""
    parallel: Parallel = Parallel()
    """Copies and shards of the model."""
    expandable_segments: bool = False
    """Let CUDA's allocator grow its segments, so that less memory is lost to fragmentation. No effect on a CPU."""
    deterministic: bool = False
    """Refuse operations that have no deterministic form. Not set: such operations are used with a warning."""
    attention: Literal["auto", "flash_attention_4", "flash_attention_2", "varlen", "sdpa", "eager"] = "auto"
    """Implementation of attention in training. `auto`: the best that the machine has. A missing one is refused."""
    kernels: Literal["auto", "off", "on"] = "auto"
    """Use the fused operators of kernels/. `auto`: on CUDA where triton is installed."""
    parallel_trainings: int = Field(1, gt=0)
    """Number of SFT variants that are trained side by side, each on GPUs of its own."""
    sft_nproc: int | None = Field(None, gt=0)
    """Number of ranks of an SFT, DPO or ablation training. Not set: as nproc."""
    data_workers: int = Field(2, gt=0)
    """Number of processes for converting, cleaning, tokenizing and scoring."""
    engine: Literal["local", "ray"] = "local"
    """Where partitions of convert, clean and tokenize are worked on. `local`: the data_workers processes; `ray`:
    Ray's workers."""
    ray_address: str | None = None
    """For engine `ray`: address of a cluster that shares the artifacts' file system. Not set: one is started here."""
    keep_checkpoints: int = Field(2, gt=0)
    """Number of newest checkpoints that are kept. Those of pre-training stay in its artifact, to continue from."""
    verify_shards: Literal["start", "off"] = "start"
    """`start`: hash every shard before the first step of a training, each rank its share; `off`: trust them."""
    launcher: Literal["auto", "fork", "torchrun"] = "auto"
    """How the ranks of a training are started. `fork`: from a process that has loaded the engine (CPUs under Linux);
    `auto`: so where it can be, else by torchrun."""
    max_restarts: int = Field(0, ge=0)
    """Number of times that a training itself starts its ranks again after one died."""
    grace_seconds: float = Field(120.0, gt=0)
    """Seconds that a training has to save when it is told to stop: longer than two saves take."""
    watchdog_seconds: float = Field(1800.0, ge=0, le=LONGEST)
    """Seconds without a step after which the ranks log their stacks, end, and are started again. 0: never."""
    backend_timeout_seconds: float | None = Field(None, gt=0, le=LONGEST)
    """Seconds that a collective waits for a rank. Not set: torch's own (gloo 30 minutes, NCCL 10)."""
    detail_every: int = Field(50, ge=0)
    """Number of steps between two lines of the metrics that cost more: norms by group, loss by source, the experts' use,
    waiting ranks, memory of all ranks. 0: none."""
    peak_tflops: float | None = Field(None, gt=0)
    """Peak of one device in 1e12 operations a second, for the share of it that a training reaches (mfu). Not set: BF16
    by a table of known GPUs, and no mfu on a CPU."""
    profile_steps: list[Step] | None = Field(None, min_length=2, max_length=2)
    """First and last step, from 1, of which torch.profiler writes a trace into logs/profile of the training's folder.
    Not set: none."""
    allow_changed: list[str] = []
    """Fields of a training, such as `optim.lr`, that may differ from those of the checkpoint that it goes on from.
    Any other field that defines the result and differs is refused."""
    keep_every: int = Field(0, ge=0)
    """Every so many checkpoints one is kept for good, beside the newest. 0: none."""
    export_every: int = Field(0, ge=0)
    """Every so many steps of a training its model is exported to exports/step-…, while the training goes on. 0: at the
    end only."""
    export_steps: list[Step] = Field([])
    """Steps at which a training exports its model, too."""
    encoder: Literal["auto", "fastokens", "tokenizers"] = "auto"
    """Library that turns text into token ids; the result is the same. `auto`: fastokens where it agrees with
    tokenizers."""
    verify: Literal["size", "full"] = "size"
    """How an artifact is checked before it is reused. `size`: the sizes of its files; `full`: sha256 of every file."""
    folders: Folders = Folders()
    """Folders of local data."""
    endpoints: Endpoints = Endpoints()
    """Addresses of the hubs."""
    downloads: int = Field(4, gt=0)
    """Number of files of one source that are downloaded side by side."""

    @model_validator(mode="after")
    def _first_before_last(self) -> Runtime:
        if self.profile_steps and self.profile_steps[0] > self.profile_steps[1]:
            raise ValueError(f"profile_steps must be the first and the last step: {self.profile_steps}")
        return self

    def model(self, name: str) -> Path:
        """Where the model of that name in `models` is."""
        asked = self.models[name]
        if found := RUNS_MODEL.fullmatch(str(asked)):
            return ROOT / self.artifacts / "latest" / found[1] / "models" / found[2]
        return asked
