"""What a training shows of itself: the numbers are right, and looking at them changes nothing."""

from __future__ import annotations

import json
import math
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch import nn
from torch.utils.checkpoint import checkpoint, create_selective_checkpoint_contexts

from model.steel import SteelConfig
from model.steel.modeling import SteelForCausalLM
from model.training import experts, groups, metrics, pace
from model.training.batch import IGNORED
from model.training.config import ConfigError, from_dict
from model.training.lines import describe
from model.training.loader import BlockLoader
from model.training.pace import BlockTimer, Pace
from model.training.shards import Row, write_shard
from model.training.sources import SourceLoss
from tests.support import engine_helpers as tiny


@pytest.fixture(scope="module")
def looked(tmp_path_factory) -> Path:
    """Four steps of two sources, each of them looked at, the second and third traced."""
    work = tmp_path_factory.mktemp("looked")
    more = {"detail_every": 1, "log_every": 1, "profile_steps": [2, 3]}
    assert tiny.engine(tiny.settings(work, data={"files": shards(work)}, steps=4, **more)) == 0
    return work


def shards(work: Path) -> list[dict[str, str]]:
    return [tiny.shard(work / "zhihu.arrow", 24), tiny.shard(work / "code.arrow", 12, seed=1)]


def detail(work: Path) -> list[dict]:
    return [line for line in tiny.metrics(work) if "grad_norm_by_group" in line]


def test_looking_changes_no_weight(looked, tmp_path):
    values = tiny.settings(tmp_path, data={"files": shards(tmp_path)}, steps=4, detail_every=0)
    assert tiny.engine(values) == 0
    assert not detail(tmp_path)
    seen, unseen = tiny.weights(looked), tiny.weights(tmp_path)
    assert seen.keys() == unseen.keys()
    assert all(np.array_equal(seen[name], unseen[name]) for name in seen)


def test_the_groups_make_up_the_whole_gradient(looked):
    norms = [line["grad_norm"] for line in tiny.metrics(looked) if "grad_norm" in line]
    found = [math.hypot(*line["grad_norm_by_group"].values()) for line in detail(looked)]
    assert found == pytest.approx(norms, rel=1e-6)
    assert set(detail(looked)[0]["update_ratio_by_group"]) == set(groups.GROUPS) - {"other"}


def test_the_update_is_what_the_weights_moved(tmp_path):
    values = tiny.settings(tmp_path / "a", data={"files": shards(tmp_path)}, steps=1, detail_every=1)
    assert tiny.engine({**values, "optim": {"lr": 0.1, "warmup_steps": 0, "schedule": "constant"}}) == 0
    assert (
        tiny.engine({**values, "work_dir": str(tmp_path / "b"), "optim": {"lr": 1e-30, "warmup_steps": 0}})
        == 0
    )
    (line,), before, after = (
        detail(tmp_path / "a"),
        tiny.weights(tmp_path / "b"),
        tiny.weights(tmp_path / "a"),
    )
    head = "lm_head.weight"
    moved = np.linalg.norm(after[head] - before[head]) / np.linalg.norm(after[head])
    assert line["update_ratio_by_group"]["head"] == pytest.approx(moved, rel=1e-5)
    assert line["weight_norm_by_group"]["head"] == pytest.approx(np.linalg.norm(after[head]), rel=1e-5)


def test_the_sources_losses_make_up_the_whole(looked):
    """24 blocks to 12, and the same number of steps a line: their means, weighed by targets, are the loss."""
    lines = tiny.metrics(looked)
    loader = BlockLoader(shards(looked), seed=1234, batch_size=4)
    for step, line in enumerate(detail(looked)):
        (batch,) = loader.batch(step)
        number = batch.target_sources[batch.labels != IGNORED]
        share = {name: (number == i).double().mean().item() for i, name in enumerate(loader.sources)}
        (loss,) = [other["loss"] for other in lines if other.get("loss") and other["step"] == line["step"]]
        mean = sum(share[name] * value for name, value in line["loss_by_source"].items())
        assert mean == pytest.approx(loss, rel=1e-6)


def test_a_resumed_run_counts_sources_from_the_line_before(tmp_path):
    values = tiny.settings(tmp_path / "a", data={"files": shards(tmp_path)}, steps=4, detail_every=4)
    assert tiny.engine(values) == 0
    stopped = {**values, "work_dir": str(tmp_path / "b")}
    assert tiny.engine(stopped, tiny.StopAt(3)) == 75
    assert tiny.engine(stopped) == 0
    assert tiny.metrics(tmp_path / "a") == tiny.metrics(tmp_path / "b")


