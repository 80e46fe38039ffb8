"""A run that goes on: with the settings it began with, or with those that were named."""

import shutil

import pytest

from model.training.config import ConfigError
from model.training.resume import hold
from tests.support import engine_helpers as tiny


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    folder = tmp_path_factory.mktemp("shards")
    return {"files": [tiny.shard(folder / "a.arrow", 30)]}


@pytest.fixture(scope="module")
def stopped(data, tmp_path_factory):
    work = tmp_path_factory.mktemp("stopped")
    assert tiny.engine(tiny.settings(work, data=data), tiny.StopAt(3)) == 75
    return work


def optim(**more):
    return {"lr": 3e-3, "warmup_steps": 2, **more}


CHANGES = {
    "model.rope_theta": {"model": {**tiny.MODEL, "rope_theta": 5e5}},
    "model.rms_norm_eps": {"model": {**tiny.MODEL, "rms_norm_eps": 1e-3}},
    "model.num_attention_heads": {"model": {**tiny.MODEL, "num_attention_heads": 2}},
    "model.ffn": {"model": {**tiny.MODEL, "ffn": "prefix"}},
    "optim.lr": {"optim": optim(lr=1e-3)},
    "optim.betas": {"optim": optim(betas=[0.9, 0.99])},
    "optim.weight_decay": {"optim": optim(weight_decay=0.2)},
    "optim.schedule": {"optim": optim(schedule="cosine")},
    "optim.grad_clip": {"optim": optim(grad_clip=0.1)},
    "precision": {"precision": "bf16"},
    "batch_size": {"batch_size": 2},
}


@pytest.mark.parametrize("name", CHANGES)
def test_what_defines_the_result_is_refused_or_named(stopped, data, tmp_path, caplog, name):
    work = tmp_path / "work"
    shutil.copytree(stopped, work)
    values = tiny.settings(work, data=data, **CHANGES[name])
    with pytest.raises(ConfigError, match=rf"{name} was .*, is .*allow_changed") as refused:
        tiny.engine(values)
    assert "\n" not in str(refused.value)
    assert (work / "checkpoints/step-000003").is_dir()
    assert tiny.engine({**values, "allow_changed": [name, "model.num_key_value_heads"]}) == 0
    assert f"changed since the checkpoint: {name} was" in caplog.text
    assert tiny.metrics(work)[-1]["step"] == 6


@pytest.mark.parametrize("turn", [1, -1])
def test_a_field_that_becomes_a_section_has_changed(tmp_path, turn):
    ways = [
        {"model": {"rope_scaling": None}},
        {"model": {"rope_scaling": {"factor": 2.0, "type": "linear"}}},
    ][::turn]
    with pytest.raises(ConfigError, match=r"model\.rope_scaling was .*, is ") as error:
        hold(tmp_path, ways[0], {**ways[1], "allow_changed": []}, joins=False)
    assert "'factor': 2.0, 'type': 'linear'" in str(error.value)
    hold(tmp_path, ways[0], {**ways[1], "allow_changed": ["model.rope_scaling"]}, joins=False)
    hold(tmp_path, ways[0], {**ways[0], "allow_changed": []}, joins=False)


def test_several_changes_are_all_named_and_a_section_allows_its_fields(stopped, data, tmp_path):
    work = tmp_path / "work"
    shutil.copytree(stopped, work)
    values = tiny.settings(work, data=data, precision="bf16", optim=optim(lr=1e-3, eps=1e-6))
    with pytest.raises(
        ConfigError, match=r"optim\.lr was 0\.003, is 0\.001; optim\.eps was .*; precision was"
    ):
        tiny.engine(values)
    with pytest.raises(ConfigError, match="precision was 'fp32', is 'bf16'"):
        tiny.engine({**values, "allow_changed": ["optim"]})
    with pytest.raises(ConfigError, match=r"allow_changed: optim\.lrr|allow_changed: device"):
        tiny.engine({**values, "allow_changed": ["device"]})
    assert tiny.engine({**values, "allow_changed": ["optim", "precision"]}) == 0


