"""What a run would cost: how GPUs are written, batches dealt, time and disk counted, and what is refused."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from typing import Any

import pytest

from flows import cost as page
from flows.settings import ROOT, State
from model import sampling
from tasks.inspect import cost
from tasks.inspect.gpus import GPUS, NETWORK, fleet
from tasks.settings import profiles
from tasks.settings.errors import NodeError

PARAMETERS = 1_122_922_770
GEOMETRY = {
    "parameters": PARAMETERS,
    "parameters_without_embeddings": 578_384_146,
    "flops_per_token": 5.5e9,
}
QUESTION = {
    "train": {"objective": "pretrain", "work_dir": "-", "data": {"files": [{"path": "-"}]}, "steps": 1},
    "ranks": 2,
    "rows": [1],
    "micro": 1,
    "length": 64,
    "limit": 1e12,
}
PROGRESS = re.compile(r"working out the memory of |  [\w ]+: \d+ s$")
FINE = {"sft.train.batch_size": 128}


def tracked(question: dict[str, Any]) -> dict[str, Any]:
    """An answer without the tracker: 3 GB a row or pair, and 3 GB beside."""
    peaks = {
        str(n): {"activations": int(3e9 * n), "optimizer": int(3e9), "total": int(3e9 * (n + 1))}
        for n in question["rows"]
    }
    fitting = [n for n in question["rows"] if peaks[str(n)]["total"] <= question["limit"]]
    return {**GEOMETRY, "peaks": peaks, "largest": max(fitting, default=0)}


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch, tmp_path) -> list[dict[str, Any]]:
    """The questions that reach the tracker, which is not run."""
    seen: list[dict[str, Any]] = []

    def track(question: dict[str, Any], module: str) -> dict[str, Any]:
        seen.append(question)
        return tracked(question)

    monkeypatch.setattr(cost, "_track", track)
    monkeypatch.setattr(os, "cpu_count", lambda: 1)  # in the order of the stages
    monkeypatch.setattr(State, "default", classmethod(lambda cls: State(tmp_path)))
    return seen


def tree(values: dict[str, Any]) -> dict[str, Any]:
    made: dict[str, Any] = {}
    for path, value in values.items():
        *above, leaf = path.split(".")
        at = made
        for name in above:
            at = at.setdefault(name, {})
        at[leaf] = value
    return made


def costs(gpus: str, folder, profile: str = "steel-1b", **more: Any) -> list[cost.Cost]:
    overrides = tree({**FINE, **more} if profile.startswith("steel") else more)
    return cost.costs(profiles.load(profile, overrides), fleet(gpus), folder)


@pytest.mark.parametrize(
    ("text", "nodes", "per_node", "name"),
    [
        ("H100", 1, 1, "H100"),
        ("8xH100", 1, 8, "H100"),
        ("2x8xh200", 2, 8, "H200"),
        ("4xA100-40", 1, 4, "A100-40"),
        ("2x4090", 1, 2, "4090"),
        ("4090", 1, 1, "4090"),
        (" 8xL40S ", 1, 8, "L40S"),
        ("8XH100", 1, 8, "H100"),
        ("2X8xh100", 2, 8, "H100"),
    ],
)
def test_gpus_are_read(text: str, nodes: int, per_node: int, name: str):
    found = fleet(text)
    assert (found.nodes, found.per_node, found.gpu.name) == (nodes, per_node, name)


@pytest.mark.parametrize(
    "text", ["8xH1000", "", "8x", "xH100", "0xH100", "0x8xH100", "1x2x3xH100", "8 H100", "8", "²xH100"]
)
def test_what_is_no_gpu_is_refused_in_one_line(text: str):
    with pytest.raises(NodeError) as refused:
        fleet(text)
    assert len(str(refused.value).splitlines()) == 1


def test_a_number_alone_is_said_to_be_one():
    with pytest.raises(NodeError, match="enough for make check; make plan wants 8xH100"):
        fleet("8")


def test_gpus_that_no_rank_takes_are_said(asked, capsys):
    def idle(gpus: str, **runtime: int) -> list[str]:
        assert page.show("demo", {"runtime": {"nproc": 2, "sft_nproc": None, **runtime}}, gpus) == 0
        lines = capsys.readouterr().out.splitlines()
        return [line.partition(" GPUs stay idle")[0] for line in lines if "stay idle" in line]

    assert idle("2xH100") == []
    assert idle("7xH100") == ["pretrain, sft, dpo, rl: 5 of 7"]
    assert idle("2xH100", sft_nproc=1) == ["sft, dpo, rl: 1 of 2"]
    assert idle("99999999999xH100") == ["pretrain, sft, dpo, rl: 99,999,999,997 of 99,999,999,999"]


def test_the_network_is_the_slower_way_between_nodes():
    assert fleet("8xH100").link == GPUS["H100"].link
    assert fleet("2x8xH100").link == NETWORK
    assert fleet("2x8x4090").link == GPUS["4090"].link < NETWORK


@pytest.mark.parametrize(("gpus", "ranks"), [("1xH100", 1), ("8xH100", 8), ("2x8xH100", 16)])
def test_the_batch_is_dealt_to_every_rank(asked, tmp_path, gpus: str, ranks: int):
    found = costs(gpus, tmp_path)
    assert [each.training.stage for each in found] == ["pretrain", "sft", "dpo", "rl"]
    for each in found:
        training = each.training
        assert training.ranks == ranks
        assert all(training.share % rows == 0 for rows in training.micro_batches)
        assert training.micro in training.micro_batches
        assert training.recipe.batch_size == training.share * ranks
    assert [q["dpo"] for q in asked] == [False, False, True, False]
    assert [q["group"] for q in asked] == [0, 0, 0, 8]


@pytest.mark.parametrize(
    ("gpus", "more", "words"),
    [
        (
            "8xH100",
            {"sft.train.batch_size": 96},
            "sft: 12 blocks a rank are no multiple of micro_batch_size 8 (sft.train.batch_size, 8 ranks)",
        ),
        (
            "8xH100",
            {"tokenize.block_size": 65_536},
            "tokenize.block_size is 65536, more than the model's context",
        ),
        ("8xA100-40", {"runtime.micro_batch_size": 16}, "set runtime.micro_batch_size=8"),
        ("8x4090", {}, "set runtime.micro_batch_size=4"),
        ("8xH100", {"model.vocab_size": None}, "set model.vocab_size"),
    ],
)
def test_what_does_not_fit_is_refused_in_one_line(asked, tmp_path, capsys, gpus, more, words):
    assert page.show("steel-1b", tree({**FINE, **more}), gpus) == 1
    said = capsys.readouterr()
    assert words in said.err
    assert len([line for line in said.err.splitlines() if not PROGRESS.match(line)]) == 1
    assert not said.out


@pytest.mark.parametrize(
    ("gpus", "more", "words"),
    [
        ("3xH100", {}, "batch_size 512 cannot be shared evenly by 3 ranks"),
        ("100x8xH100", {}, "batch_size 512 cannot be shared evenly by 800 ranks"),
        ("2x8xH100", {"runtime.nproc": 5}, "batch_size 512 cannot be shared evenly by 10 ranks"),
        ("8xH100", {"runtime.parallel.replicate": 3}, "parallel.replicate 3 does not divide 8 ranks"),
        ("2x8xH100", {"runtime.parallel.shard": 8}, "1 copies of 8 shards are not 16 ranks"),
    ],
)
def test_every_mistake_is_said_before_anything_is_tracked(asked, capsys, gpus, more, words):
    assert page.show("steel-1b", tree({**FINE, **more}), gpus) == 1
    said = capsys.readouterr().err.splitlines()
    assert [line.partition(":")[0] for line in said] == ["pretrain", "sft", "dpo", "rl"]
    assert words in said[0]
    assert not asked


def test_memory_that_is_too_small_for_one_row_is_said(asked, tmp_path, monkeypatch):
    monkeypatch.setitem(GPUS, "L4", GPUS["L4"].__class__("L4", 5, 121, 300, 32, (0.2, 0.5), "none"))
    with pytest.raises(NodeError, match="even micro-batch 1 takes 6.0 GB: take more GPUs, or larger ones"):
        costs("8xL4", tmp_path)


def test_an_answer_is_kept_until_the_question_changes(asked, tmp_path):
    costs("8xH100", tmp_path)
    assert len(asked) == 4
    costs("8xH100", tmp_path)
    assert len(asked) == 4
    costs("8xH100", tmp_path, **{"model.ffn": "prefix"})
    assert len(asked) == 8
    assert not list(tmp_path.glob("*.partial"))


def test_an_answer_of_other_code_is_not_taken(asked, tmp_path, monkeypatch):
    question = {"rows": [1], "limit": 1e12}
    cost.ask({"pretrain": question}, tmp_path)
    monkeypatch.setattr(cost, "version", lambda name: "another")
    cost.ask({"pretrain": question}, tmp_path)
    assert len(asked) == 2


def test_what_takes_time_is_said_and_what_is_known_is_kept_where_another_fails(tmp_path, monkeypatch):
    def track(question: dict[str, Any], module: str) -> dict[str, Any]:
        if question["limit"] == 3:
            raise NodeError("the memory of the training cannot be measured: why")
        return {"largest": question["limit"]}

    monkeypatch.setattr(cost, "_track", track)
    lines: list[str] = []
    questions = {"pretrain": {"limit": 1}, "sft": {"limit": 2}, "dpo": {"limit": 3}}
    with pytest.raises(NodeError, match="why"):
        cost.ask(questions, tmp_path, lines.append)
    assert "pretrain, sft, dpo" in lines[0]
    assert {line.partition(":")[0].strip() for line in lines[1:]} == {"pretrain", "sft"}
    lines.clear()
    del questions["dpo"]
    assert cost.ask(questions, tmp_path, lines.append) == [{"largest": 1}, {"largest": 2}]
    assert not lines  # both were kept
    cost.ask({"pretrain": {"limit": 4}, "sft": {"limit": 4}}, tmp_path, lines.append)
    assert len(lines) == 2  # equal questions are asked once
    assert lines[1].strip() == "pretrain and sft: 0 s"


def test_time_is_bounded_by_the_shares_of_the_peak(asked, tmp_path):
    machines = fleet("8xH100")
    pretrain = costs("8xH100", tmp_path)[0]
    best, worst = cost.seconds_per_step(pretrain, machines)
    tokens = 512 * 2048 / 8
    assert best == pytest.approx(tokens * 5.5e9 / (0.45 * 989e12))
    compute = tokens * 5.5e9 / (0.30 * 989e12)
    exchanged = 7 / 8 * PARAMETERS * (2 + 4) / 450e9  # BF16 gathered once, one sum of FP32
    update = 28 * PARAMETERS / 8 / 3350e9
    assert worst == pytest.approx(compute + exchanged + update)


def test_sampling_costs_a_reading_of_the_weights_for_every_token(asked, tmp_path):
    assert cost.BATCH_ROWS == sampling.BATCH_ROWS
    machines = fleet("8xH100")
    rl = costs("8xH100", tmp_path)[3]
    best, worst = cost.seconds_per_step(rl, machines)
    prompts, group, longest, sampled = 128 // 8, 8, 256 + 64, 64
    learned = prompts * group * longest * 5.5e9 / (0.45 * 989e12)
    reading = 2 * PARAMETERS / 3350e9
    assert best == pytest.approx(learned + sampled * reading)  # 128 replies are one batch
    twice = costs("8xH100", tmp_path, **{"rl.inner_steps": 2})[3]
    assert cost.seconds_per_step(twice, machines)[0] == pytest.approx(2 * learned + sampled * reading)
    compute = prompts * group * longest * 5.5e9 / (0.30 * 989e12)
    assert worst > compute + prompts * sampled * reading


def test_what_saves_memory_is_asked_and_costs_time(asked, tmp_path):
    machines = fleet("2x8xH100")
    plain, twice, dropped, copied = (
        cost.seconds_per_step(costs("2x8xH100", tmp_path, **more)[0], machines)
        for more in (
            {},
            {"runtime.activation_checkpointing": "full"},
            {"runtime.reshard_after_forward": True},
            {"runtime.parallel.replicate": 2},
        )
    )
    assert twice[0] == pytest.approx(plain[0] * 4 / 3)
    micro_steps = 512 // 16 // 8
    gathered = 15 / 16 * PARAMETERS * 2 * (2 * micro_steps - 1) / (NETWORK * 1e9)
    assert dropped[1] - plain[1] == pytest.approx(gathered)
    # a copy stays in its node; only gradients cross the network, an eighth of them a GPU
    moved = 7 / 8 * PARAMETERS * (2 + 4) / 450e9 + 4 * PARAMETERS / 8 / (NETWORK * 1e9)
    before = 15 / 16 * PARAMETERS * (2 + 4) / (NETWORK * 1e9)
    update = 28 * PARAMETERS / 3350e9
    assert copied[1] - plain[1] == pytest.approx(moved - before + update * (1 / 8 - 1 / 16))
    settings = [question["train"] for question in asked]
    assert settings[4]["activation_checkpointing"] == "full"
    assert settings[8]["reshard_after_forward"] is True
    assert settings[12]["parallel"] == {"replicate": 2, "shard": None}


def test_the_options_are_named_in_the_plan(asked, tmp_path, capsys):
    more = {
        "runtime.activation_checkpointing": "selective",
        "runtime.reshard_after_forward": True,
        "runtime.parallel.replicate": 2,
        "pretrain.optim.name": "muon",
        "pretrain.float8": "rowwise",
    }
    assert page.show("steel-1b", tree({**FINE, **more}), "8xH100") == 0
    said = capsys.readouterr().out
    assert (
        "with activation checkpointing selective, weights dropped after the forward pass (16 gatherings a step), "
        "2 copies of 4 shards (HSDP), muon, float8 rowwise (looked at as if it were off)"
    ) in said
    assert "checkpoints (weights and moments in FP32)" in said
    assert asked[0]["train"]["optim"] == {"name": "muon"}


@pytest.mark.parametrize(
    ("slow", "fast"), [("8xA100-80", "8xH100"), ("8xH100", "2x8xH100"), ("8x3090", "8x4090")]
)
def test_more_and_faster_gpus_take_less_time(asked, tmp_path, slow: str, fast: str):
    def seconds(gpus: str) -> tuple[float, float]:
        (first, *_) = costs(gpus, tmp_path, **{"runtime.micro_batch_size": 1})
        return cost.seconds_per_step(first, fleet(gpus))

    assert all(a > b for a, b in zip(seconds(slow), seconds(fast), strict=True))


def test_disk_counts_checkpoints_exports_and_shards(asked, tmp_path):
    config = profiles.load("steel-1b", tree(FINE))
    found = cost.disk(config, costs("8xH100", tmp_path))
    sizes = {name.partition(" (")[0]: size for name, size in found.items()}
    assert sizes["pretrain: 3 checkpoints"] == 3 * 12 * PARAMETERS  # two kept, one being written
    assert sizes["sft: 6 exports"] == 6 * 4 * PARAMETERS
    shards = found["shards, if no token is read twice (4 bytes each)"]
    assert shards == pytest.approx(4 * 1_070_000 * 512 * 2049)


PROFILES = sorted(path.stem for path in (ROOT / "deployments/profiles").glob("*.yaml"))


@pytest.mark.parametrize("profile", PROFILES)
def test_every_profile_has_a_plan_without_data(asked, tmp_path, capsys, profile: str):
    more: dict[str, Any] = {"runtime.nproc": 1}
    if profile.startswith("smollm2"):  # its folder is made by whoever wants to run it
        (tmp_path / "config.json").write_text(
            json.dumps({"model_type": "llama", "vocab_size": 300, "max_position_embeddings": 4096})
        )
        more["model.pretrained"] = str(tmp_path)
    assert page.show(profile, tree(more), "H200") == 0, capsys.readouterr().err
    said = capsys.readouterr().out
    for words in (
        "parameters",
        "GFLOP a token",
        "tokens/s",
        "checkpoints",
        "assumed",
        profile,
    ):
        assert words in said
    assert json.loads(next(tmp_path.rglob("plans/*.json")).read_text())["parameters"] == PARAMETERS


def test_a_profile_without_prompts_has_no_plan_of_rl(asked, tmp_path):
    found = costs("8xH100", tmp_path, **{"rl.mixture": {"openbookqa": None, "arc": None}})
    assert [each.training.stage for each in found] == ["pretrain", "sft", "dpo"]


def test_other_models_go_to_the_estimate(tmp_path, monkeypatch):
    seen = []
    monkeypatch.setattr(cost, "_track", lambda question, module: seen.append(module) or {})
    for model in ({"ffn": "dense"}, {"model_type": "qwen2"}):
        cost.ask({"pretrain": {"train": {"model": model}}}, tmp_path)
    cost.ask({"pretrain": {"train": {"init_from": "/x"}}}, tmp_path)
    assert seen == [cost.TRACKER, cost.ESTIMATE, cost.ESTIMATE]


def test_a_folder_that_is_not_there_is_one_line(asked, capsys):
    assert page.show("smollm2", {"model": {"pretrained": "/nowhere"}}, "H200") == 1
    assert "model.pretrained: there is no folder /nowhere" in capsys.readouterr().err


def test_no_time_is_claimed_for_a_model_that_no_anchor_is_near(asked, tmp_path, capsys, monkeypatch):
    monkeypatch.setitem(GEOMETRY, "parameters", 2_662_852)
    assert page.show("demo", {}, "2xH100") == 0
    said = capsys.readouterr().out
    assert "no estimate of its time" in said
    assert "GPU-hours" not in said
    assert "tokens/s" not in said


def test_planning_itself_loads_no_torch():
    code = "import flows.cost, sys; sys.exit('torch' in sys.modules or 'prefect' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], cwd=cost.ROOT, check=False).returncode == 0


def test_what_the_tracker_refuses_is_one_line(tmp_path):
    with pytest.raises(NodeError, match="cannot be measured: .*hidden_size 65 does not split") as refused:
        cost.ask(
            {"sft": {**QUESTION, "train": {**QUESTION["train"], "model": {"hidden_size": 65}}}}, tmp_path
        )
    assert len(str(refused.value).splitlines()) == 1
    assert not list(tmp_path.iterdir())
