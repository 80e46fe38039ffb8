"""How a run is executed: paths, devices, process counts. None of it enters a fingerprint."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from pydantic import Field

from tasks.settings.section import Address, Section


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


class Runtime(Section):
    """How the run is executed. Nothing here may change what an artifact means."""

    artifacts: Path = Path("artifacts")
    """Folder of all results."""
    models: dict[str, Path] = {}
    """Name -> folder or GGUF file of each model that the flow steel-compare asks. The content of the files counts, not
    their path."""
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
    attention: Literal["auto", "flash_attention_4", "flash_attention_2", "varlen", "sdpa", "eager"] = "auto"
    """Implementation of attention in training. `auto`: the best that the machine has. A missing one is refused."""
    kernels: Literal["auto", "off", "on"] = "auto"
    """Use the fused operators of kernels/. `auto`: on CUDA where triton is installed."""
    parallel_trainings: int = Field(1, gt=0)
    """Number of SFT variants that are trained side by side."""
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
    max_restarts: int = Field(0, ge=0)
    """Number of times that torchrun itself restarts a training after a rank died."""
    grace_seconds: float = Field(120.0, gt=0)
    """Seconds that a training has to save when it is told to stop: longer than two saves take."""
    watchdog_seconds: float = Field(1800.0, ge=0)
    """Seconds without a step after which the ranks log their stacks, end, and are started again. 0: never."""
    backend_timeout_seconds: float | None = Field(None, gt=0)
    """Seconds that a collective waits for a rank. Not set: torch's own (gloo 30 minutes, NCCL 10)."""
    allow_changed: list[str] = []
    """Fields of a training, such as `optim.lr`, that may differ from those of the checkpoint that it goes on from.
    Any other field that defines the result and differs is refused."""
    keep_every: int = Field(0, ge=0)
    """Every so many checkpoints one is kept for good, beside the newest. 0: none."""
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
