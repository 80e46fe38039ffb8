"""NEFTune's noise: its size, its place, and that it is the same on every way to a step."""

import math

import numpy as np
import pytest
import torch
from torch import nn

from model.training.batch import Batch
from model.training.config import ConfigError
from model.training.loader import BlockLoader
from model.training.neftune import Neftune, lengths, noise
from tests.support import engine_helpers as tiny

ALPHA, WIDTH = 5.0, 32


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    folder = tmp_path_factory.mktemp("data")
    return {
        "files": [tiny.shard(folder / "a.arrow", 10, masked=True)],
        "val_files": [tiny.shard(folder / "v.arrow", 3, seed=7, masked=True)],
    }


@pytest.fixture(scope="module")
def run(data, tmp_path_factory):
    """Settings -> the folder of a run with them."""
    made = {}

    def of(**more):
        key = str(sorted(more.items()))
        if key not in made:
            work = made[key] = tmp_path_factory.mktemp("run")
            assert tiny.engine(settings(work, data, **more)) == 0
        return made[key]

    return of


def settings(work, data, **more):
    return tiny.settings(work, objective="sft", data=data, eval_every=2, **more)


def a_batch(data, micro=None):
    loader = BlockLoader(data["files"], seed=1, batch_size=4, micro_batch_size=micro)
    return loader.batch(0)


def test_the_noise_is_uniform_within_the_bound_of_its_document(data):
    (batch,) = a_batch(data)
    found = torch.cat([noise(batch, step, WIDTH, ALPHA, 1) for step in range(60)], dim=2)
    for row in range(4):
        starts = [int(s) % 25 for s in batch.starts if s // 25 == row]
        valid = int(batch.valid[row])
        for start, end in zip(starts, [*starts[1:], valid], strict=True):
            part = found[row, start : min(end, 24)]
            bound = ALPHA / math.sqrt((end - start) * WIDTH)
            assert (lengths(batch)[row, start:end] == end - start).all()
            assert part.abs().max() <= bound
            assert part.abs().max() > 0.98 * bound
            assert part.mean().abs() < 0.05 * bound
            assert part.std().item() == pytest.approx(bound / math.sqrt(3), rel=0.05)
        assert not found[row, valid:].any()


def test_steps_rows_and_seeds_have_noise_of_their_own(data):
    (batch,) = a_batch(data)
    first = noise(batch, 0, WIDTH, ALPHA, 1)
    assert torch.equal(first, noise(batch, 0, WIDTH, ALPHA, 1))
    assert not torch.equal(first, noise(batch, 1, WIDTH, ALPHA, 1))
    assert not torch.equal(first, noise(batch, 0, WIDTH, ALPHA, 2))
    scaled = first * lengths(batch).sqrt().unsqueeze(2)
    assert not torch.isclose(scaled[0, 0], scaled[1, 0]).any()


def test_how_a_batch_is_cut_does_not_change_the_noise(data):
    (whole,) = a_batch(data)
    parts = [noise(batch, 3, WIDTH, ALPHA, 1) for batch in a_batch(data, micro=1)]
    assert torch.equal(noise(whole, 3, WIDTH, ALPHA, 1), torch.cat(parts))


def test_only_within_a_training_step_is_there_noise(data):
    class Tiny(nn.Module):
        def __init__(self):
            super().__init__()
            self.embed = nn.Embedding(300, WIDTH)

        def get_input_embeddings(self):
            return self.embed

    batch: Batch
    (batch,) = a_batch(data)
    lm = Tiny()
    clean = lm.embed(batch.input_ids)
    neftune = Neftune(lm, ALPHA, 1)
    assert torch.equal(lm.embed(batch.input_ids), clean)
    with neftune.on(batch, 4):
        assert torch.equal(lm.embed(batch.input_ids), clean + noise(batch, 4, WIDTH, ALPHA, 1))
    assert torch.equal(lm.embed(batch.input_ids), clean)
    Neftune(still := Tiny(), 0.0, 1)
    assert not still.embed._forward_hooks


@pytest.mark.parametrize("stopped_before", [2, 3])
def test_stopped_and_resumed_is_uninterrupted_to_the_bit(run, data, tmp_path, stopped_before):
    values = settings(tmp_path, data, neftune_alpha=ALPHA)
    assert tiny.engine(values, tiny.StopAt(stopped_before)) == 75
    assert tiny.engine(values) == 0
    assert_same(tmp_path, run(neftune_alpha=ALPHA))


def assert_same(one, two):
    assert (one / "export" / "model.safetensors").read_bytes() == (
        two / "export" / "model.safetensors"
    ).read_bytes()
    assert tiny.metrics(one)[-1] == tiny.metrics(two)[-1]


def test_without_noise_nothing_changes_and_with_it_something_does(run):
    assert_same(run(), run(neftune_alpha=0.0))
    plain, noisy = tiny.weights(run()), tiny.weights(run(neftune_alpha=ALPHA))
    assert any(not np.array_equal(plain[name], noisy[name]) for name in plain)


def test_micro_steps_see_the_same_noise(run):
    whole, parts = run(neftune_alpha=ALPHA), run(neftune_alpha=ALPHA, micro_batch_size=1)
    for name, weight in tiny.weights(whole).items():
        np.testing.assert_allclose(weight, tiny.weights(parts)[name], atol=2e-4)


def test_a_resumed_run_with_other_noise_is_refused(data, tmp_path):
    assert tiny.engine(settings(tmp_path, data, neftune_alpha=ALPHA), tiny.StopAt(3)) == 75
    with pytest.raises(ConfigError, match="neftune_alpha was 5.0, is 0.0"):
        tiny.engine(settings(tmp_path, data))


@pytest.mark.parametrize("more", [{"neftune_alpha": -1.0}, {"neftune_alpha": 5.0, "objective": "pretrain"}])
def test_noise_is_for_sft(more, data, tmp_path):
    with pytest.raises(ConfigError, match="neftune_alpha"):
        tiny.engine({**settings(tmp_path, data), **more})
