"""A training run in this process: it learns, it is counted right, it stops and goes on to the bit."""

import json
from dataclasses import asdict

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from model.steel import SteelConfig, SteelForCausalLM
from model.training.config import OptimConfig
from model.training.loader import BlockLoader
from model.training.loop import TrainingError
from model.training.optim import learning_rate, make_optimizer
from model.training.parallel import from_seed
from tests.support import engine_helpers as tiny


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    folder = tmp_path_factory.mktemp("shards")
    return {
        "files": [tiny.shard(folder / "a.arrow", 30), tiny.shard(folder / "b.arrow", 11, seed=1)],
        "val_files": [tiny.shard(folder / "va.arrow", 5, seed=2), tiny.shard(folder / "vb.arrow", 3, seed=3)],
    }


@pytest.fixture(scope="module")
def plain(data, tmp_path_factory):
    """An uninterrupted run."""
    work = tmp_path_factory.mktemp("plain")
    assert tiny.engine(tiny.settings(work, data=data, eval_every=3)) == 0
    return work


def test_curve_checkpoints_and_export_are_there(plain):
    lines = tiny.metrics(plain)
    assert [line["step"] for line in lines if "loss" in line] == [2, 4, 6]
    assert [line["step"] for line in lines if "val_loss" in line] == [3, 6]
    assert [line["tokens"] for line in lines if "loss" in line] == [n * 4 * tiny.BLOCK for n in (2, 4, 6)]
    losses = [line["loss"] for line in lines if "loss" in line]
    assert losses[0] > losses[-1]
    assert sorted(p.name for p in (plain / "checkpoints").iterdir()) == ["step-000002", "step-000004"]
    assert tiny.weights(plain)["model.embed_tokens.weight"].shape == (tiny.VOCAB, 32)


@pytest.mark.parametrize("question", [1, 3, 4, 7, 8, 9])
def test_stopped_and_resumed_is_uninterrupted_to_the_bit(plain, data, tmp_path, question):
    """The ranks ask before each of six steps, and after both batches of the validations at steps 3 and 6."""
    values = tiny.settings(tmp_path, data=data, eval_every=3)
    assert tiny.engine(values, tiny.StopAt(question)) == 75
    assert not (tmp_path / "export").exists()
    assert len([line for line in tiny.metrics(tmp_path) if "val_loss" in line]) == (question > 4)
    assert tiny.engine(values) == 0
    assert tiny.metrics(tmp_path) == tiny.metrics(plain)
    expected = tiny.weights(plain)
    for name, weight in tiny.weights(tmp_path).items():
        assert np.array_equal(weight, expected[name]), name


@pytest.mark.parametrize(
    "torn", [b'{"step": 6, "lo', '{"step": 6, "val_loss_by_source": {"知'.encode()[:-1], b"\0" * 300, b""]
)
def test_a_crash_after_a_checkpoint_leaves_one_curve(plain, data, tmp_path, torn):
    values = tiny.settings(tmp_path, data=data, eval_every=3)
    assert tiny.engine(values, tiny.StopAt(4)) == 75
    # what a killed process leaves: lines beyond the checkpoint, a torn one, half a checkpoint
    with (tmp_path / "metrics.jsonl").open("ab") as file:
        file.write(json.dumps({"step": 5, "loss": 9.9}).encode() + b"\n" + torn)
    (tmp_path / "checkpoints" / "step-000005.partial").mkdir()
    assert tiny.engine(values) == 0
    assert tiny.metrics(tmp_path) == tiny.metrics(plain)


def test_a_model_that_cannot_be_written_ends_in_one_line(data, tmp_path):
    (tmp_path / "export.partial").write_text("no folder can be made here")
    with pytest.raises(
        TrainingError, match="has ended, but its model could not be written: .*export.partial"
    ):
        tiny.engine(tiny.settings(tmp_path, data=data, steps=1))


def test_the_same_run_twice_gives_the_same_bytes(plain, data, tmp_path):
    assert tiny.engine(tiny.settings(tmp_path, data=data, eval_every=3)) == 0
    for name in ("export/model.safetensors", "export/config.json"):
        assert (tmp_path / name).read_bytes() == (plain / name).read_bytes()


@pytest.mark.parametrize("micro", [1, 2])
def test_micro_steps_add_up_to_the_same_gradient(plain, data, tmp_path, micro):
    assert tiny.engine(tiny.settings(tmp_path, data=data, micro_batch_size=micro)) == 0
    ours = [line for line in tiny.metrics(tmp_path) if "loss" in line]
    whole = [line for line in tiny.metrics(plain) if "loss" in line]
    for a, b in zip(ours, whole, strict=True):
        assert a["loss"] == pytest.approx(b["loss"], rel=1e-4)
        assert a["grad_norm"] == pytest.approx(b["grad_norm"], rel=1e-3)


