"""engine.settings: what a profile says arrives in the engine's config, and what cannot be run never starts."""

from __future__ import annotations

import json
import threading
from concurrent.futures import ThreadPoolExecutor

import pytest

from model.training.config import TrainConfig, from_json, to_dict
from model.training.machine import Machine
from tasks.settings import profiles
from tasks.settings.config import Runtime, Train
from tasks.settings.errors import NodeError
from tasks.training import engine, launch
from tests.support.tiny import artifact, context

FILE = {"path": "/a.arrow", "rows": 3, "source": "zhihu"}
FRESH = {"model": {"hidden_size": 32}, "steps": 4}


@pytest.fixture
def ctx(tmp_path):
    return context(
        tmp_path,
        None,
        {"tokenizer": artifact("tokenize:tokenizer", tmp_path / "words")},
        runtime=Runtime(device="cpu", keep_checkpoints=5, verify_shards="off", micro_batch_size=2),
        name="pretrain",
    )


def test_a_config_is_built_from_recipe_runtime_and_node(ctx):
    recipe = Train(epochs=2, batch_size=6, eval_every=7, optim={"lr": 0.5, "betas": (0.8, 0.9)})
    config = engine.settings(ctx, "pretrain", recipe, [FILE], val_files=[FILE], **FRESH)
    assert isinstance(config, TrainConfig)
    assert (config.work_dir, config.seed) == (str(ctx.out), ctx.seed)
    assert (config.steps, config.epochs) == (4, None)
    assert (config.batch_size, config.micro_batch_size, config.keep_checkpoints) == (6, 2, 5)
    assert (config.optim.lr, config.optim.betas) == (0.5, [0.8, 0.9])
    assert config.data.files == config.data.val_files
    assert config.data.verify is False
    assert engine.settings(ctx, "pretrain", recipe, [FILE], **FRESH, seed=3).seed == 3


@pytest.mark.parametrize(
    ("section", "value", "field"),
    [
        ({"optim": {"schedule": "constant"}}, "constant", "optim.schedule"),
        ({"optim": {"decay_embeddings": False}}, False, "optim.decay_embeddings"),
        ({"optim": {"warmup_steps": 0}}, 0, "optim.warmup_steps"),
        ({"export_dtype": "bfloat16"}, "bfloat16", "export_dtype"),
        ({"optim": {"name": "muon"}}, "muon", "optim.name"),
    ],
)
def test_a_profile_reaches_every_field_of_the_engine(ctx, section, value, field):
    for recipe in (
        profiles.load("demo", {"pretrain": section}).pretrain.train,
        profiles.load("demo", {"sft": {"train": section}}).sft.train,
        profiles.load("demo", {"dpo": {"train": section}}).dpo.train,
    ):
        found = engine.settings(ctx, "pretrain", recipe, [FILE], **FRESH)
        for part in field.split("."):
            found = getattr(found, part)
        assert found == value


@pytest.mark.parametrize(
    ("objective", "files", "more", "words"),
    [
        ("pretrain", [], FRESH, "nothing to read"),
        ("rl", [FILE], FRESH, "objective: rl is unknown"),
        ("pretrain", [FILE], {"steps": 4}, "model or init_from"),
        ("pretrain", [FILE], {**FRESH, "steps": 0}, "steps must be at least 1"),
        ("pretrain", [FILE], {**FRESH, "steps": None}, "steps or epochs"),
        ("pretrain", [{**FILE, "rows": "3"}], FRESH, r"data.files\[0\].rows must be int"),
        ("pretrain", [{**FILE, "weight": 2}], FRESH, r"unknown key data.files\[0\].weight"),
        ("sft", [FILE], {**FRESH, "continue_from": "/there"}, "continue_from is for the objective pretrain"),
        ("dpo", [FILE], {"init_from": "/x", "steps": 4}, "dpo.reference is missing"),
        ("pretrain", [FILE], {**FRESH, "ffn": "token"}, "unknown key ffn"),
    ],
)
def test_what_cannot_be_run_is_one_line_before_torchrun_starts(
    ctx, monkeypatch, objective, files, more, words
):
    def never(*_, **__):
        raise AssertionError("something was started")

    monkeypatch.setattr("tasks.training.launch.launch", never)
    monkeypatch.setattr("tasks.training.launch.look", never)
    with pytest.raises(NodeError, match=words) as error:
        engine.train(ctx, objective, Train(steps=1), files, nproc=1, **more)
    assert str(error.value).startswith("pretrain: the training cannot be started: ")
    assert "\n" not in str(error.value)


