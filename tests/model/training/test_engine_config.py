"""Schedules, decay groups, and configurations that are refused in one line."""

import json
import os

import pytest
import torch

from model.steel import SteelConfig, SteelForCausalLM
from model.training import run as entry
from model.training.config import SECONDS, ConfigError, OptimConfig, from_dict, from_json, to_dict
from model.training.optim import learning_rate, make_optimizer
from model.training.stop import StopFlag
from model.training.watch import Watch
from tests.support import engine_helpers as tiny


@pytest.mark.parametrize(
    ("device", "before", "due"), [("auto", None, ":4096:8"), ("cuda", ":16:8", ":16:8"), ("cpu", None, None)]
)
def test_cublas_has_its_workspace_before_a_gpu_is_touched(tmp_path, monkeypatch, device, before, due):
    name, seen = "CUBLAS_WORKSPACE_CONFIG", []
    monkeypatch.setenv(name, before or "")
    if before is None:
        monkeypatch.delenv(name)

    def start(config):
        seen.append(os.environ.get(name))
        raise ConfigError("far enough")

    monkeypatch.setattr(entry, "start", start)
    values = tiny.settings(tmp_path, data={"files": [{"path": "a"}]}, device=device)
    with pytest.raises(ConfigError, match="far enough"):
        entry.run(from_dict(values), StopFlag())
    assert seen == [due]


@pytest.mark.parametrize(
    ("before", "due"),
    [
        (None, "expandable_segments:True"),
        ("max_split_size_mb:512", "max_split_size_mb:512,expandable_segments:True"),
        ("expandable_segments:False", "expandable_segments:False"),
    ],
)
def test_the_options_of_a_gpu_are_set_before_it_is_touched(tmp_path, monkeypatch, before, due):
    name, seen = "PYTORCH_CUDA_ALLOC_CONF", []
    monkeypatch.setenv(name, before or "")
    if before is None:
        monkeypatch.delenv(name)

    def start(config):
        seen.append((os.environ.get(name), torch.is_deterministic_algorithms_warn_only_enabled()))
        raise ConfigError("far enough")

    monkeypatch.setattr(entry, "start", start)
    values = tiny.settings(tmp_path, data={"files": [{"path": "a"}]}, device="auto")
    options = {"expandable_segments": True, "deterministic": True}
    try:
        for more in (options, {**options, "device": "cpu"}, {"deterministic": False}):
            monkeypatch.setenv(name, before or "")
            with pytest.raises(ConfigError, match="far enough"):
                entry.run(from_dict({**values, **more}), StopFlag())
        assert seen == [(due, False), (before or "", False), (before or "", True)]
    finally:
        torch.use_deterministic_algorithms(True, warn_only=True)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"stepz": 3}, "unknown key stepz"),
        ({"optim": {"lrr": 1.0}}, "unknown key optim.lrr"),
        ({"data": {"files": [{"path": "a", "weight": 2}]}}, r"unknown key data.files\[0\].weight"),
        ({"steps": "6"}, "steps must be int"),
        ({"steps": True}, "steps must be int"),
        ({"epochs": 1.0}, "steps or epochs. Choose one."),
        ({"init_from": "x"}, "model or init_from. Choose one."),
        ({"objective": "rl"}, "objective: rl is unknown"),
        ({"batch_size": 0}, "at least 1"),
        ({"data": {}}, "nothing to read"),
        ({"objective": "dpo"}, "dpo.reference is missing"),
        (
            {"objective": "dpo", "dpo": {"reference": "a"}, "optim": {"z_loss": 1e-4}},
            "z_loss is for the objectives pretrain and sft, not for dpo",
        ),
        (
            {
                "objective": "logprobs",
                "model": None,
                "init_from": "x",
                "data": {"files": [{"path": "a", "extra_rows": 1}]},
            },
            "the objective logprobs reads pairs",
        ),
        ({"activation_checkpointing": "some"}, "activation_checkpointing: some is unknown"),
        ({"optim": {"name": "sgd"}}, "optim.name: sgd is unknown"),
        ({"optim": {"adamw_lr": 1e-3}}, "optim.adamw_lr is for optim.name muon"),
        ({"optim": {"name": "muon", "adamw_lr": 0.0}}, "optim.adamw_lr must be above 0"),
        ({"optim": {"momentum": 1.0}}, "optim.momentum must be at least 0 and below 1, not 1.0"),
        ({"optim": {"lr": float("nan")}}, "optim.lr must be a finite number, not nan"),
        ({"model": {**tiny.MODEL, "rope_theta": float("inf")}}, "model.rope_theta must be a finite number"),
        ({"optim": {"betas": [0.9, float("-inf")]}}, r"optim.betas\[1\] must be a finite number"),
        ({"optim": {"lr": -1.0}}, "optim.lr must be above 0, not -1.0"),
        ({"optim": {"lr": 10**400}}, "optim.lr is too large a number"),
        ({"optim": {"betas": [0.9, 1.0]}}, "optim.betas must be at least 0 and below 1"),
        ({"optim": {"betas": [0.9]}}, "optim.betas needs two numbers"),
        ({"optim": {"eps": 0.0}}, "optim.eps must be above 0"),
        ({"optim": {"weight_decay": -1.0}}, "optim.weight_decay must be at least 0"),
        ({"optim": {"grad_clip": -1.0}}, "optim.grad_clip must be at least 0"),
        ({"optim": {"warmup_steps": -5}}, "optim.warmup_steps must be at least 0"),
        ({"optim": {"decay_share": 2.0}}, "optim.decay_share must be at least 0 and at most 1"),
        ({"optim": {"min_lr_ratio": 5.0}}, "optim.min_lr_ratio must be at least 0 and at most 1"),
        ({"optim": {"z_loss": -1.0}}, "optim.z_loss must be at least 0"),
        ({"steps": None, "epochs": 0.0}, "epochs must be above 0"),
        ({"eval_every": -1}, "eval_every must be at least 0"),
        ({"save_every": -1}, "save_every must be at least 1"),
        ({"watchdog_seconds": 1e13}, "watchdog_seconds must be at least 0 and at most 1e9"),
        ({"backend_timeout_seconds": 1e15}, "backend_timeout_seconds must be above 0 and at most 1e9"),
        ({"peak_tflops": 0.0}, "peak_tflops must be above 0"),
        ({"profile_steps": [0, 2]}, "profile_steps must be at least 1, not 0"),
        ({"profile_steps": [5, 2]}, "the first and the last step"),
        ({"export_steps": [4, 0]}, "export_steps must be at least 1, not 0"),
        ({"data": None}, "^data must be an object"),
        ({"data": {"files": [3]}}, r"^data.files\[0\] must be an object"),
        ({"float8": "rowwise", "device": "auto"}, "float8: rowwise and precision: fp32 cannot go together"),
        ({"float8": "rowwise", "precision": "bf16"}, "float8: rowwise and device: cpu cannot go together"),
        ({"parallel": {"replicate": 0}}, "parallel.replicate must be at least 1"),
        ({"parallel": {"shards": 2}}, "unknown key parallel.shards"),
    ],
)
def test_refused(tmp_path, change, words):
    values = tiny.settings(tmp_path, data={"files": [{"path": "a.arrow"}]})
    with pytest.raises(ConfigError, match=words) as error:
        from_dict({**values, **change})
    assert "\n" not in str(error.value)


