"""What is done to a built model before it trains: FP8, activation checkpointing, torch.compile, FSDP2; in this order.

A block computes its forward pass a second time *inside* what is compiled and sharded: FSDP2's hooks stay outside, so a
second computation gathers nothing.

    activation_checkpointing   none: keep what the backward pass needs · selective: keep it of every second block only, as
                               torchtitan does with selective_ac_option 2 · full: keep a block's input alone
    reshard_after_forward      false: gathered weights stay until the backward pass has used them (ZeRO-2), and from one
                               micro-step to the next · true: they go after each pass (ZeRO-3)
    parallel                   replicate 1: all ranks share one copy (FSDP) · more: so many copies (HSDP)

Weights are gathered by a block, and by the root: embedding, norm and head. With blocks + 1 units an optimizer step
gathers units times without resharding, 2 * micro-steps * blocks + micro-steps times with it.
"""

from __future__ import annotations

import importlib
import importlib.util
from collections.abc import Callable
from typing import Any

import torch
from torch import nn
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.fsdp import FSDPModule, MixedPrecisionPolicy, fully_shard
from torch.utils.checkpoint import checkpoint

from model.families import network
from model.training.config import ConfigError, ParallelConfig, TrainConfig, unshardable
from model.training.objectives import Scorer

FP8_CAPABILITY = (8, 9)
"""Of the first GPUs with FP8 products (Ada, Hopper)."""


def make_mesh(kind: str, size: int, parallel: ParallelConfig) -> DeviceMesh:
    """The ranks of one kind of device: one dimension (FSDP) or copies x shards (HSDP), neighbours in one copy."""
    if reason := unshardable(parallel, size):
        raise ConfigError(reason)
    if parallel.replicate == 1:
        return init_device_mesh(kind, (size,))
    shape = (parallel.replicate, size // parallel.replicate)
    return init_device_mesh(kind, shape, mesh_dim_names=("replicate", "shard"))


def prepare(
    scorer: Scorer, config: TrainConfig, mesh: DeviceMesh, dtype: torch.dtype, *, sharded: bool = True
) -> None:
    """Give the model, on the meta device, what the configuration asks for; `dtype`: of products."""
    blocks = network.blocks(scorer.lm)
    if config.float8 != "off":
        _use_float8(blocks, config.float8, mesh.device_type)
    for block in _recomputed(blocks, config.activation_checkpointing):
        block.forward = twice(block.forward)  # type: ignore[method-assign]
    for block in blocks if config.compile else []:
        block.compile(fullgraph=getattr(scorer.lm.config, "ffn_keeps_shapes", False))
    if not sharded:
        return
    # inputs are not cast: RoPE's tables stay FP32
    policy = MixedPrecisionPolicy(param_dtype=dtype, reduce_dtype=torch.float32, cast_forward_inputs=False)
    for block in blocks:
        fully_shard(block, mesh=mesh, mp_policy=policy, reshard_after_forward=config.reshard_after_forward)
    fully_shard(scorer, mesh=mesh, mp_policy=policy, reshard_after_forward=False)


def whole(mesh: DeviceMesh, dtype: torch.dtype) -> bool:
    """Whether the model stays as it is: one CPU rank whose products are in the weights' own precision has nothing to
    gather or to sum, and FSDP2 would copy all weights and gradients once a step. Same numbers, no copies."""
    return mesh.size() == 1 and mesh.device_type == "cpu" and dtype is torch.float32


def begin_micro_step(scorer: Scorer, config: TrainConfig, *, last: bool) -> None:
    """Gradients are summed over the ranks in the last micro-step; until then gathered weights stay, unless blocks give
    them back after the forward pass, too."""
    if not isinstance(scorer, FSDPModule):
        return
    scorer.set_requires_gradient_sync(last)
    scorer.set_reshard_after_backward(last or config.reshard_after_forward)


def twice(forward: Callable[..., Any]) -> Callable[..., Any]:
    """The same function, of which only the inputs are kept; the backward pass computes it again.

    A function of this file, not a partial of torch's: torch.compile does not look into frames of its own library.
    """

    def recomputed(*args: Any, **kwargs: Any) -> Any:
        # no dropout, so no random state to keep
        return checkpoint(forward, *args, use_reentrant=False, preserve_rng_state=False, **kwargs)

    return recomputed


def reshard(scorer: Scorer) -> None:
    """Drop the gathered weights. The backward pass does it by itself; after forwards without one it must be said, or
    the optimizer's next update goes unseen for a step (a test holds resumed runs against uninterrupted ones)."""
    for module in scorer.modules():
        if isinstance(module, FSDPModule):
            module.reshard()


def _recomputed(blocks: list[nn.Module], setting: str) -> list[nn.Module]:
    return {"none": [], "selective": blocks[1::2], "full": blocks}[setting]


def _use_float8(blocks: list[nn.Module], recipe: str, device: str) -> None:
    """Change the linear layers of blocks to torchao's. ConfigError where that cannot be."""
    if importlib.util.find_spec("torchao") is None:
        raise ConfigError(f"float8: {recipe} needs torchao, which is not installed. Choose off.")
    if device != "cuda" or torch.cuda.get_device_capability() < FP8_CAPABILITY:
        raise ConfigError(f"float8: {recipe} needs a GPU with FP8 (compute capability 8.9). Choose off.")
    float8: Any = importlib.import_module("torchao.float8")
    settings = float8.Float8LinearConfig.from_recipe_name(recipe)
    for block in blocks:
        float8.convert_to_float8_training(block, config=settings, module_filter_fn=_divides)


def _divides(module: nn.Module, _: str) -> bool:
    """FP8 products need sides that are multiples of 16."""
    return isinstance(module, nn.Linear) and module.in_features % 16 == 0 and module.out_features % 16 == 0
