"""Preference pairs: log-probabilities as defined, ln 2 at the start, and rewards that part."""

import math

import numpy as np
import pyarrow as pa
import pytest
import torch

from model.steel import SteelForCausalLM
from model.training.loader import DataError
from model.training.pairs import Pair, PairLoader, read_logprobs, write_pairs
from tests.support import engine_helpers as tiny


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    """A model to start from, pairs, and the reference's log-probabilities."""
    folder = tmp_path_factory.mktemp("base")
    data = {"files": [tiny.shard(folder / "a.arrow", 12)]}
    assert tiny.engine(tiny.settings(folder, data=data, steps=2)) == 0
    tiny.pairs(folder / "pairs.arrow", 22)
    tiny.pairs(folder / "held_out.arrow", 5, seed=1)
    files = [{"path": str(folder / name)} for name in ("pairs.arrow", "held_out.arrow")]
    values = tiny.settings(
        folder / "reference",
        objective="logprobs",
        data={"files": files},
        batch_size=5,
        steps=None,
        init_from=str(folder / "export"),
    )
    assert tiny.engine(values) == 0
    return folder


def dpo(base, work, **more):
    return tiny.settings(
        work,
        objective="dpo",
        init_from=str(base / "export"),
        data={
            "files": [{"path": str(base / "pairs.arrow")}],
            "val_files": [{"path": str(base / "held_out.arrow"), "source": "held-out"}],
        },
        dpo={"beta": 0.5, "reference": str(base / "reference" / "logprobs.arrow"), **more.pop("dpo", {})},
        **{"log_every": 1, **more},
    )


def table(path):
    with pa.memory_map(str(path)) as source:
        return pa.ipc.open_file(source).read_all().to_pylist()


def test_logprobs_are_those_of_each_reply_alone(base):
    lm = SteelForCausalLM.from_pretrained(base / "export").eval()
    found = {row["id"]: row for row in read_logprobs(base / "reference" / "logprobs.arrow").to_pylist()}
    rows = [*table(base / "pairs.arrow"), *table(base / "held_out.arrow")]
    assert list(found) == [row["id"] for row in rows]
    for row in rows:
        for side in ("chosen", "rejected"):
            ids = torch.tensor([row["prompt"] + row[side]])
            with torch.no_grad():
                logp = lm(ids).logits[0].log_softmax(-1)
            start = len(row["prompt"]) - 1
            expected = sum(logp[start + i, t].item() for i, t in enumerate(row[side]))
            assert found[row["id"]][side] == pytest.approx(expected, rel=1e-4)
            assert found[row["id"]][f"{side}_tokens"] == len(row[side])


def test_loss_starts_at_ln_2_and_rewards_part(base, tmp_path):
    assert tiny.engine(dpo(base, tmp_path, steps=12)) == 0
    lines = [line for line in tiny.metrics(tmp_path) if "loss" in line]
    assert lines[0]["loss"] == pytest.approx(math.log(2), abs=1e-5)
    assert lines[0]["rewards/margins"] == pytest.approx(0, abs=1e-4)
    assert lines[-1]["loss"] < 0.6
    assert lines[-1]["rewards/margins"] > 0.1
    assert lines[-1]["rewards/accuracies"] > 0.9
    assert lines[-1]["rewards/margins"] == pytest.approx(
        lines[-1]["rewards/chosen"] - lines[-1]["rewards/rejected"], abs=1e-5
    )
    held_out = [line["val_loss"] for line in tiny.metrics(tmp_path) if "val_loss" in line]
    assert held_out[-1] < math.log(2)


@pytest.mark.parametrize("nll_weight", [0.0, 0.3])
def test_micro_steps_and_resume_change_nothing(base, tmp_path, nll_weight):
    more = {"dpo": {"nll_weight": nll_weight}, "steps": 5}
    assert tiny.engine(dpo(base, tmp_path / "plain", **dict(more))) == 0
    assert tiny.engine(dpo(base, tmp_path / "micro", micro_batch_size=1, **dict(more))) == 0
    values = dpo(base, tmp_path / "resumed", **dict(more))
    assert tiny.engine(values, tiny.StopAt(3)) == 75
    assert tiny.engine(values) == 0
    assert tiny.metrics(tmp_path / "resumed") == tiny.metrics(tmp_path / "plain")
    plain, micro, resumed = (tiny.weights(tmp_path / name) for name in ("plain", "micro", "resumed"))
    for name, weight in plain.items():
        assert np.array_equal(weight, resumed[name])
        np.testing.assert_allclose(weight, micro[name], atol=2e-3)
    for a, b in zip(tiny.metrics(tmp_path / "plain"), tiny.metrics(tmp_path / "micro"), strict=True):
        assert a.get("loss", 0) == pytest.approx(b.get("loss", 0), rel=1e-3)


def test_every_pair_once_an_epoch_whatever_the_ranks(base):
    files = [{"path": str(base / "pairs.arrow")}]
    alone = PairLoader(files, seed=3, batch_size=11)
    order = [i for step in range(2) for b in alone.batch(step) for i in b.index.tolist()]
    assert sorted(order) == list(range(22))
    assert order != sorted(order)
    tiny.pairs(base / "more.arrow", 4, seed=9)
    two = [
        PairLoader(files, seed=3, batch_size=22, rank=r, world_size=2, micro_batch_size=11) for r in (0, 1)
    ]
    assert [i for loader in two for b in loader.batch(0) for i in b.index.tolist()] == order


def test_a_pair_of_many_lengths_is_packed_exactly(base):
    (batch,) = PairLoader([{"path": str(base / "pairs.arrow")}], seed=3, batch_size=22).batch(0)
    rows = table(base / "pairs.arrow")
    assert batch.input_ids.shape[0] < 44
    assert batch.targets == sum(len(row["chosen"]) + len(row["rejected"]) for row in rows)
    for i, number in enumerate(batch.index.tolist()):
        for side, name in enumerate(("chosen", "rejected")):
            mine = batch.labels[batch.labels != -100][batch.reply_of_target == 2 * i + side]
            assert mine.tolist() == rows[number][name]


def test_pairs_that_cannot_be_used_are_refused(base, tmp_path):
    with pytest.raises(DataError, match="empty"):
        write_pairs(tmp_path / "x.arrow", [Pair("1", [1], [], [2])])
    with pytest.raises(DataError, match="same id"):
        write_pairs(tmp_path / "x.arrow", [Pair("1", [1], [2], [3])] * 2)
    tiny.pairs(tmp_path / "others.arrow", 2, seed=7)
    reference = base / "reference" / "logprobs.arrow"
    with pytest.raises(DataError, match="no log-probabilities for 2 pairs"):
        PairLoader([{"path": str(tmp_path / "others.arrow")}], seed=0, batch_size=2, reference=reference)