def test_a_file_that_is_no_configuration_is_one_line(tmp_path):
    file = tmp_path / "config.json"
    texts = {
        b"\xff\xfe{}": "is not JSON",
        b"": "is not JSON",
        b"[" * 9999: "is not JSON",
        b"[]": "must be an object",
    }
    for text, words in texts.items():
        file.write_bytes(text)
        with pytest.raises(ConfigError, match=words):
            from_json(file)
    with pytest.raises(ConfigError, match="cannot be read: Is a directory"):
        from_json(tmp_path)


def test_a_configuration_is_the_same_after_a_round_trip(tmp_path):
    config = from_dict(tiny.settings(tmp_path, data={"files": [{"path": "a.arrow", "repeats": 2}]}))
    path = tmp_path / "config.json"
    path.write_text(json.dumps(to_dict(config)))
    assert from_json(path) == config


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"model": {**tiny.MODEL, "ffn": "paper"}}, "allow_future_leakage"),
        ({"attention": "flash_attention_4"}, "attention flash_attention_4"),
        ({"model": {**tiny.MODEL, "hiden_size": 3}}, "unknown key model.hiden_size"),
        ({"model": {**tiny.MODEL, "num_hidden_layers": 2.5}}, "num_hidden_layers must be a whole number"),
        ({"model": {**tiny.MODEL, "num_attention_heads": 0}}, "num_attention_heads must be a whole number"),
        ({"model": {**tiny.MODEL, "initializer_range": -1.0}}, "initializer_range must be a number above 0"),
        ({"model": {**tiny.MODEL, "hidden_size": "32"}}, "hidden_size must be a whole number"),
        ({"data": {"files": [{"path": "/nowhere.arrow"}]}}, "nowhere"),
        ({"tokenizer_dir": "/nowhere"}, "tokenizer.json"),
        ({"batch_size": 3, "micro_batch_size": 2}, "no multiple"),
        ({"parallel": {"replicate": 2}}, "parallel.replicate 2 does not divide 1 ranks"),
        ({"float8": "rowwise", "precision": "bf16", "device": "auto"}, "float8: rowwise needs torchao"),
    ],
)
def test_what_only_shows_at_the_start_is_one_line_too(tmp_path, capsys, change, words):
    values = tiny.settings(tmp_path, data={"files": [tiny.shard(tmp_path / "a.arrow", 4)]})
    path = tmp_path / "config.json"
    path.write_text(json.dumps({**values, **change}))
    before = torch.distributed.is_initialized()
    assert entry.main([str(path)]) == 2
    assert torch.distributed.is_initialized() == before
    (line,) = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error:")]
    assert words in line


