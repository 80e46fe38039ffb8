"""Recomputed blocks, kept and dropped weights, copies of the model: what they may change, and what not."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from model.steel import SteelConfig
from model.steel.attention import Documents
from model.steel.modeling import SteelModel
from model.steel.soft_moe import SteelFFN
from model.training import parallel, sharding
from model.training.config import ConfigError, ParallelConfig, unshardable
from model.training.run import STOPPED
from tests.support import engine_helpers as tiny
from tests.support.families import MODELS
from tests.support.ranks import COUNTS, trained

LAYERS = 3
STEEL = {**tiny.MODEL, "num_hidden_layers": LAYERS, "merge_segment": 4}
GEOMETRIES = {
    **{ffn: {**STEEL, "ffn": ffn} for ffn in ("token", "prefix", "merge", "dense")},
    "qwen2": {**MODELS["qwen2"], "num_hidden_layers": LAYERS},
}
MICRO_STEPS, STEPS = 4, 4


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    return {"files": [tiny.shard(tmp_path_factory.mktemp("shards") / "a.arrow", 40)]}


def same(left: Path, right: Path) -> None:
    """The same lines and the same weights, to the bit."""
    assert tiny.metrics(left) == tiny.metrics(right)
    ours, theirs = tiny.weights(left), tiny.weights(right)
    assert ours.keys() == theirs.keys()
    for name, weight in ours.items():
        assert np.array_equal(weight, theirs[name]), name


@pytest.mark.parametrize("name", GEOMETRIES)
def test_one_rank_alone_learns_what_a_sharded_one_does(
    name: str, data: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    """With what a sharded model has saved halfway, too."""
    values = {
        "data": data,
        "model": GEOMETRIES[name],
        "steps": 4,
        "save_every": 2,
        "log_every": 1,
        "micro_batch_size": 2,
    }
    assert tiny.engine(tiny.settings(tmp_path / "whole", **values)) == 0
    with monkeypatch.context() as changed:
        changed.setattr(parallel, "whole", lambda mesh, dtype: False)
        assert tiny.engine(tiny.settings(tmp_path / "sharded", **values)) == 0
        assert tiny.engine(tiny.settings(tmp_path / "resumed", **values), tiny.StopAt(2)) == STOPPED
    assert tiny.engine(tiny.settings(tmp_path / "resumed", **values)) == 0
    for each in ("sharded", "resumed"):
        same(tmp_path / "whole", tmp_path / each)


@pytest.mark.parametrize("name", GEOMETRIES)
def test_recomputing_changes_no_bit(name: str, data: dict[str, Any], tmp_path: Path):
    for setting in ("none", "selective", "full"):
        values = tiny.settings(
            tmp_path / setting, data=data, model=GEOMETRIES[name], steps=2, log_every=1,
            activation_checkpointing=setting, micro_batch_size=2,
        )  # fmt: skip
        assert tiny.engine(values) == 0
    same(tmp_path / "none", tmp_path / "selective")
    same(tmp_path / "none", tmp_path / "full")


@pytest.mark.parametrize(("setting", "again"), [("none", 0), ("selective", 1), ("full", 3)])
def test_so_many_blocks_are_computed_twice(
    setting: str, again: int, data: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    calls = []
    forward = SteelFFN.forward
    monkeypatch.setattr(SteelFFN, "forward", lambda self, *args: calls.append(1) or forward(self, *args))
    values = tiny.settings(
        tmp_path, data=data, model=STEEL, steps=1, activation_checkpointing=setting, micro_batch_size=1
    )
    assert tiny.engine(values) == 0
    assert len(calls) == MICRO_STEPS * (LAYERS + again)


def test_how_memory_is_saved_may_change_on_a_resume(data: dict[str, Any], tmp_path: Path):
    values = tiny.settings(tmp_path / "changed", data=data, model=STEEL)
    assert tiny.engine(values, tiny.StopAt(3)) == 75
    options = {"activation_checkpointing": "full", "reshard_after_forward": True, "expandable_segments": True}
    assert tiny.engine({**values, **options}) == 0
    assert tiny.engine(tiny.settings(tmp_path / "plain", data=data, model=STEEL)) == 0
    same(tmp_path / "changed", tmp_path / "plain")


def test_a_recomputed_block_stays_one_graph():
    body = SteelModel(SteelConfig(**STEEL))
    index = torch.arange(32).div(20, rounding_mode="floor").expand(2, -1)
    mask = Documents.of(index, torch.float32, "sdpa", chunked=False)
    rope = body.rope(torch.arange(32).expand(2, -1))
    block = body.layers[0]
    x = torch.randn(2, 32, 32, requires_grad=True)
    (expected, _) = block(x, mask, rope)
    block.forward = sharding.twice(block.forward)
    torch._dynamo.reset()
    block.compile(backend="aot_eager", fullgraph=True)
    (found, _) = block(x, mask, rope)
    found.sum().backward()
    assert torch.allclose(found, expected, atol=1e-6)
    assert x.grad is not None


# --------------------------------------------------------------------------------- several ranks
def plan(folder: Path, data: dict[str, Any], ranks: int, **more: Any) -> dict[str, Any]:
    values = {
        "data": data, "model": STEEL, "batch_size": MICRO_STEPS * ranks, "micro_batch_size": 1, "steps": STEPS,
        "log_every": 1, "save_every": 2,
    }  # fmt: skip
    return {"values": tiny.settings(folder, **{**values, **more})}


@pytest.fixture(scope="module")
def two(data: dict[str, Any], tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("two")
    options: dict[str, dict[str, Any]] = {
        "none": {},
        "selective": {"activation_checkpointing": "selective"},
        "full": {"activation_checkpointing": "full"},
        "resharded": {"reshard_after_forward": True},
        "all": {"reshard_after_forward": True, "activation_checkpointing": "full"},
        "qwen2": {"model": GEOMETRIES["qwen2"]},
        "qwen2-full": {"model": GEOMETRIES["qwen2"], "activation_checkpointing": "full"},
    }
    trained(folder, 2, [plan(folder / name, data, 2, **more) for name, more in options.items()])
    return folder


@pytest.mark.parametrize("name", ["selective", "full", "resharded", "all"])
def test_two_ranks_compute_the_same_bits(two: Path, name: str):
    same(two / "none", two / name)


def test_so_does_another_model(two: Path):
    same(two / "qwen2", two / "qwen2-full")


@pytest.mark.parametrize(
    ("name", "gathers"),
    [
        ("none", LAYERS + 1),
        ("full", LAYERS + 1),
        ("resharded", MICRO_STEPS * (2 * LAYERS + 1)),
        ("all", MICRO_STEPS * (2 * LAYERS + 1)),
    ],
)
def test_weights_are_gathered_once_a_step_unless_they_are_dropped(two: Path, name: str, gathers: int):
    counted = json.loads((two / name / COUNTS).read_text())
    assert counted["_allgather_base_"] == STEPS * gathers
    assert counted["_reduce_scatter_base_"] == STEPS * (LAYERS + 1)


@pytest.fixture(scope="module")
def four(data: dict[str, Any], tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("four")
    copies = {"parallel": {"replicate": 2, "shard": 2}}
    runs = [
        plan(folder / "fsdp", data, 4),
        plan(folder / "hsdp", data, 4, **copies),
        {**plan(folder / "stopped", data, 4, **copies), "stop": 3},
        plan(folder / "stopped", data, 4, **copies),
        {**plan(folder / "changed", data, 4, **copies), "stop": 3},
        plan(folder / "changed", data, 4),
        plan(folder / "muon", data, 4, optim={"name": "muon", "lr": 3e-3, "warmup_steps": 2}),
        plan(folder / "muon-hsdp", data, 4, optim={"name": "muon", "lr": 3e-3, "warmup_steps": 2}, **copies),
    ]
    trained(folder, 4, runs)
    return folder


def close(left: Path, right: Path, rtol: float, atol: float) -> None:
    """The same to rounding: losses and gradient norms, and nearly all weights."""
    for ours, theirs in zip(tiny.steps(left), tiny.steps(right), strict=True):
        assert ours["loss"] == pytest.approx(theirs["loss"], rel=rtol)
        assert ours["grad_norm"] == pytest.approx(theirs["grad_norm"], rel=10 * rtol)
    ours, theirs = tiny.weights(left), tiny.weights(right)
    for name, weight in ours.items():
        apart = ~np.isclose(weight, theirs[name], rtol=rtol, atol=atol)
        assert apart.sum() <= max(1, 0.005 * weight.size), name  # a bias has few numbers


@pytest.mark.slow
def test_two_copies_of_two_shards_are_four_shards_but_for_the_order_of_sums(four: Path):
    close(four / "hsdp", four / "fsdp", 1e-5, 1e-5)
    close(four / "muon-hsdp", four / "muon", 1e-4, 1e-4)


@pytest.mark.slow
def test_copies_go_on_where_they_were_stopped(four: Path):
    same(four / "stopped", four / "hsdp")
    close(four / "changed", four / "hsdp", 1e-5, 1e-5)


@pytest.mark.parametrize(
    ("parallel", "ranks", "words"),
    [
        ({"replicate": 2}, 3, "parallel.replicate 2 does not divide 3 ranks"),
        ({"replicate": 2, "shard": 2}, 8, "2 copies of 2 shards are not 8 ranks"),
        ({"shard": 4}, 8, "1 copies of 4 shards are not 8 ranks"),
    ],
)
def test_copies_that_the_ranks_cannot_make_are_refused(parallel: dict[str, int], ranks: int, words: str):
    assert words in unshardable(ParallelConfig(**parallel), ranks)
    with pytest.raises(ConfigError, match=words.split(" ", 1)[1]):
        sharding.make_mesh("cpu", ranks, ParallelConfig(**parallel))


@pytest.mark.parametrize(
    ("parallel", "ranks"), [({}, 1), ({"replicate": 2}, 8), ({"replicate": 2, "shard": 4}, 8)]
)
def test_copies_that_the_ranks_can_make_are_not(parallel: dict[str, int], ranks: int):
    assert unshardable(ParallelConfig(**parallel), ranks) == ""


# --------------------------------------------------------------------------------------- FP8
def test_fp8_without_torchao_or_a_gpu_is_one_line(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(sharding.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(
        ConfigError, match="float8: rowwise needs torchao, which is not installed. Choose off."
    ):
        sharding._use_float8([], "rowwise", "cuda")
    monkeypatch.setattr(sharding.importlib.util, "find_spec", lambda name: object())
    with pytest.raises(ConfigError, match="float8: rowwise needs a GPU with FP8"):
        sharding._use_float8([], "rowwise", "cpu")
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda: (8, 0))
    with pytest.raises(ConfigError, match="float8: tensorwise needs a GPU with FP8"):
        sharding._use_float8([], "tensorwise", "cuda")


def test_fp8_asks_torchao_for_the_linear_layers_that_it_can_change(monkeypatch: pytest.MonkeyPatch):
    seen = []
    library: Any = ModuleType("torchao.float8")
    library.Float8LinearConfig = SimpleNamespace(from_recipe_name=lambda name: f"recipe {name}")
    library.convert_to_float8_training = lambda block, *, config, module_filter_fn: seen.append(
        (config, [name for name, module in block.named_modules() if module_filter_fn(module, name)])
    )
    monkeypatch.setitem(sys.modules, "torchao", ModuleType("torchao"))
    monkeypatch.setitem(sys.modules, "torchao.float8", library)
    monkeypatch.setattr(sharding.importlib.util, "find_spec", lambda name: object())
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda: (9, 0))
    block = nn.ModuleDict({"wide": nn.Linear(32, 16), "odd": nn.Linear(32, 15), "norm": nn.LayerNorm(16)})
    sharding._use_float8([block], "rowwise", "cuda")
    assert seen == [("recipe rowwise", ["wide"])]
