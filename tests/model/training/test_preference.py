"""The losses of DPO by their formulas, and GRPO's batch and loss by hand."""

import math
from types import SimpleNamespace

import pytest
import torch

from model.training.config import ConfigError, DpoConfig, from_dict
from model.training.grpo import Group, Grpo, batch_of
from model.training.loader import DataError
from model.training.pairs import read_logprobs
from model.training.preference import Dpo, reply_logprobs

CHANGE = torch.tensor([[2.0, -1.0], [-3.0, 1.0]], dtype=torch.float64)
TOKENS = torch.tensor([[4.0, 2.0], [3.0, 5.0]])


def loss(**more):
    return Dpo(SimpleNamespace(dpo=DpoConfig(beta=0.5, **more))).loss(CHANGE, TOKENS).tolist()


def softplus(x):
    return math.log1p(math.exp(x))


def test_the_losses_by_their_formulas():
    deltas = [3.0, -4.0]
    means = [2 / 4 + 1 / 2, -3 / 3 - 1 / 5]
    assert loss() == pytest.approx([softplus(-0.5 * d) for d in deltas])
    assert loss(loss="sigmoid_norm") == pytest.approx([softplus(-0.5 * d) for d in means])
    assert loss(loss="ipo") == pytest.approx([(d - 1.0) ** 2 for d in means])
    smooth = [0.9 * softplus(-0.5 * d) + 0.1 * softplus(0.5 * d) for d in deltas]
    assert loss(label_smoothing=0.1) == pytest.approx(smooth)


def test_replies_are_summed_in_fp64():
    logp = torch.full((100_000,), -0.1, dtype=torch.float32)
    batch = SimpleNamespace(pairs=1, reply_of_target=torch.zeros(100_000, dtype=torch.int64))
    summed = reply_logprobs(lambda *_, **__: logp, batch)[0, 0]
    assert summed.dtype == torch.float64
    assert summed.item() == pytest.approx(float(logp[0].double()) * 100_000, rel=1e-12)


@pytest.mark.parametrize(
    ("dpo", "reason"),
    [
        ({"loss": "hinge"}, "dpo.loss: hinge is unknown"),
        ({"loss": "ipo", "label_smoothing": 0.1}, "not for the loss ipo"),
    ],
)
def test_what_dpo_cannot_do_is_refused(dpo, reason):
    values = {
        "objective": "dpo", "work_dir": "/w", "init_from": "/m", "steps": 1, "data": {"files": [{"path": "p"}]},
        "dpo": {"reference": "r", **dpo},
    }  # fmt: skip
    with pytest.raises(ConfigError, match=reason):
        from_dict(values)


def test_equal_replies_are_one_sequence_and_masked_ones_none():
    group = Group(
        [1, 2], [[7, 9], [8, 9], [7, 9], [5, 5, 5]], [1.0, 0.0, 1.0, 0.0], [True, True, True, False]
    )
    idle = Group([3], [[7, 9], [8, 9]], [1.0, 1.0], [True, True])
    batch = batch_of([idle, group])
    assert batch.replies == 2
    assert batch.copies.tolist() == [2, 2, 1, 1]
    std = torch.tensor([1.0, 0, 1, 0]).std().item()
    assert batch.advantage.tolist() == pytest.approx([0.5 / (std + 1e-4)] * 2 + [-0.5 / (std + 1e-4)] * 2)
    assert batch.labels[batch.labels != -100].tolist() == [7, 9, 8, 9]
    assert batch_of([idle]).copies.sum() == 0


def test_the_clipped_loss_by_hand():
    batch = batch_of([Group([1], [[7], [8], [6]], [1.0, 0.0, 1.0], [True] * 3)])
    a = batch.advantage
    ratio = torch.tensor([1.5, 0.5, 1.1])
    logp = ratio.log().requires_grad_()
    total, shown = Grpo(0.2, 0.28)(logp, torch.zeros(3), None, batch)
    by_hand = -(1.28 * a[0] + 0.8 * a[1] + 1.1 * a[2])
    assert total.item() == pytest.approx(by_hand.item(), rel=1e-6)
    assert shown.tolist()[2:] == [1, 1, 2]
    total.backward()
    # what is clipped has no gradient
    assert logp.grad.tolist() == pytest.approx([0, 0, -(1.1 * a[2]).item()], rel=1e-6)


def test_the_divergence_from_the_start_is_k3():
    batch = batch_of([Group([1], [[7], [8]], [1.0, 0.0], [True] * 2)])
    logp, start = torch.tensor([-1.0, -2.0]), torch.tensor([-1.5, -1.0])
    plain, _ = Grpo()(logp, logp, None, batch)
    total, shown = Grpo(kl_weight=0.1)(logp, logp, start, batch)
    k3 = [math.exp(-0.5) + 0.5 - 1, math.exp(1) - 1 - 1]
    assert shown[1].item() == pytest.approx(sum(k3), rel=1e-5)
    assert (total - plain).item() == pytest.approx(0.1 * sum(k3), rel=1e-5)


def test_a_folder_in_the_place_of_a_file_is_one_line(tmp_path):
    with pytest.raises(DataError, match="is no Arrow file"):
        read_logprobs(tmp_path)