def test_data_that_changed_is_refused(plain, data, tmp_path, capsys):
    values = tiny.settings(tmp_path, data=data)
    assert tiny.engine(values, tiny.StopAt(2)) == 75
    with pytest.raises(ValueError, match="other data"):
        tiny.engine({**values, "data": {"files": data["files"][:1]}})


def naive_loss(lm: SteelForCausalLM, batch) -> torch.Tensor:
    """The definition: logits of every position, the mean of -log p over the labels."""
    logits = lm(batch.input_ids, doc_index=batch.doc_index, position_ids=batch.position_ids).logits
    return F.cross_entropy(logits.flatten(0, 1), batch.labels.flatten(), ignore_index=-100)


def test_losses_are_those_of_the_definition(plain, data):
    lm = SteelForCausalLM.from_pretrained(plain / "export").eval()
    by_source = [line for line in tiny.metrics(plain) if "val_loss" in line][-1]["val_loss_by_source"]
    for file in data["val_files"]:
        loader = BlockLoader([file], seed=0, batch_size=1)
        batches = [loader.batch(step)[0] for step in range(loader.blocks_per_epoch)]
        targets = sum(b.targets for b in batches)
        with torch.no_grad():
            total = sum(naive_loss(lm, b) * b.targets for b in batches)
        assert by_source[file["source"]] == pytest.approx(total.item() / targets, rel=1e-5)


def test_only_the_masks_targets_count(plain, tmp_path):
    data = {"files": [tiny.shard(tmp_path / "masked.arrow", 8, masked=True)]}
    values = tiny.settings(
        tmp_path, objective="sft", data=data, steps=1, log_every=1, init_from=str(plain / "export")
    )
    assert tiny.engine(values) == 0
    lm = SteelForCausalLM.from_pretrained(plain / "export").eval()
    batch = BlockLoader(data["files"], seed=1234, batch_size=4).batch(0)[0]
    assert 0 < batch.targets < 0.6 * batch.labels.numel()
    assert tiny.metrics(tmp_path)[0]["loss"] == pytest.approx(naive_loss(lm, batch).item(), rel=1e-5)


def test_bf16_follows_fp32(plain, data, tmp_path):
    assert tiny.engine(tiny.settings(tmp_path, data=data, precision="bf16")) == 0
    ours, exact = tiny.metrics(tmp_path)[-1], [line for line in tiny.metrics(plain) if "loss" in line][-1]
    assert ours["val_loss"] == pytest.approx(tiny.metrics(plain)[-1]["val_loss"], rel=0.01)
    assert exact["step"] == ours["step"]


@pytest.mark.parametrize("tied", [False, True])
def test_the_engine_is_a_plain_loop_over_the_definition(data, tmp_path, tied):
    geometry = {**tiny.MODEL, "tie_word_embeddings": tied, "embedding_multiplier": 2.0}
    optim = OptimConfig(lr=3e-3, warmup_steps=2, weight_decay=0.1, grad_clip=0.5)
    values = tiny.settings(tmp_path, data={"files": data["files"]}, model=geometry, steps=4)
    assert tiny.engine({**values, "optim": asdict(optim)}) == 0

    lm = SteelForCausalLM(SteelConfig(**geometry))
    fresh = from_seed(lm.config, lm, seed=1234)
    with torch.no_grad():
        for name, parameter in lm.named_parameters():
            parameter.copy_(fresh(name))
    optimizer = make_optimizer(lm, optim)
    loader = BlockLoader(data["files"], seed=1234, batch_size=4)
    for step in range(4):
        naive_loss(lm, loader.batch(step)[0]).backward()
        torch.nn.utils.clip_grad_norm_(lm.parameters(), 0.5)
        optimizer.param_groups[0]["lr"] = optimizer.param_groups[1]["lr"] = learning_rate(optim, step, 4)
        optimizer.step()
        optimizer.zero_grad()
    ours = tiny.weights(tmp_path)
    for name, parameter in lm.named_parameters():
        # Adam divides by the gradient's own size, so rounding may move an entry whose gradient is nearly zero
        close = np.isclose(ours[name], parameter.detach().numpy(), rtol=1e-3, atol=1e-4)
        assert close.mean() > 0.995, name
