"""Where and how a model runs: processes, device, precision, compile, sharding, and its first weights.

Order: build on the meta device, prepare and shard it there (sharding.py), and only then make the weights. Weights are made one tensor at a time on the CPU, of which a rank keeps its shard; a fresh tensor
depends on (seed, its name) alone. So results do not depend on the number of ranks beyond rounding, and no process ever
holds the whole model twice.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
from collections.abc import Callable
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path

import torch
import torch.distributed as dist
from pyarrow.compute import list_value_length
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.tensor import DTensor, distribute_tensor
from transformers import PreTrainedConfig

from model.families import FamilyError, attention, configuration, counts, head, network, probe
from model.place import ModelError, open_weights
from model.steel.attention import KERNELS
from model.steel.attention_choice import choose
from model.steel.configuration import SteelConfig
from model.steel.modeling import SteelForCausalLM, initial_distribution
from model.steel.ops import PLAIN
from model.training.config import ConfigError, TrainConfig, unshardable
from model.training.fused import operators
from model.training.loader import DataError
from model.training.objectives import FamilyScorer, Scorer
from model.training.pairs import PAIRS, read_table
from model.training.prompts import PROMPTS
from model.training.rendezvous import meet
from model.training.sharding import make_mesh, prepare, reshard, whole
from model.training.shards import ShardError, ShardFile
from model.training.wide_products import cpu_has_bf16

log = logging.getLogger("steel.training")


@dataclass(frozen=True)
class World:
    """This process among the others."""

    rank: int
    size: int
    device: torch.device
    mesh: DeviceMesh
    dtype: torch.dtype
    """What products are computed in; weights and optimizer stay FP32."""
    store: dist.Store | None = None
    """What the ranks of this attempt share beside collectives; None for a process that is alone."""
    sharded: bool = True
    """False: the model stays as it is (sharding.whole). A CPU that stands for a GPU (memory.py) shards as the GPU would."""

    @property
    def copies(self) -> int:
        """Of the model: more than one with HSDP."""
        return self.mesh.size(0) if self.mesh.ndim > 1 else 1

    @property
    def first(self) -> bool:
        return self.rank == 0

    def sum(self, *values: float) -> list[float]:
        """The sums over all ranks, the same everywhere."""
        total = torch.tensor(values, dtype=torch.float64, device=self.device)
        dist.all_reduce(total)
        return total.tolist()


def start(config: TrainConfig) -> World:
    """Join the other processes (torchrun's environment; alone without it)."""
    alone = {"RANK": 0, "WORLD_SIZE": 1, "LOCAL_RANK": 0}
    # the environment stays as it is: what runs later in this process is no rank of anything
    rank, size, local = (int(os.environ.get(name, value)) for name, value in alone.items())
    if dist.is_initialized():
        rank, size = dist.get_rank(), dist.get_world_size()
    if reason := unshardable(config.parallel, size):
        raise ConfigError(reason)
    kind = config.device
    if kind == "auto":
        kind = "cuda" if torch.cuda.is_available() else "cpu"
    if kind == "cuda" and not torch.cuda.is_available():
        raise ConfigError("device: cuda is asked for, but torch sees no GPU. Choose auto or cpu.")
    device = torch.device("cpu")
    if kind == "cuda":
        device = torch.device("cuda", local)
        torch.cuda.set_device(device)
    store = None
    if not dist.is_initialized():
        backend = "cuda:nccl,cpu:gloo" if kind == "cuda" else "gloo"
        if "MASTER_ADDR" in os.environ:
            store = meet()
        timeout = (
            timedelta(seconds=config.backend_timeout_seconds) if config.backend_timeout_seconds else None
        )
        dist.init_process_group(
            backend, store=store or dist.HashStore(), rank=rank, world_size=size, timeout=timeout
        )
    mesh = make_mesh(kind, size, config.parallel)
    dtype = compute_dtype(config.precision, kind)
    return World(rank, size, device, mesh, dtype, store, sharded=not whole(mesh, dtype))


def compute_dtype(precision: str, device: str) -> torch.dtype:
    """bf16 or fp32; `auto` takes bf16 where the device has instructions for it."""
    if precision == "auto":
        native = torch.cuda.is_bf16_supported() if device == "cuda" else cpu_has_bf16()
        precision = "bf16" if native else "fp32"
    return torch.bfloat16 if precision == "bf16" else torch.float32


def build(config: TrainConfig, world: World) -> Scorer:
    """The sharded model with its first weights."""
    folder = None if config.init_from is None else Path(config.init_from)
    geometry = read_geometry(config, folder)
    if not isinstance(geometry, SteelConfig):
        return build_family(config, world, geometry, folder)
    ops = operators(config.kernels, world.device)
    with torch.device("meta"):
        scorer = Scorer(SteelForCausalLM(geometry), fused=ops is not PLAIN)
    scorer.lm.set_ops(ops)
    how = chosen(config, world)
    scorer.lm.set_attn_implementation(how)
    scorer.shares_prompts = how not in KERNELS and not geometry.ffn_needs_layout
    scorer.lm.model.chunk_documents = chunks(config, world)
    prepare(scorer, config, world.mesh, world.dtype, sharded=world.sharded)
    scorer.to_empty(device=world.device)
    scorer.lm.tie_weights()
    fill(scorer.lm, world, from_folder(folder) if folder else from_seed(geometry, scorer.lm, config.seed))
    return scorer


def build_family(
    config: TrainConfig, world: World, geometry: PreTrainedConfig, folder: Path | None
) -> FamilyScorer:
    """The same for another model of transformers, held against its own forward before the first step."""
    how = chosen(config, world)
    lm = network.build(geometry)
    limited = probe.shortest_window(lm) is not None or attention.plain_only(lm)
    if config.attention == "auto" and how != "eager" and limited:
        how = "sdpa"
    fused = operators(config.kernels, world.device) is not PLAIN and head.soft_cap(lm) is None
    tensor_of = network.from_folder(folder, lm) if folder else network.from_seed(lm, config.seed)
    flops = counts.flops_per_token(lm)(1)
    scorer = FamilyScorer(lm, world.dtype, how, chunks(config, world), fused=fused)
    parameters = sum(p.numel() for p in lm.parameters())
    log.info("%s: %d parameters, %.3g FLOPs a trained token", geometry.model_type, parameters, flops)
    prepare(scorer, config, world.mesh, world.dtype, sharded=world.sharded)
    network.materialise(scorer, world.device)
    lm.tie_weights()
    fill(lm, world, tensor_of)
    scorer.eval()
    with torch.no_grad():
        scorer.shares_prompts = scorer(None)
    if not scorer.shares_prompts and how not in KERNELS and config.objective in ("dpo", "logprobs", "grpo"):
        log.warning(
            "%s does not compute replies behind a shared prompt exactly: each gets its own",
            geometry.model_type,
        )
    scorer.train()
    reshard(scorer)
    return scorer


def chosen(config: TrainConfig, world: World) -> str:
    """What computes the attention of this run."""
    try:
        return choose(config.attention, world.device, world.dtype)
    except (ValueError, ImportError) as error:
        raise ConfigError(str(error)) from None


def chunks(config: TrainConfig, world: World) -> bool:
    """Whether attention goes by chunks of queries."""
    return world.device.type == "cpu" and not config.compile


def read_geometry(config: TrainConfig, folder: Path | None) -> SteelConfig | PreTrainedConfig:
    """The model's configuration in this run; what cannot be built is a ConfigError."""
    try:
        if folder is not None:
            if not (folder / "config.json").is_file():
                raise ConfigError(f"init_from: {folder} holds no model (config.json is missing)")
            if _model_type(folder) != SteelConfig.model_type:
                return configuration.from_folder(folder)
            geometry = SteelConfig.from_pretrained(folder)
            geometry.refuse_leakage()
            return geometry
        assert config.model is not None  # TrainConfig has seen to it
        if config.model.get("model_type", SteelConfig.model_type) != SteelConfig.model_type:
            return configuration.from_fields(config.model)
        # to_dict leaves out what an older folder has not
        known = {*SteelConfig().to_dict(), *SteelConfig.__annotations__}
        for key in config.model:
            if key not in known:
                raise ConfigError(f"unknown key model.{key}: SteelConfig has no such field")
        geometry = SteelConfig(**config.model)
        geometry.refuse_leakage()
        return geometry
    except (ConfigError, FamilyError):
        raise
    except Exception as error:  # of transformers' fields, of any kind
        where = "model" if folder is None else f"init_from: {folder}"
        raise ConfigError(f"{where}: {configuration.reason_of(error)}") from error


def _model_type(folder: Path) -> str:
    file = folder / "config.json"
    try:
        values = json.loads(file.read_text("utf-8"))
    except (OSError, ValueError) as error:
        raise ConfigError(f"init_from: {file} cannot be read: {error}") from error
    if not isinstance(values, dict):
        raise ConfigError(f"init_from: {file} must hold an object of named values")
    return str(values.get("model_type"))


def refuse_longer(config: TrainConfig, world: World) -> None:
    """ConfigError where a text of the data is longer than the positions of the model, which would end the run at some
    step. Each rank looks at its share of the files. Steel's own network has no such limit."""
    geometry = read_geometry(config, None if config.init_from is None else Path(config.init_from))
    most = getattr(geometry, "max_position_embeddings", None)
    if isinstance(geometry, SteelConfig) or not isinstance(most, int):
        return
    files = [file.path for file in (*config.data.files, *config.data.val_files)]
    for path in files[world.rank :: world.size]:
        if (longest := _longest(config, path)) > most:
            raise ConfigError(
                f"{path} holds texts of up to {longest} tokens; {geometry.model_type} has {most} positions"
            )


def _longest(config: TrainConfig, path: str) -> int:
    """Tokens of the longest text that the model is given of a file."""
    if config.objective in ("pretrain", "sft"):
        try:
            return ShardFile(Path(path)).block_size
        except ShardError as error:
            raise DataError(str(error)) from error
    if config.objective == "grpo":
        prompts = list_value_length(read_table(path, PROMPTS)["prompt"]).to_numpy()
        return int(prompts.max(initial=0)) + config.rl.max_new_tokens
    pairs = read_table(path, PAIRS)
    prompt, *replies = (
        list_value_length(pairs[name]).to_numpy() for name in ("prompt", "chosen", "rejected")
    )
    return max(int((prompt + reply).max(initial=0)) for reply in replies)


def fill(model: nn.Module, world: World, tensor_of: Callable[[str], Tensor]) -> None:
    """Give every parameter its shard of `tensor_of(name)`, an FP32 tensor on the CPU; and what is kept beside them."""
    with torch.no_grad():
        for name, parameter in [*model.named_parameters(), *network.kept(model).items()]:
            full = tensor_of(name)
            if full.shape != parameter.shape:
                raise ConfigError(
                    f"{name} has the shape {tuple(full.shape)}, the model needs {tuple(parameter.shape)}"
                )
            if isinstance(parameter, DTensor):
                full = distribute_tensor(
                    full.to(world.device), parameter.device_mesh, parameter.placements, src_data_rank=None
                )
            parameter.copy_(full)


def from_seed(geometry: SteelConfig, model: nn.Module, seed: int) -> Callable[[str], Tensor]:
    """Fresh weights: each tensor has a generator of its own, seeded by (seed, name)."""
    owners = {
        f"{prefix}.{name}": (type(module).__name__, name, parameter.shape)
        for prefix, module in model.named_modules()
        for name, parameter in module.named_parameters(recurse=False)
    }

    def tensor_of(full_name: str) -> Tensor:
        owner, name, shape = owners[full_name]
        mean, std = initial_distribution(geometry, owner.removeprefix("FSDP"), name)
        if not std:
            return torch.full(shape, mean)
        digest = hashlib.sha256(f"{seed}:{full_name}".encode()).digest()
        generator = torch.Generator().manual_seed(int.from_bytes(digest[:7], "little"))
        return torch.empty(shape).normal_(mean, std, generator=generator)

    return tensor_of


def from_folder(folder: Path) -> Callable[[str], Tensor]:
    """Weights of an export folder, read tensor by tensor."""
    try:
        place = open_weights(folder)
    except ModelError as error:
        raise ConfigError(f"init_from: {error}") from error

    def tensor_of(name: str) -> Tensor:
        if name not in place:
            raise ConfigError(f"init_from: {folder} has no weights for {name}")
        return place[name].get_tensor(name).float()

    return tensor_of