def test_a_shard_may_say_the_source_of_each_document(tmp_path):
    tokens = np.arange(9, dtype=np.uint32)
    rows = [
        Row(tokens, np.array([0, 4], np.int32), [bytes(16), bytes([1] * 16)], 9, None, np.array([1, 0], np.uint8)),
        Row(tokens, np.array([0], np.int32), [bytes([2] * 16)], 6, None, np.array([2], np.uint8)),
    ]  # fmt: skip
    write_shard(tmp_path / "a.arrow", rows, 8, doc_sources=True)
    file = {"path": str(tmp_path / "a.arrow"), "sources": ["zh", "en", ""]}
    loader = BlockLoader([file], seed=0, batch_size=2)
    assert loader.sources == ["zh", "en"]
    (batch,) = loader.batch(0)
    at = batch.blocks.tolist().index(0)
    assert batch.target_sources[at].tolist() == [1, 1, 1, 0, 0, 0, 0, 0]
    assert set(batch.target_sources[1 - at].tolist()) == {2}  # no name: counted, and not shown
    sums = SourceLoss(loader.sources, torch.device("cpu"))
    sums.add(batch, torch.ones(batch.targets))
    sums.count(sums.take().tolist())
    assert sums.close() == {"loss_by_source": {"zh": 1.0, "en": 1.0}}
    write_shard(tmp_path / "b.arrow", rows, 8)
    with pytest.raises(ValueError, match="does not say which sources"):
        BlockLoader([{**file, "path": str(tmp_path / "b.arrow")}], seed=0, batch_size=2).batch(0)


def test_the_load_of_the_experts_is_that_of_the_combine_weights():
    torch.manual_seed(0)
    lm = SteelForCausalLM(SteelConfig(**tiny.MODEL))
    looked = experts.Experts(lm)
    ids = torch.randint(0, 200, (2, 10))
    looked.watch()
    looked.batch(torch.tensor([10, 6]), 10)
    inputs = []
    hook = lm.model.layers[1].mlp.register_forward_pre_hook(lambda _, args: inputs.append(args[0]))
    lm(input_ids=ids)
    looked.rest()
    hook.remove()
    lm(input_ids=ids)  # no longer watched
    line = experts.numbers(looked.table.flatten().tolist(), looked.layers, looked.count)
    real = torch.cat([inputs[0][0], inputs[0][1, :6]])
    weights = lm.model.layers[1].mlp.combine_weights(real)
    assert line["expert_load_by_layer"][1] == pytest.approx(weights.mean(0).tolist(), abs=1e-5)
    entropy = -(weights * weights.log()).sum(-1).mean().item() / math.log(3)
    assert line["router_entropy_by_layer"][1] == pytest.approx(entropy, abs=1e-5)
    assert line["expert_load_max"] == max(map(max, line["expert_load_by_layer"]))


def test_selective_checkpointing_recomputes_the_same_beside_a_look():
    torch.manual_seed(0)
    lm = SteelForCausalLM(SteelConfig(**tiny.MODEL))
    looked, ffn = experts.Experts(lm), lm.model.layers[0].mlp
    kept = [torch.ops.aten.mm.default, torch.ops.aten.addmm.default]
    x = torch.randn(1, 8, 32)

    def gradients() -> list[torch.Tensor]:
        lm.zero_grad()
        contexts = partial(create_selective_checkpoint_contexts, kept)
        checkpoint(
            ffn, x.requires_grad_(), use_reentrant=False, context_fn=contexts
        ).square().sum().backward()
        return [parameter.grad.clone() for parameter in ffn.parameters()]

    without = gradients()
    looked.watch()
    beside = gradients()
    looked.rest()
    assert all(torch.equal(a, b) for a, b in zip(without, beside, strict=True))
    assert looked.table[0, -1] == 8  # tokens, counted once


