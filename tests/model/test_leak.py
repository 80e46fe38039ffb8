"""The loss of the prefix alone finds a leak, and finds none where there is none."""

import numpy as np
import pytest
import torch

from model.leak import losses
from model.steel import SteelConfig, SteelForCausalLM
from tests.support.engine_helpers import BLOCK, MODEL, shard


def model(ffn: str) -> SteelForCausalLM:
    torch.manual_seed(5)
    config = SteelConfig(**{**MODEL, "ffn": ffn, "initializer_range": 0.3})
    return SteelForCausalLM(config).eval()


@pytest.fixture
def files(tmp_path):
    return [shard(tmp_path / "a.arrow", 7), shard(tmp_path / "b.arrow", 4, seed=1)]


@pytest.mark.parametrize("ffn", ["dense", "token", "merge", "prefix"])
def test_a_causal_kind_scores_the_same_on_the_prefix_alone(files, ffn):
    found = losses(model(ffn), files, rows=11, positions=5, seed=0, batch_rows=4)
    np.testing.assert_allclose(found.honest, found.forced, atol=2e-5)
    assert np.ptp(found.forced) > 0.1  # the targets differ, so equality is no accident


def test_a_kind_that_sees_the_future_does_not(files):
    found = losses(model("paper"), files, rows=11, positions=BLOCK, seed=0)
    assert abs(found.honest - found.forced).max() > 1e-3


def test_targets_are_the_rows_own_and_never_padding_or_a_documents_first_token(files):
    from model.training.batch import IGNORED
    from model.training.loader import val_batches

    (whole,) = val_batches(files, 11)
    found = losses(model("dense"), files, rows=11, positions=BLOCK, seed=0)
    assert len(found.forced) == int((whole.labels != IGNORED).sum())


def test_fewer_rows_are_spread_over_all_files(files):
    few = losses(model("dense"), files, rows=2, positions=BLOCK, seed=0)
    assert 0 < len(few.forced) <= 2 * BLOCK


def test_places_without_a_target_are_an_error(tmp_path):
    from model.training.shards import Row, write_shard

    path = tmp_path / "empty.arrow"
    tokens = np.zeros(BLOCK + 1, np.uint32)
    write_shard(path, [Row(tokens, np.array([0], np.int32), [bytes(16)], 1)], BLOCK)
    with pytest.raises(ValueError, match="target"):
        losses(model("dense"), [{"path": str(path)}], rows=1, positions=4, seed=0)
