"""GRPO in the engine: it learns what is rewarded, resumes with the same bytes, and refuses what cannot be run."""

import json
import os
import signal
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from model.tokenizer import TextTokenizer
from model.training.config import ConfigError, RlConfig, from_dict
from model.training.convert import convert
from model.training.grpo import Group, batch_of
from model.training.loader import DataError
from model.training.prompts import Prompt, PromptLoader, write_prompts
from model.training.reinforce import SEEN, Sampler
from tests.support import engine_helpers as tiny
from tests.support import foreign_tokenizers, rl
from tests.support.tiny import steel


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    return rl.base(tmp_path_factory.mktemp("rl"))


def lines(work):
    """The lines of steps; others look into the model."""
    return [line for line in tiny.metrics(work) if "reward" in line]


def same(a, b):
    ours, theirs = tiny.weights(a), tiny.weights(b)
    return ours.keys() == theirs.keys() and all(np.array_equal(ours[k], theirs[k]) for k in ours)


def test_it_learns_what_is_rewarded(base, tmp_path):
    assert tiny.engine(rl.settings(base, tmp_path, steps=15)) == 0
    shown = lines(tmp_path)
    assert 0.2 < shown[0]["reward"] < 0.8
    assert shown[-1]["reward"] > 0.9
    assert shown[-1]["completions/clipped_ratio"] <= shown[0]["completions/clipped_ratio"]
    # the sampler's own arithmetic is off by rounding alone
    assert max(line.get("sampling/sampling_logp_difference/max", 0) for line in shown) < 1e-4
    assert shown[-1]["frac_reward_zero_std"] > shown[0]["frac_reward_zero_std"]


def test_one_pass_has_a_ratio_of_exactly_one(base, tmp_path):
    assert tiny.engine(rl.settings(base, tmp_path, steps=3, rl={"inner_steps": 1})) == 0
    for line in lines(tmp_path):
        assert line["clip_ratio/region_mean"] == 0
        assert line["updates"] == 1


def test_rejection_sampling_trains_on_what_is_right_alone(base, tmp_path):
    assert tiny.engine(rl.settings(base, tmp_path, steps=12, rl={"advantage": "right"})) == 0
    shown = lines(tmp_path)
    assert shown[-1]["reward"] > 0.9
    assert shown[0]["loss"] < 0, "every advantage is 1"
    group = Group([1], [[2], [3], [2], [4]], [1.0, 0.0, 1.0, 1.0], [True, True, True, False])
    batch = batch_of([group], "right")
    assert batch.copies.tolist() == [2]
    assert batch.advantage.tolist() == [1]
    assert batch_of([Group([1], [[2], [3]], [1.0, 1.0], [True, True])]).copies.tolist() == [0], (
        "no signal: a filler"
    )


def test_a_stopped_run_goes_on_with_the_same_bytes(base, tmp_path):
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    more = {"log_every": 2, "rl": {"kl_weight": 0.05}}
    assert tiny.engine(rl.settings(base, whole, **more)) == 0
    assert tiny.engine(rl.settings(base, parts, **more), tiny.StopAt(3)) == 75  # in mid-window
    assert tiny.engine(rl.settings(base, parts, **more)) == 0
    assert same(whole, parts)
    assert lines(whole) == lines(parts)
    assert all(line["kl"] >= 0 for line in lines(whole))


def test_it_shows_saves_and_exports_what_every_training_does(base, tmp_path, caplog):
    """And looking at it changes no weight."""
    caplog.set_level("INFO")
    plain, shown = tmp_path / "plain", tmp_path / "shown"
    settings = {"steps": 4, "log_every": 2, "rl": {"kl_weight": 0.05}}
    assert tiny.engine(rl.settings(base, plain, detail_every=0, **settings)) == 0
    more = {
        "detail_every": 3,
        "profile_steps": [2, 3],
        "peak_tflops": 0.5,
        "export_steps": [3],
        "keep_final": True,
    }
    assert tiny.engine(rl.settings(base, shown, save_every=100, **more, **settings)) == 0
    assert same(plain, shown)
    assert lines(plain) == lines(shown)
    clock = json.loads((shown / "metrics.jsonl").read_text().splitlines()[0])
    assert clock["tflops"] == pytest.approx(clock["mfu"] * 0.5)
    assert clock["memory_gb"]["rss"] > 0.05
    assert 0 < clock["sampling_share"] < 1
    assert 0 <= clock["data_wait"] < 1
    assert clock["eta_s"] > 0
    assert clock["tokens_per_s"] > 0
    assert "step 2 of 4, loss" in caplog.text
    assert "ETA" in caplog.text
    details = [line for line in tiny.metrics(shown) if "grad_norm_by_group" in line]
    assert [line["step"] for line in details] == [3, 4]
    assert details[0]["update_ratio_by_group"]["head"] > 0
    assert 0 < details[0]["router_entropy"] < 1
    assert not any("grad_norm_by_group" in line for line in tiny.metrics(plain))
    assert (shown / "logs/profile/steps-000002-000003.json").is_file()
    assert (shown / "exports/step-000003/model.safetensors").is_file()
    convert(shown / "checkpoints/step-000004", tmp_path / "converted")
    assert (tmp_path / "converted/model.safetensors").read_bytes() == (
        shown / "export/model.safetensors"
    ).read_bytes()


