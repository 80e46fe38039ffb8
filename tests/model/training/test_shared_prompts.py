"""Replies behind one copy of their prompt: the same log-probabilities and gradients as each behind its own."""

import numpy as np
import pytest
import torch

from model.families.attention import PackedRows
from model.steel.attention import Documents
from model.training import grpo, pairs
from model.training.grpo import Group, batch_of
from model.training.objectives import Scorer
from model.training.pairs import PairLoader
from model.training.sequences import WIDE, pack
from tests.support import engine_helpers as tiny
from tests.support import rl
from tests.support.families import MODELS, built
from tests.support.kinds import model as steel

PROMPTS = [[5, 6, 7], [5, 6, 7], [9], [9], [5, 6, 7], list(range(1, 90))]
REPLIES = [[11, 12], [13], [21], [22, 23, 24], [11], [31, 32]]


def test_by_hand():
    packed = pack(PROMPTS[:4], REPLIES[:4], share=True)
    # sequences 0 and 1 behind 5 6; 2 and 3 share nothing but their last prompt token, which each has
    assert packed.input_ids[0, :9].tolist() == [5, 6, 7, 11, 7, 9, 9, 22, 23]
    assert packed.labels[0, :9].tolist() == [-100, -100, 11, 12, 13, 21, 22, 23, 24]
    assert packed.position_ids[0, :9].tolist() == [0, 1, 2, 3, 2, 0, 0, 1, 2]
    assert packed.branch_index[0, :9].tolist() == [0, 0, 1, 1, 2, 1, 2, 2, 2]
    assert packed.doc_index[0, :10].tolist() == [0] * 5 + [1] * 4 + [2]
    assert packed.owner.tolist() == [0, 0, 1, 2, 3, 3, 3]


def test_who_sees_whom():
    packed = pack([[5, 6, 7]] * 2, [[11, 12], [13]], share=True)
    mask = Documents.of(packed.doc_index, torch.float32, branch_index=packed.branch_index, chunked=False).mask
    seen = (mask[0, 0, :6, :6] == 0).int().tolist()
    assert seen == [
        [1, 0, 0, 0, 0, 0],
        [1, 1, 0, 0, 0, 0],
        [1, 1, 1, 0, 0, 0],
        [1, 1, 1, 1, 0, 0],
        [1, 1, 0, 0, 1, 0],
        [0, 0, 0, 0, 0, 1],
    ]


def test_only_neighbours_with_one_prompt_share_it_and_nothing_is_lost():
    packed, alone = (pack(PROMPTS, REPLIES, share=share) for share in (True, False))
    assert alone.branch_index is None
    assert packed.doc_index.max() == 4, "four prompts, and padding"
    for number, reply in enumerate(REPLIES):
        for each in (packed, alone):
            assert each.labels[each.labels != -100][each.owner == number].tolist() == reply


def test_a_document_does_not_grow_without_a_bound():
    prompt, replies = list(range(200)), [[7] * 300 for _ in range(9)]
    packed = pack([prompt] * 9, replies, share=True)
    longest = max(np.bincount(row).max() for row in packed.doc_index.numpy())
    assert 200 < longest <= WIDE
    assert packed.input_ids.numel() < pack([prompt] * 9, replies).input_ids.numel()
    # two replies always fit: a pair of any length shares its prompt
    long = pack([prompt * 6] * 2, replies[:2], share=True)
    assert long.input_ids.shape[0] == 1


def test_rows_are_as_wide_as_they_fill_best():
    assert pack([[1] * 60] * 8, [[2] * 12] * 8).input_ids.numel() <= 640, "128 wide they took 1,024 positions"