def test_a_router_of_transformers_is_read_too():
    from transformers import MixtralConfig, MixtralForCausalLM

    torch.manual_seed(0)
    sizes = {"hidden_size": 16, "intermediate_size": 16, "num_attention_heads": 2, "num_key_value_heads": 1}
    config = MixtralConfig(
        vocab_size=64, num_hidden_layers=2, num_local_experts=4, num_experts_per_tok=2, **sizes
    )
    lm = MixtralForCausalLM(config)
    looked = experts.Experts(lm)
    looked.watch()
    looked.batch(torch.tensor([8, 8]), 8)
    logits = lm(input_ids=torch.randint(0, 64, (2, 8)), output_router_logits=True).router_logits[1]
    looked.rest()
    line = experts.numbers(looked.table.flatten().tolist(), looked.layers, looked.count)
    chances = logits.float().softmax(-1)
    best, choice = chances.topk(2)
    load = torch.zeros(16, 4).scatter(1, choice, best / best.sum(-1, keepdim=True)).mean(0)
    assert line["expert_load_by_layer"][1] == pytest.approx(load.tolist(), abs=1e-4)
    found = set(groups.groups_of(lm).values())
    assert {"embeddings", "attention", "ffn", "router", "norms", "head"} == found


def test_a_model_without_experts_has_none():
    lm = SteelForCausalLM(SteelConfig(**{**tiny.MODEL, "ffn": "dense"}))
    looked = experts.Experts(lm)
    looked.watch()
    lm(input_ids=torch.zeros(1, 4, dtype=torch.long))
    assert experts.numbers(looked.table.flatten().tolist(), looked.layers, looked.count) == {}
    assert set(groups.groups_of(lm).values()) == {"embeddings", "attention", "ffn", "norms", "head"}


def test_a_trace_has_its_file_and_its_table(looked):
    folder = looked / "logs" / "profile"
    assert sorted(path.name for path in folder.iterdir()) == [
        "steps-000002-000003.json",
        "steps-000002-000003.txt",
    ]
    assert json.loads((folder / "steps-000002-000003.json").read_text())["traceEvents"]
    assert "aten::mm" in (folder / "steps-000002-000003.txt").read_text()


def test_a_running_training_is_asked_for_a_trace_by_a_file(tmp_path, monkeypatch):
    from model.training import trace

    monkeypatch.setattr(trace, "LOOK_SECONDS", 0.0)
    (tmp_path / trace.REQUEST).write_text("2\n")
    assert tiny.engine(tiny.settings(tmp_path, data={"files": shards(tmp_path)}, steps=4)) == 0
    assert not (tmp_path / trace.REQUEST).exists()
    assert (tmp_path / trace.FOLDER / "steps-000001-000002.json").exists()


@pytest.mark.parametrize("text", ["-1", "many", "1000", "0"])
def test_a_request_that_is_no_number_is_refused(tmp_path, text, caplog):
    from model.training import trace

    config = SimpleNamespace(work_dir=str(tmp_path), profile_steps=None, export_steps=[])
    made = trace.Trace(config, SimpleNamespace(first=True, device=torch.device("cpu")), 9)
    made._looked = -math.inf
    (tmp_path / trace.REQUEST).write_text(text)
    made.begin(1)
    assert made._profiler is None
    assert "no number of steps" in caplog.text


def test_a_request_that_is_a_folder_is_said_once(tmp_path, caplog, monkeypatch):
    from model.training import trace

    monkeypatch.setattr(trace, "LOOK_SECONDS", 0.0)
    (tmp_path / trace.REQUEST).mkdir()
    assert tiny.engine(tiny.settings(tmp_path, data={"files": shards(tmp_path)}, steps=2)) == 0
    (line,) = [text for text in caplog.messages if trace.REQUEST in text]
    assert "Is a directory" in line


def test_what_lies_behind_the_last_step_is_said(tmp_path, caplog):
    late = {"profile_steps": [4, 5], "export_steps": [2, 3]}
    assert tiny.engine(tiny.settings(tmp_path, data={"files": shards(tmp_path)}, steps=2, **late)) == 0
    said = [text for text in caplog.messages if "behind the last step" in text]
    assert said == [
        "profile_steps: [4, 5] lies behind the last step of this training, 2",
        "export_steps: [3] lies behind the last step of this training, 2",
    ]


@pytest.mark.parametrize("span", [[3], [3, 2], [0, 2]])
def test_a_span_that_is_none_is_refused(tmp_path, span):
    with pytest.raises(ConfigError, match="profile_steps"):
        from_dict(tiny.settings(tmp_path, data={"files": [{"path": "a"}]}, profile_steps=span))


