"""What a training would hold on GPUs: fake ranks against real ones, and what the numbers must obey."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.support.memory_questions import question

ROOT = Path(__file__).parents[3]


QUESTIONS = {
    **{ffn: question(ffn) for ffn in ("dense", "token", "prefix", "merge")},
    "four layers": question(model={"num_hidden_layers": 4}),
    "selective": question(model={"num_hidden_layers": 4}, activation_checkpointing="selective"),
    "full": question(model={"num_hidden_layers": 4}, activation_checkpointing="full"),
    "resharded": question(model={"num_hidden_layers": 4}, reshard_after_forward=True),
    "copies": question(ranks=4, parallel={"replicate": 2}),
    "muon": question(optim={"name": "muon"}),
    "small memory": question(rows=[1, 2, 4, 8], limit=6.5e6),
    "large memory": question(rows=[1, 2, 4, 8, 16, 32]),
    "no memory": question(rows=[1, 2, 4], limit=1e3),
}
MORE = {
    "paper": question("paper"),
    "half the rows": question(micro=1),
    "four ranks": question(ranks=4),
    "no accumulation": question(batch_size=4),
    "plain": question(kernels="off"),
    "sdpa": question(attention="sdpa"),
    "fp32": question(precision="fp32"),
    "fp32, one rank": question(precision="fp32", ranks=1),
    "tied": question(model={"tie_word_embeddings": True}),
    "more layers": question(model={"num_hidden_layers": 3}),
    "pairs": question(dpo=True),
    "merge, full": question("merge", model={"num_hidden_layers": 4}, activation_checkpointing="full"),
}
"""Half a minute of looks: for the slow tests."""
ALL = {**QUESTIONS, **MORE}
SLOW = [pytest.param(name, marks=pytest.mark.slow) for name in MORE]


def run(*command: str) -> Any:
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads(done.stdout.strip().splitlines()[-1])


def ask(folder: Path, questions: list[dict[str, Any]]) -> list[dict[str, Any]]:
    (folder / "questions.json").write_text(json.dumps(questions), "utf-8")
    return run(sys.executable, "-m", "model.training.memory", str(folder / "questions.json"))


@pytest.fixture(scope="module")
def answers(tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict[str, Any]]:
    found = ask(tmp_path_factory.mktemp("memory"), list(QUESTIONS.values()))
    return dict(zip(QUESTIONS, found, strict=True))


@pytest.fixture(scope="module")
def more(answers: dict[str, Any], tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict[str, Any]]:
    """All of them."""
    found = ask(tmp_path_factory.mktemp("more"), list(MORE.values()))
    return {**answers, **dict(zip(MORE, found, strict=True))}


def found_for(name: str, request: pytest.FixtureRequest) -> dict[str, dict[str, Any]]:
    return request.getfixturevalue("more" if name in MORE else "answers")


def part(answers: dict[str, Any], name: str, part: str) -> int:
    return answers[name]["peaks"][str(ALL[name]["micro"])][part]


@pytest.mark.parametrize("name", [*QUESTIONS, *SLOW])
def test_the_parts_add_up(request: pytest.FixtureRequest, name: str):
    for parts in found_for(name, request)[name]["peaks"].values():
        assert sum(parts.values()) - parts["total"] == pytest.approx(parts["total"], rel=1e-3)
        assert all(size >= 0 for size in parts.values())


@pytest.mark.parametrize("name", ["dense", "token", "prefix", "merge", *SLOW])
def test_what_is_sharded_has_the_size_it_must_have(request: pytest.FixtureRequest, name: str):
    answers = found_for(name, request)
    share = 4 * answers[name]["parameters"] / ALL[name]["ranks"]
    assert part(answers, name, "parameters") == pytest.approx(share, rel=0.01)
    assert part(answers, name, "optimizer") == pytest.approx(2 * share, rel=0.01)


@pytest.mark.slow
def test_options_move_the_parts_they_are_about(more: dict[str, Any]):
    def total(name: str) -> int:
        return part(more, name, "total")

    assert part(more, "no accumulation", "gradients") < part(more, "token", "gradients") / 2
    assert total("half the rows") < total("token") < total("plain")
    assert total("token") < total("prefix")  # six running means of every token
    assert total("token") < total("sdpa") < total("fp32") + total("sdpa") - total("token")
    assert total("tied") < total("token") < total("more layers") < total("pairs")


def test_what_is_recomputed_is_not_kept(answers: dict[str, Any]):
    none, selective, full = (
        part(answers, name, "activations") for name in ("four layers", "selective", "full")
    )
    assert selective == pytest.approx((none + full) / 2, rel=0.05)
    assert full < none / 3
    for name in ("parameters", "gradients", "optimizer", "unsharded", "loss"):
        assert part(answers, "full", name) == part(answers, "four layers", name)


@pytest.mark.slow
def test_merge_recomputes_as_much(more: dict[str, Any]):
    full = part(more, "full", "activations")
    assert part(more, "merge, full", "activations") == pytest.approx(full, rel=0.05)


def test_dropped_weights_and_fewer_shards_move_their_parts(answers: dict[str, Any]):
    assert part(answers, "resharded", "unsharded") < part(answers, "four layers", "unsharded")
    assert answers["copies"]["peaks"] == answers["token"]["peaks"]  # two copies of two shards: as two ranks


def test_muon_keeps_one_average_of_a_matrix(answers: dict[str, Any]):
    geometry = QUESTIONS["muon"]["train"]["model"]
    matrices = geometry["num_hidden_layers"] * 4 * geometry["hidden_size"] ** 2  # of attention
    experts = answers["muon"]["parameters_without_embeddings"] - matrices
    saved = part(answers, "token", "optimizer") - part(answers, "muon", "optimizer")
    assert 2 * matrices < saved < 2 * (matrices + experts)  # FP32, halved by two ranks


def test_the_largest_micro_batch_is_found_in_few_looks(answers: dict[str, Any]):
    assert answers["no memory"]["largest"] == 0
    assert answers["large memory"]["largest"] == 32
    assert len(answers["large memory"]["peaks"]) <= 4
    small = answers["small memory"]
    peaks = {int(rows): parts["total"] for rows, parts in small["peaks"].items()}
    assert peaks[small["largest"]] <= 6.5e6 < peaks[2 * small["largest"]]


@pytest.mark.slow
def test_figures_of_steel_1b(tmp_path: Path):
    """Held against a tracker of its own (prototype of 2026-11): GB of a GPU, 8 ranks, 8 x 2,048 tokens."""
    cases: dict[float, dict[str, Any]] = {
        27.4: {},
        26.2: {"reshard_after_forward": True},
        19.4: {"activation_checkpointing": "selective"},
        11.4: {"activation_checkpointing": "full"},
        33.7: {"model": {"ffn": "prefix", "vocab_size": 151_936}},
        28.4: {"model": {"ffn": "dense", "vocab_size": 151_936}},
    }
    asked = []
    for more in cases.values():
        each = question(micro=8, ranks=8, length=2048)
        changed = {"model": {"vocab_size": 151_936}, "batch_size": 512, "precision": "bf16", **more}
        asked.append({**each, "train": {**each["train"], **changed}})
    for due, found in zip(cases, ask(tmp_path, asked), strict=True):
        assert found["peaks"]["8"]["total"] / 1e9 == pytest.approx(due, rel=0.05)


REAL = {
    **{ffn: (ffn, {}) for ffn in ("dense", "token", "prefix", "merge")},
    "full": ("token", {"activation_checkpointing": "full"}),
    "selective": ("token", {"activation_checkpointing": "selective"}),
    "resharded": ("token", {"reshard_after_forward": True}),
}


@pytest.mark.slow
@pytest.mark.parametrize("name", REAL)
def test_real_ranks_hold_what_fake_ones_do(tmp_path: Path, name: str):
    ffn, more = REAL[name]
    asked = question(
        ffn, 4, attention="eager", kernels="off", precision="fp32", model={"merge_segment": 16}, **more
    )
    (fake,) = ask(tmp_path, [asked])
    file = tmp_path / "question.json"
    file.write_text(json.dumps(asked), "utf-8")
    real = run(
        sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2",
        "-m", "tests.support.real_memory", str(file),
    )  # fmt: skip
    assert fake["peaks"]["4"]["total"] == pytest.approx(real["total"], rel=0.05)