def together(scorer, packed, replies):
    """log p of every target by sequence, and the gradients of their weighted sum."""
    scorer.zero_grad()
    batch = pairs.PairBatch(
        packed.input_ids, packed.labels, packed.position_ids, packed.doc_index, packed.branch_index, packed.owner,
        *[torch.zeros(0)] * 2, torch.zeros(replies // 2), torch.zeros(0),
    )  # fmt: skip
    logp = scorer(batch, per_token=True)
    (logp * (1 + packed.owner)).sum().backward()
    gradients = {n: p.grad.clone() for n, p in scorer.named_parameters() if p.grad is not None}
    return torch.cat([logp[packed.owner == n] for n in range(replies)]), gradients


def same(scorer):
    made = []
    rng = np.random.default_rng(0)
    prompts = [list(rng.integers(1, tiny.VOCAB, n)) for n in (30, 3, 20)]
    prompts = [prompts[i] for i in (0, 0, 1, 1, 1, 2)]
    replies = [list(rng.integers(1, tiny.VOCAB, n)) for n in (20, 33, 1, 7, 30, 5)]
    for share in (True, False):
        packed = pack(prompts, replies, share=share)
        assert (packed.branch_index is not None) == share
        made.append(together(scorer, packed, len(replies)))
    (logp, gradients), (alone, others) = made
    torch.testing.assert_close(logp, alone, rtol=0, atol=2e-5)
    assert gradients.keys() == others.keys()
    for name, gradient in gradients.items():
        torch.testing.assert_close(gradient, others[name], rtol=1e-4, atol=2e-4)


@pytest.mark.parametrize("attention", ["sdpa", "eager", "masked"])
@pytest.mark.parametrize("ffn", ["token", "dense"])
def test_the_same_numbers(ffn, attention):
    lm = steel(ffn, vocab_size=tiny.VOCAB)
    lm.set_attn_implementation("eager" if attention == "eager" else "sdpa")
    lm.model.chunk_documents = attention == "sdpa"
    same(Scorer(lm))


@pytest.mark.parametrize("name", MODELS)
def test_the_same_numbers_of_other_models(name):
    scorer = built(MODELS[name])
    assert scorer(None) is True, "the probe finds branches exact"
    same(scorer)


def test_the_probe_finds_branches_that_see_each_other(monkeypatch):
    scorer = built(MODELS["llama"])
    made = PackedRows.__init__

    def blind(self, *arguments):
        made(self, *arguments)
        self.branch_index = None

    monkeypatch.setattr(PackedRows, "__init__", blind)
    assert scorer(None) is False


@pytest.mark.parametrize("ffn", ["prefix", "merge", "paper", "released"])
def test_a_kind_that_looks_at_several_tokens_has_no_branches(ffn):
    packed = pack(PROMPTS[:2], REPLIES[:2], share=True)
    with pytest.raises(ValueError, match=f"{ffn} looks at several tokens"):
        steel(ffn, vocab_size=tiny.VOCAB).model(
            input_ids=packed.input_ids, position_ids=packed.position_ids, doc_index=packed.doc_index,
            branch_index=packed.branch_index,
        )  # fmt: skip


def test_kernels_of_whole_sequences_have_none():
    index = torch.zeros(1, 4, dtype=torch.int32)
    with pytest.raises(ValueError, match="varlen has no branches"):
        Documents.of(index, torch.bfloat16, "varlen", branch_index=index)


def test_groups_share_their_prompt():
    group = Group([4, 5, 6], [[7, 9], [8, 9], [7, 9]], [1.0, 0.0, 1.0], [True] * 3)
    shared, alone = (batch_of([group], share_prompts=share) for share in (True, False))
    assert (shared.doc_index == 0).sum() == 6
    assert (alone.doc_index == 0).sum() == 4
    assert shared.copies.tolist() == alone.copies.tolist() == [2, 2, 1, 1]
    assert shared.advantage.tolist() == alone.advantage.tolist()


def test_dpo_and_grpo_learn_the_same(tmp_path, monkeypatch):
    """In the engine, from the reference's log-probabilities to the weights."""
    base = rl.base(tmp_path / "base")
    seen = []

    def watched(*arguments, share=False):
        packed = pack(*arguments, share=share and not off)
        seen.append(packed.branch_index is not None)
        return packed

    monkeypatch.setattr(pairs, "pack", watched)
    monkeypatch.setattr(grpo, "pack", watched)
    tiny.pairs(tmp_path / "pairs.arrow", 12)
    file = {"files": [{"path": str(tmp_path / "pairs.arrow")}]}
    for off in (False, True):
        work = tmp_path / ("alone" if off else "shared")
        common = {"init_from": str(base / "export"), "model": None, "data": file, "batch_size": 6}
        assert tiny.engine(tiny.settings(work / "ref", objective="logprobs", **common)) == 0
        dpo = {"reference": str(work / "ref/logprobs.arrow"), "beta": 0.1}
        assert tiny.engine(tiny.settings(work / "dpo", objective="dpo", steps=4, dpo=dpo, **common)) == 0
        assert tiny.engine(rl.settings(base, work / "rl", steps=3)) == 0
        assert any(seen) != off
        seen.clear()
    for stage in ("dpo", "rl"):
        shared, alone = (tiny.weights(tmp_path / name / stage) for name in ("shared", "alone"))
        for name, weight in shared.items():
            np.testing.assert_allclose(weight, alone[name], atol=5e-4)  # AdamW turns rounding into steps


def test_a_loader_shares_only_when_told(tmp_path):
    tiny.pairs(tmp_path / "pairs.arrow", 4)
    loader = PairLoader([{"path": str(tmp_path / "pairs.arrow")}], seed=0, batch_size=4)
    assert loader.batch(0)[0].branch_index is None
    loader.share_prompts = True
    assert loader.batch(0)[0].branch_index is not None
