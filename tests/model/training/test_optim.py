"""AdamW on shards, and Muon: held against torch's own optimizers on whole tensors."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn
from torch.distributed.checkpoint import FileSystemReader
from transformers import AutoConfig, AutoModelForCausalLM

from model.steel import SteelConfig, SteelForCausalLM
from model.training import muon
from model.training.config import ConfigError, OptimConfig
from model.training.optim import make_optimizer, set_rate
from model.training.resume import hold
from tests.support import engine_helpers as tiny
from tests.support.families import MODELS
from tests.support.ranks import trained

MUON = {"name": "muon", "lr": 3e-3, "warmup_steps": 2}


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    return {"files": [tiny.shard(tmp_path_factory.mktemp("shards") / "a.arrow", 40)]}


def steel(**more: Any) -> SteelForCausalLM:
    torch.manual_seed(0)
    return SteelForCausalLM(SteelConfig(**{**tiny.MODEL, **more}))


def with_gradients(lm: nn.Module, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    for parameter in lm.parameters():
        parameter.grad = torch.randn(parameter.shape, generator=generator)


def test_adamw_is_torchs_to_the_bit():
    ours, theirs = steel(), steel()
    optim = OptimConfig(weight_decay=0.1)
    optimizer = make_optimizer(ours, optim)
    names = {id(p): name for name, p in ours.named_parameters()}
    by_name = dict(theirs.named_parameters())
    groups = [
        {"params": [by_name[names[id(p)]] for p in g["params"]], "weight_decay": g["weight_decay"]}
        for g in optimizer.param_groups
    ]
    reference = torch.optim.AdamW(groups, lr=optim.lr, betas=(0.9, 0.95), eps=optim.eps, fused=True)
    for step in range(4):
        with_gradients(ours, step)
        with_gradients(theirs, step)
        for each in (optimizer, reference):
            for group in each.param_groups:
                group["lr"] = 1e-3 / (step + 1)
            each.step()
    for name, parameter in ours.named_parameters():
        assert torch.equal(parameter, by_name[name]), name
        assert torch.equal(
            optimizer.state[parameter]["exp_avg_sq"], reference.state[by_name[name]]["exp_avg_sq"]
        )
        assert optimizer.state[parameter]["step"] == 4


def test_a_checkpoint_has_the_names_that_it_always_had(data: dict[str, Any], tmp_path: Path):
    assert tiny.engine(tiny.settings(tmp_path, data=data), tiny.StopAt(2)) == 75
    saved = FileSystemReader(tmp_path / "checkpoints" / "step-000002").read_metadata().state_dict_metadata
    names = [f"lm.{name}" for name, _ in steel().named_parameters()]
    assert set(saved) == {f"{kind}.{n}" for kind in ("weight", "exp_avg", "exp_avg_sq") for n in names}


@pytest.mark.parametrize("shape", [(3, 24, 16), (2, 16, 24), (1, 8, 8)])
def test_singular_values_come_near_one(shape: tuple[int, int, int]):
    generator = torch.Generator().manual_seed(1)
    values = torch.linalg.svdvals(muon.orthogonal(torch.randn(shape, generator=generator)))
    assert values.min() > 0.3
    assert values.max() < 1.3
    assert values.median() == pytest.approx(0.95, abs=0.2)


def test_muon_is_torchs_on_each_matrix():
    ours = steel(num_experts=3)
    optim = OptimConfig(name="muon", lr=2e-2, weight_decay=0.1, adamw_lr=1e-3)
    optimizer = make_optimizer(ours, optim)
    theirs = copy.deepcopy(ours)
    pieces: dict[str, list[nn.Parameter]] = {}
    for name, parameter in theirs.named_parameters():
        count = 3 if ".experts." in name else 1
        pieces[name] = [nn.Parameter(p.detach().clone()) for p in parameter.chunk(count)]
    moved = {id(p) for p in optimizer.param_groups[2]["params"]}
    names = [name for name, p in ours.named_parameters() if id(p) in moved]
    assert {name.split(".")[-2] for name in names} == {"q_proj", "k_proj", "v_proj", "o_proj", "experts"}
    reference = torch.optim.Muon(
        [p for name in names for p in pieces[name]],
        lr=2e-2, weight_decay=0.1, momentum=0.95, adjust_lr_fn="match_rms_adamw",
    )  # fmt: skip
    set_rate(optimizer, 2e-2)
    assert [g["lr"] for g in optimizer.param_groups] == pytest.approx([1e-3, 1e-3, 2e-2])
    for step in range(3):
        with_gradients(ours, step)
        for name, parameter in ours.named_parameters():
            for piece, grad in zip(pieces[name], parameter.grad.chunk(len(pieces[name])), strict=True):
                piece.grad = grad.clone()
        optimizer.step()
        reference.step()
    for name in names:
        found = dict(ours.named_parameters())[name]
        wanted = torch.cat([p.detach() for p in pieces[name]])
        start = dict(theirs.named_parameters())[name]
        assert (found - wanted).norm() < 0.02 * (wanted - start).norm(), name  # products in BF16


@pytest.mark.parametrize("name", ["mixtral", "gpt2", "qwen2-tied"])
def test_other_models_have_their_matrices_too(name: str):
    lm = AutoModelForCausalLM.from_config(AutoConfig.for_model(**MODELS[name]))
    optimizer = make_optimizer(lm, OptimConfig(name="muon"))
    moved = {id(p) for p in optimizer.param_groups[2]["params"]}
    for path, parameter in lm.named_parameters():
        inside = ".layers." in path or ".h." in path
        router = name == "mixtral" and path.endswith("gate.weight")
        assert (id(parameter) in moved) == (inside and parameter.ndim > 1 and not router), path
    with_gradients(lm, 0)
    before = {path: p.detach().clone() for path, p in lm.named_parameters()}
    optimizer.step()
    for path, parameter in lm.named_parameters():
        assert torch.isfinite(parameter).all()
        assert not torch.equal(parameter, before[path]), path


def with_muon(work: Path, data: dict[str, Any]) -> dict[str, Any]:
    return tiny.settings(work, data=data, optim=MUON, batch_size=6, micro_batch_size=1, log_every=1)


@pytest.fixture(scope="module")
def runs(data: dict[str, Any], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same training with Muon on 1 and 3 ranks (whose shards are uneven), and stopped on 3."""
    folder = tmp_path_factory.mktemp("muon")

    assert tiny.engine(with_muon(folder / "1", data)) == 0
    stopped = {"values": with_muon(folder / "stopped", data)}
    trained(folder / "three", 3, [{"values": with_muon(folder / "3", data)}, {**stopped, "stop": 3}, stopped])
    return folder