def test_the_seed_cannot_change(stopped, data, tmp_path):
    """The order of the data follows from it: neither resumed, nor continued, nor by a name in allow_changed."""
    work = tmp_path / "work"
    shutil.copytree(stopped, work)
    values = tiny.settings(work, data=data, seed=5)
    at = {"continue_from": str(stopped / "checkpoints/step-000003"), "work_dir": str(tmp_path / "child")}
    for more in ({}, at):
        with pytest.raises(
            ConfigError, match=r"step-000003: seed was 1234, is 5, and cannot be changed: the order"
        ):
            tiny.engine({**values, **more})
    with pytest.raises(ConfigError, match="seed is no field that is held"):
        tiny.engine({**values, "allow_changed": ["seed"]})


@pytest.mark.parametrize(
    "name", ["foo", "", "optim.foo", "optim.", "model.", "rl.foo", "dpo.reference", "optim.lr.x"]
)
def test_a_name_that_is_none_is_refused_before_there_is_a_checkpoint(data, tmp_path, name):
    with pytest.raises(ConfigError, match="is no field that is held"):
        tiny.engine(tiny.settings(tmp_path, data=data, allow_changed=[name]))


def test_how_many_steps_may_be_left_out_may_change(stopped, data, tmp_path, caplog):
    """A run that ended by a bad gradient says so: no past step follows from it."""
    work = tmp_path / "work"
    shutil.copytree(stopped, work)
    more = optim(max_skipped=2, spike_factor=50.0)
    assert tiny.engine(tiny.settings(work, data=data, optim=more)) == 0
    assert "changed since the checkpoint: optim.max_skipped was 0, is 2" in caplog.text
    assert "changed since the checkpoint: optim.spike_factor was 0.0, is 50.0" in caplog.text


def test_where_and_how_often_may_change(stopped, data, tmp_path, caplog):
    """Paths, what is logged, validated and saved, micro-steps: none of it is held."""
    work, moved = tmp_path / "work", tmp_path / "moved.arrow"
    shutil.copytree(stopped, work)
    shutil.copyfile(data["files"][0]["path"], moved)
    values = tiny.settings(
        work, data={"files": [{**data["files"][0], "path": str(moved)}]}, log_every=1, save_every=5, eval_every=2,
        keep_checkpoints=1, micro_batch_size=2, export_dtype="bfloat16", attention="sdpa", watchdog_seconds=0,
    )  # fmt: skip
    assert tiny.engine(values) == 0
    assert "changed since" not in caplog.text
    assert "jumps" not in caplog.text


def test_a_jump_of_the_rate_is_said(data, tmp_path, caplog):
    """Steps may be added; the rate then follows another curve."""
    values = tiny.settings(tmp_path, data=data, steps=8, keep_final=True)
    assert tiny.engine(values, tiny.StopAt(3)) == 75
    assert tiny.engine(values) == 0
    assert "jumps" not in caplog.text
    assert tiny.engine({**values, "steps": 16}) == 0
    (line,) = [r.getMessage() for r in caplog.records if "jumps" in r.getMessage()]
    assert "step 8 was made with 0.0006, step 9 gets 0.0024" in line, line


def test_another_runs_model_is_held_and_its_other_changes_logged(stopped, data, tmp_path, caplog):
    at = str(stopped / "checkpoints/step-000003")
    values = tiny.settings(
        tmp_path / "child", data=data, continue_from=at, optim=optim(lr=1e-3), batch_size=2
    )
    with pytest.raises(ConfigError, match=r"of another model: model\.rope_theta was"):
        tiny.engine({**values, "model": {**tiny.MODEL, "rope_theta": 5e5}})
    assert tiny.engine(values) == 0
    assert "changed since the checkpoint: optim.lr was 0.003, is 0.001" in caplog.text
    assert "changed since the checkpoint: batch_size was 4, is 2" in caplog.text