def test_a_work_dir_that_cannot_be_made_is_one_line(tmp_path, monkeypatch):
    (tmp_path / "file").write_text("")
    (tmp_path / "link").symlink_to(tmp_path / "nowhere")
    for place in ("file", "file/below", "link"):
        values = tiny.settings(tmp_path / place, data={"files": [{"path": "a"}]})
        with pytest.raises(ConfigError, match=r"work_dir: the folder .* cannot be made"):
            entry.run(from_dict(values), StopFlag())
    monkeypatch.setattr(os, "access", lambda *_: False)  # root may write anywhere
    with pytest.raises(ConfigError, match="cannot be written"):
        entry.run(from_dict(tiny.settings(tmp_path, data={"files": [{"path": "a"}]})), StopFlag())


@pytest.mark.parametrize("text", ["", "[]", "{", '{"a": 1}'])
@pytest.mark.parametrize("objective", ["pretrain", "grpo"])
def test_a_tokenizer_that_cannot_be_read_is_one_line(tmp_path, text, objective):
    (tmp_path / "tokenizer.json").write_text(text)
    more = {"objective": "grpo", "init_from": "x"} if objective == "grpo" else {}
    values = {"data": {"files": [{"path": "a"}]}, "tokenizer_dir": str(tmp_path), **more}
    with pytest.raises(ConfigError, match=r"tokenizer_dir: .*tokenizer\.json cannot be read") as error:
        tiny.engine(tiny.settings(tmp_path / "run", **values))
    assert "\n" not in str(error.value)


def test_the_longest_watchdog_is_one_that_the_clock_takes():
    longest = float(SECONDS[1:-1].split(", ")[1])
    watch = Watch()
    watch.attach(None, longest)
    watch.beat()
    assert not watch._late()
    watch.close()


def rates(steps=100, warmup_steps=0, **fields):
    optim = OptimConfig(lr=1.0, warmup_steps=warmup_steps, **fields)
    return [learning_rate(optim, step, steps) for step in range(steps)]


def test_wsd_warms_up_stays_and_falls():
    found = rates(schedule="wsd", warmup_steps=10, decay_share=0.4, min_lr_ratio=0.1)
    assert found[:10] == pytest.approx([(i + 1) / 10 for i in range(10)])
    assert set(found[10:61]) == {1.0}
    assert found[80] == pytest.approx(0.55)
    assert found[99] == pytest.approx(0.1225)
    assert all(a > b for a, b in zip(found[60:], found[61:], strict=False))


def test_cosine_and_linear_end_where_they_should():
    cosine, linear = rates(schedule="cosine", min_lr_ratio=0.1), rates(schedule="linear", warmup_steps=20)
    assert cosine[50] == pytest.approx(0.55)
    assert cosine[-1] == pytest.approx(0.1, abs=1e-3)
    assert linear[60] == pytest.approx(0.5)
    assert set(rates(schedule="constant")) == {1.0}


@pytest.mark.parametrize("embeddings", [True, False])
def test_norms_biases_and_the_router_do_not_decay(embeddings):
    lm = SteelForCausalLM(SteelConfig(**tiny.MODEL))
    optimizer = make_optimizer(lm, OptimConfig(decay_embeddings=embeddings))
    decayed = {id(p) for p in optimizer.param_groups[0]["params"]}
    assert [g["weight_decay"] for g in optimizer.param_groups] == [0.05, 0.0]
    for name, parameter in lm.named_parameters():
        matrix = parameter.ndim == 2 and not name.endswith("phi")
        if "embed_tokens" in name:
            matrix = embeddings
        assert (id(parameter) in decayed) == matrix, name