@pytest.fixture
def clock(monkeypatch) -> Clock:
    """What `model.training.pace` takes for the time."""
    made = Clock()
    monkeypatch.setattr(pace, "time", SimpleNamespace(perf_counter=lambda: made.now))
    return made


class Clock:
    now = 0.0

    def sleep(self, seconds: float) -> None:
        self.now += seconds


def test_waiting_is_the_slowest_less_ones_own(clock):
    one = Pace(0, 2)
    told = []
    for own, other, read in ((0, 0, 4), (10, 30, 2), (50, 10, 0)):
        clock.sleep(own)
        with one.reading():
            clock.sleep(read)
        mine = one.arrive()
        told.append(mine)
        one.meet([a + b for a, b in zip(mine, [read, 0, other], strict=True)])
        clock.sleep(100)
        one.part()
        one.made(len(told), 110)
    assert told == [[4, 0, 0], [2, 12, 0], [0, 50, 0]]
    line = one.close(3, 13)
    assert line["host_wait_s_by_rank"] == [6, pytest.approx(40 / 3)]
    assert line["host_wait_s"] == max(line["host_wait_s_by_rank"])
    assert line["data_wait"] == pytest.approx(6 / 330, abs=1e-6)
    assert line["eta_s"] == pytest.approx((112 + 150) / 2 * 10)  # not of the first step, which is slow


def test_a_rank_counts_what_it_computes_in_its_blocks_only(clock):
    class Slow(nn.Module):
        def __init__(self):
            super().__init__()
            self.linear = nn.Linear(4, 4)

        def forward(self, x):
            clock.sleep(2)
            return Sleeps.apply(self.linear(x))

    class Sleeps(torch.autograd.Function):
        @staticmethod
        def forward(ctx, x):
            return x.clone()

        @staticmethod
        def backward(ctx, gradient):
            clock.sleep(3)
            return gradient

    blocks = nn.ModuleList([Slow(), Slow()])
    timer = BlockTimer(list(blocks), torch.device("cpu"))
    timer.watch()
    for _ in range(2):  # micro-steps
        x = nn.Linear(4, 4)(torch.randn(2, 4))
        for block in blocks:
            clock.sleep(50)  # another rank is waited for
            x = block(x)
        x.sum().backward()
    timer.rest()
    assert timer.seconds() == 2 * 2 * (2 + 3)
    blocks[0](torch.randn(2, 4, requires_grad=True)).sum().backward()
    assert timer.seconds() == 20  # no longer watched


@pytest.mark.parametrize(
    ("name", "peak"),
    [
        ("NVIDIA H100 80GB HBM3", 989e12),
        ("NVIDIA H100 PCIe", 756e12),
        ("NVIDIA H200", 989e12),
        ("NVIDIA H20", 148e12),
        ("NVIDIA A100-SXM4-80GB", 312e12),
        ("NVIDIA A10", 125e12),
        ("NVIDIA L40S", 362e12),
        ("NVIDIA L4", 121e12),
        ("NVIDIA GeForce RTX 4090", 165e12),
        ("NVIDIA Something", None),
    ],
)
def test_peaks_go_by_whole_words(name, peak):
    assert metrics.peak_of(name) == peak


def test_mfu_is_of_the_peak_that_is_set(tmp_path):
    values = tiny.settings(tmp_path, data={"files": shards(tmp_path)}, steps=2, peak_tflops=0.5)
    assert tiny.engine(values) == 0
    (line,) = [
        json.loads(text) for text in (tmp_path / "metrics.jsonl").read_text().splitlines() if "tflops" in text
    ]
    assert line["mfu"] == pytest.approx(line["tflops"] / 0.5)
    assert line["memory_gb"]["rss"] > 0.05


def test_a_line_says_step_loss_speed_and_time_left():
    entry = {"step": 120, "loss": 3.21, "tokens_per_s": 45_120.4, "mfu": 0.412, "eta_s": 200.4}
    assert describe(entry, 700) == "step 120 of 700, loss 3.210, 45,120 tokens/s, MFU 41.2 %, ETA 0:03:20"
    assert describe({"step": 3, "eta_s": 93_784}, None) == "step 3, ETA 1 d 2:03:04"
    assert describe({"step": 3, "pairs_per_s": 12.0}, 9) == "step 3 of 9, 12 pairs/s"
    assert describe({}, 9) == "no step yet"