def test_how_memory_is_saved_reaches_the_engine(tmp_path):
    options = {
        "activation_checkpointing": "full",
        "reshard_after_forward": True,
        "parallel": {"replicate": 2, "shard": 4},
        "expandable_segments": True,
        "deterministic": True,
    }
    inputs = {"tokenizer": artifact("tokenize:tokenizer", tmp_path / "words")}
    ctx = context(tmp_path, None, inputs, runtime=Runtime(**options), name="pretrain")
    config = engine.settings(ctx, "pretrain", Train(steps=1), [FILE], **FRESH)
    assert {name: to_dict(config)[name] for name in options} == options


def test_copies_that_the_ranks_cannot_make_are_one_line_before_torchrun_starts(ctx, monkeypatch):
    def never(*_, **__):
        raise AssertionError("something was started")

    monkeypatch.setattr("tasks.training.launch.launch", never)
    runtime = Runtime(device="cpu", parallel={"replicate": 2})
    odd = context(ctx.out, None, dict(ctx.inputs), runtime=runtime, name="pretrain")
    with pytest.raises(NodeError, match="pretrain: parallel.replicate 2 does not divide 3 ranks"):
        engine.train(odd, "pretrain", Train(steps=1), [FILE], nproc=3, **FRESH)


def test_launch_writes_the_config_that_the_engine_reads(ctx, monkeypatch):
    seen = []
    monkeypatch.setattr(launch, "supervise", lambda ctx, start, tail: None)
    monkeypatch.setattr(launch, "program", lambda command, env: seen.append(command))
    config = engine.settings(ctx, "pretrain", Train(steps=1), [FILE], **FRESH)
    launch.launch(ctx, config, nproc=3, machine=Machine("cuda", 3, "bf16"))
    [command] = seen
    assert command[-1] == str(ctx.out / launch.CONFIG)
    assert command[command.index("--nproc-per-node") + 1] == "3"
    assert from_json(command[-1]) == config
    assert json.loads((ctx.out / launch.CONFIG).read_text())["optim"]["warmup_steps"] == 100


def test_trainings_side_by_side_see_gpus_of_their_own(ctx, monkeypatch):
    seen, both = [], threading.Barrier(2, timeout=30)

    def side_by_side(ctx, start, tail):
        both.wait()  # each has its GPUs while the other has

    monkeypatch.setattr(launch, "supervise", side_by_side)
    monkeypatch.setattr(launch, "program", lambda command, env: seen.append(env["CUDA_VISIBLE_DEVICES"]))
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "GPU-a,3,5,GPU-b")
    config = engine.settings(ctx, "pretrain", Train(steps=1), [FILE], **FRESH)
    machine = Machine("cuda", 4, "bf16")
    with ThreadPoolExecutor() as threads:
        runs = []
        for name in ("one", "two"):
            (ctx.out / name).mkdir()
            own = context(ctx.out / name)
            runs.append(threads.submit(launch.launch, own, config, nproc=2, machine=machine))
        for run in runs:
            run.result()
    assert sorted(seen) == ["5,GPU-b", "GPU-a,3"]


@pytest.mark.parametrize(
    ("gpus", "nproc", "ranks"), [(0, None, 2), (0, 1, 1), (8, None, 8), (8, 4, 4), (1, None, 1)]
)
def test_ranks(gpus, nproc, ranks):
    assert engine.ranks(Machine("cuda" if gpus else "cpu", gpus, "fp32"), nproc) == ranks


def test_a_training_without_an_export_has_failed(tmp_path):
    with pytest.raises(NodeError, match=r"without an export; see .*train\.log"):
        engine.finish(tmp_path)


def test_what_a_training_is_remembered_by():
    lines = [{"step": 1, "loss": 3.0, "tokens": 10}, {"step": 2, "loss": 2.5}, {"step": 2, "val_loss": 2.75}]
    trained = engine.Trained(lines, {"ranks": 2})
    assert trained.headline() == {"final_loss": 2.5, "val_loss": 2.75, "tokens": 10.0}
    assert trained.last("step") == 2
    assert trained.last("nothing") is None