@pytest.mark.slow
@pytest.mark.parametrize("ranks", [1, 2])
def test_a_killed_run_goes_on_with_the_same_bytes(base, tmp_path, ranks):
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    assert tiny.start(rl.settings(base, whole, steps=60), ranks).wait() == 0
    killed = tiny.start(rl.settings(base, parts, steps=60), ranks)
    tiny.wait_for(parts, 5)
    children = Path(f"/proc/{killed.pid}/task/{killed.pid}/children").read_text().split()
    os.kill(int(children[-1]), signal.SIGKILL)
    assert killed.wait(timeout=120) != 0
    assert not (parts / "export").exists()
    assert tiny.start(rl.settings(base, parts, steps=60), ranks).wait() == 0
    assert same(whole, parts)
    assert lines(whole) == lines(parts)


@pytest.mark.slow
def test_ranks_share_the_prompts_of_a_step(base, tmp_path):
    one, two = tmp_path / "one", tmp_path / "two"
    for work, ranks in ((one, 1), (two, 2)):
        assert tiny.start(rl.settings(base, work, steps=2), ranks).wait() == 0
    for ours, theirs in zip(lines(one), lines(two), strict=True):
        assert ours == pytest.approx(theirs, rel=1e-3, abs=1e-5)


def test_other_settings_or_prompts_are_refused(base, tmp_path, capsys):
    assert tiny.engine(rl.settings(base, tmp_path), tiny.StopAt(3)) == 75
    with pytest.raises(ConfigError, match=r"rl.clip_high was 0.28, is 0.5"):
        tiny.engine(rl.settings(base, tmp_path, rl={"clip_high": 0.5}))
    with pytest.raises(ConfigError, match="batch_size was 8, is 4, and cannot be changed: a step of grpo"):
        tiny.engine(rl.settings(base, tmp_path, batch_size=4, allow_changed=["batch_size"]))
    write_prompts(base / "others.arrow", [Prompt("x", [5], "yes", "exact")])
    with pytest.raises(ConfigError, match="was trained on other prompts"):
        tiny.engine(rl.settings(base, tmp_path, prompts="others.arrow"))


def test_prompts_that_leave_no_room_for_a_reply_are_refused(base, tmp_path):
    with pytest.raises(
        ConfigError, match="a prompt of 3 tokens and rl.max_new_tokens 32766 exceed .* of 32768"
    ):
        tiny.engine(rl.settings(base, tmp_path, rl={"max_new_tokens": 32766}))


def test_a_reply_ends_where_the_tokenizer_says(tmp_path):
    """Llama-3 ends a turn by a token of its own."""
    folder = foreign_tokenizers.save(tmp_path / "llama3", "llama3")
    tokenizer = TextTokenizer.open(folder)
    model = steel(vocab_size=tokenizer.vocab_size)
    with torch.no_grad():  # says every id as often as any other
        model.get_output_embeddings().weight.zero_()
    model.save_pretrained(tmp_path / "export")
    rl = RlConfig(group=64, max_new_tokens=200)
    config = SimpleNamespace(init_from=str(tmp_path / "export"), tokenizer_dir=str(folder), rl=rl)
    sampler = Sampler(config, SimpleNamespace(device="cpu", dtype=torch.float32))
    assert sampler.stops == [tokenizer.special_id(t) for t in ("<|eot_id|>", "<|end_of_text|>")]
    _, seen = sampler.groups([(Prompt("1", [5, 6, 7], "a", "exact"), 1)])
    assert 0 < seen[SEEN.index("cut")] < 64


@pytest.mark.parametrize(
    ("more", "reason"),
    [
        ({"rl": {"group": 1}}, "rl.group must be at least 2"),
        ({"rl": {"clip_low": 1.0}}, "rl.clip_low must be above 0 and below 1"),
        ({"init_from": None, "model": tiny.MODEL}, "needs a trained model"),
        ({"tokenizer_dir": None}, "graded as text"),
        ({"optim": {"max_skipped": 2}}, "not for the objective grpo"),
        ({"optim": {"z_loss": 1e-4}}, "z_loss is for the objectives pretrain and sft, not for grpo"),
        (
            {"data": {"files": [{"path": "a", "repeats": 2}]}},
            "repeats and extra_rows of data.files are not for",
        ),
    ],
)
def test_what_cannot_be_run_is_refused(tmp_path, more, reason):
    values = {
        **rl.settings(tmp_path, tmp_path, rl=more.get("rl", {})),
        **{k: v for k, v in more.items() if k != "rl"},
    }
    with pytest.raises(ConfigError, match=reason):
        from_dict(values)


def test_prompts_that_cannot_be_graded_are_refused(tmp_path):
    file = tmp_path / "p.arrow"
    write_prompts(file, [Prompt("x", [1], "no number", "arithmetic")])
    with pytest.raises(DataError, match="prompt x is not one that arithmetic can grade"):
        PromptLoader([{"path": str(file)}], seed=0, batch_size=1)
    with pytest.raises(DataError, match="unknown"):
        write_prompts(file, [Prompt("x", [1], "a", "fuzzy")])


def test_an_epoch_asks_every_prompt_once_whoever_asks(tmp_path):
    file = tmp_path / "p.arrow"
    write_prompts(file, [Prompt(str(i), [1] * (1 + i % 3), "a", "exact") for i in range(24)])

    def asked(rank, world):
        loader = PromptLoader([{"path": str(file)}], seed=3, batch_size=8, rank=rank, world_size=world)
        return [[(p.id, seed) for p, seed in loader.batch(step)] for step in range(6)]

    alone, shared = asked(0, 1), [asked(rank, 2) for rank in range(2)]
    assert alone == [a + b for a, b in zip(*shared, strict=True)]
    first, second = (sorted(i for step in part for i, _ in step) for part in (alone[:3], alone[3:]))
    assert first == second == sorted(map(str, range(24)))
    assert alone[:3] != alone[3:]