def same_as_on_one(runs: Path, ranks: str) -> None:
    ours, theirs = ([line for line in tiny.metrics(runs / n) if "loss" in line] for n in (ranks, "1"))
    assert [line["loss"] for line in ours] == pytest.approx([line["loss"] for line in theirs], rel=1e-4)
    assert ours[-1]["loss"] < ours[0]["loss"]
    for name, weight in tiny.weights(runs / ranks).items():
        assert np.isclose(weight, tiny.weights(runs / "1")[name], rtol=1e-3, atol=1e-4).mean() > 0.995, name


def test_muon_does_not_depend_on_the_number_of_ranks(runs: Path):
    same_as_on_one(runs, "3")


@pytest.mark.slow
def test_nor_on_two(data: dict[str, Any], runs: Path):
    trained(runs / "two", 2, [{"values": with_muon(runs / "2", data)}])
    same_as_on_one(runs, "2")


def test_muon_goes_on_to_the_bit(runs: Path):
    assert tiny.metrics(runs / "stopped") == tiny.metrics(runs / "3")
    for name, weight in tiny.weights(runs / "stopped").items():
        assert np.array_equal(weight, tiny.weights(runs / "3")[name]), name


def test_another_optimizer_is_no_way_to_go_on(data: dict[str, Any], tmp_path: Path):
    values = tiny.settings(tmp_path, data=data)
    assert tiny.engine(values, tiny.StopAt(2)) == 75
    with pytest.raises(ConfigError, match="optim.name was 'adamw', is 'muon'"):
        tiny.engine({**values, "optim": {**values["optim"], "name": "muon"}})
    with pytest.raises(ConfigError, match="momentum.* is missing.* another model or optimizer"):
        tiny.engine({**values, "optim": {**values["optim"], "name": "muon"}, "allow_changed": ["optim"]})


def test_a_checkpoint_without_the_field_was_made_with_its_default():
    saved, now = {"optim": {"lr": 1.0}}, {"allow_changed": [], "float8": "off", "optim": {"lr": 1.0}}
    hold(Path("there"), saved, {**now, "optim": {"lr": 1.0, "name": "adamw"}}, joins=False)
    with pytest.raises(ConfigError, match="optim.name was 'adamw', is 'muon'"):
        hold(Path("there"), saved, {**now, "optim": {"lr": 1.0, "name": "muon"}}, joins=False)
    with pytest.raises(ConfigError, match="float8 was 'off', is 'rowwise'"):
        hold(Path("there"), saved, {**now, "float8": "rowwise"}, joins=False)
