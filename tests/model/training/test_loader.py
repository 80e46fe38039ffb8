"""The loader: the same stream whoever reads it, targets where they belong, other data refused."""

import json
from collections import Counter

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from model.training.loader import BlockLoader, DataError, val_batches
from model.training.shards import Row, write_shard
from tests.support.shard_helpers import PADDING, make_file, make_rows

BLOCK = 8


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """Three shards: 7, 5 and 4 rows, seen 1, 3 and 0 times; then 6 rows, seen twice."""
    folder = tmp_path_factory.mktemp("shards")
    made = []
    for name, rows, repeats, base in (("a", 7, 1, 0), ("b", 5, 3, 100), ("c", 4, 0, 200), ("d", 6, 2, 300)):
        info = make_file(folder / f"{name}.arrow", rows, BLOCK, base)
        made.append(
            {"path": str(folder / info.file), "repeats": repeats, "rows": rows, "digest": info.digest}
        )
    return made


def firsts(batches):
    """The first token of every row tells which row it is."""
    return [int(t) for batch in batches for t in batch.input_ids[:, 0]]


def stream(files, steps, world=1, micro=None, batch_size=4, **options):
    """The rows of each step, all ranks together, in the order of ranks."""
    made = {}
    for rank in range(world):
        loader = BlockLoader(
            files,
            seed=5,
            batch_size=batch_size,
            rank=rank,
            world_size=world,
            micro_batch_size=micro,
            **options,
        )
        for step in steps:
            made.setdefault(step, []).extend(firsts(loader.batch(step)))
    return made


def test_every_block_is_seen_exactly_as_often_as_its_repeats(files):
    loader = BlockLoader(files[:3], seed=5, batch_size=2)
    assert loader.blocks_per_epoch == 7 + 15
    assert loader.steps_per_epoch == 11
    for epoch in range(3):
        seen = Counter(x for s in range(11) for x in firsts(loader.batch(epoch * 11 + s)))
        assert seen == {**dict.fromkeys(range(7), 1), **dict.fromkeys(range(100, 105), 3)}


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_world_size_and_micro_batch_do_not_change_the_stream(files, data):
    batch_size = data.draw(st.sampled_from([4, 8, 12]))
    world = data.draw(st.sampled_from([w for w in (1, 2, 3, 4, 6) if batch_size % w == 0]))
    share = batch_size // world
    micro = data.draw(st.sampled_from([m for m in range(1, share + 1) if share % m == 0]))
    steps = range(data.draw(st.integers(0, 20)), 24)  # a resume reads only the later steps
    reference = stream(files, range(24), batch_size=batch_size)
    resumed = stream(files, steps, world, micro, batch_size)
    assert resumed == {s: reference[s] for s in steps}


def test_resume_with_another_batch_size_goes_on_from_the_same_block(files):
    whole = [x for s in stream(files, range(30), batch_size=2).values() for x in s]
    state = BlockLoader(files, seed=5, batch_size=2).state(10)
    later = stream(files, range(10, 20), world=2, batch_size=4, state=state)
    assert [x for s in later.values() for x in s] == whole[20:60]


def test_append_keeps_what_was_consumed_and_mixes_the_rest(files):
    old = BlockLoader(files[:2], seed=5, batch_size=2)  # 22 blocks an epoch
    read = [x for s in range(4) for x in firsts(old.batch(s))]
    state = old.state(4)
    new = BlockLoader(files, seed=5, batch_size=2, state=state, append=True)
    assert new.blocks_per_epoch == 22 + 12
    rest = [x for s in range(4, 17) for x in firsts(new.batch(s))]
    due = {
        **dict.fromkeys(range(7), 1),
        **dict.fromkeys(range(100, 105), 3),
        **dict.fromkeys(range(300, 306), 2),
    }
    assert Counter(read + rest) == due
    # the appended run resumes by itself, without asking again
    again = BlockLoader(files, seed=5, batch_size=2, state=new.state(9))
    assert firsts(again.batch(12)) == firsts(new.batch(12))
    assert len(new.state(9)["history"]) == 2


def test_state_is_small_the_same_on_every_rank_and_checked(files):
    one = BlockLoader(files, seed=5, batch_size=4)
    other = BlockLoader(files, seed=5, batch_size=4, rank=1, world_size=2)
    state = one.state(13)
    assert state == other.state(13)
    assert (state["position"], state["epoch"], state["position_in_epoch"]) == (52, 1, 52 - 34)
    again = BlockLoader(files, seed=5, batch_size=4, state=state)
    assert firsts(again.batch(13)) == firsts(one.batch(13))
    assert json.loads(json.dumps(state)) == state
    with pytest.raises(DataError, match="trained on other data"):
        BlockLoader(files[:2], seed=5, batch_size=4, state=state)
    with pytest.raises(DataError, match="seed is 5, this run's is 6"):
        BlockLoader(files, seed=6, batch_size=4, state=state)
    with pytest.raises(DataError, match="step 12 lies before it"):
        BlockLoader(files, seed=5, batch_size=2, state=state).batch(12)
    repeated = [{**files[0], "repeats": 2}, *files[1:]]
    with pytest.raises(DataError, match="repeats or their order differ"):
        BlockLoader(repeated, seed=5, batch_size=4, state=state)
    with pytest.raises(DataError, match="say append"):
        BlockLoader(files, seed=5, batch_size=2, state=BlockLoader(files[:2], seed=5, batch_size=2).state(3))


def test_targets_positions_and_documents(tmp_path):
    tokens = np.arange(10, 19, dtype=np.uint32)
    tokens[7:] = PADDING
    row = Row(tokens, np.array([0, 3], np.int32), [b"a" * 16, b"b" * 16], 7)
    mask = np.array([1, 1, 1, 1, 1, 0, 1, 1, 1], np.uint8)
    write_shard(tmp_path / "p.arrow", [row], BLOCK)
    write_shard(
        tmp_path / "m.arrow", [Row(tokens, row.doc_starts, row.doc_ids, 7, mask)], BLOCK, loss_mask=True
    )
    (batch,) = BlockLoader([{"path": tmp_path / "p.arrow"}], seed=0, batch_size=1).batch(0)
    assert batch.input_ids.tolist() == [[10, 11, 12, 13, 14, 15, 16, 9]]
    #            the token 13 starts a document, nothing predicts it; the rest is padding
    assert batch.labels.tolist() == [[11, 12, -100, 14, 15, 16, -100, -100]]
    assert batch.position_ids.tolist() == [[0, 1, 2, 0, 1, 2, 3, 0]]
    assert batch.doc_index.tolist() == [[0, 0, 0, 1, 1, 1, 1, 2]]
    assert (batch.input_ids.dtype, batch.doc_index.dtype) == (torch.int64, torch.int32)
    assert batch.targets == 5
    (batch,) = BlockLoader([{"path": tmp_path / "m.arrow"}], seed=0, batch_size=1).batch(0)
    assert batch.labels.tolist() == [[11, 12, -100, 14, -100, 16, -100, -100]]


def test_what_cannot_be_divided_is_refused_at_once(files):
    with pytest.raises(DataError, match="shared evenly by 3 ranks"):
        BlockLoader(files, seed=5, batch_size=4, world_size=3)
    with pytest.raises(DataError, match="no multiple of micro_batch_size 3"):
        BlockLoader(files, seed=5, batch_size=8, world_size=2, micro_batch_size=3)
    with pytest.raises(DataError, match="no shard files"):
        BlockLoader([], seed=5, batch_size=4)
    with pytest.raises(DataError, match="same content"):
        BlockLoader([files[0], files[0]], seed=5, batch_size=4)
    with pytest.raises(DataError, match="no blocks"):
        BlockLoader([{**files[0], "repeats": 0}], seed=5, batch_size=4)
    with pytest.raises(DataError, match="there is no shard"):
        BlockLoader([{"path": "nowhere.arrow"}], seed=5, batch_size=4)
    with pytest.raises(DataError, match="extra_rows at most its rows"):
        BlockLoader([{**files[0], "extra_rows": 8}], seed=5, batch_size=4)
    with pytest.raises(DataError, match="has 7 rows, not 8"):
        BlockLoader([{**files[0], "rows": 8}], seed=5, batch_size=4)


@pytest.mark.parametrize(("world", "micro"), [(1, 4), (2, 4), (3, 2), (5, 8)])
def test_validation_reads_every_row_once_with_equal_batches_on_every_rank(files, world, micro):
    ranks = [list(val_batches(files, micro, rank, world)) for rank in range(world)]
    assert len({len(batches) for batches in ranks}) == 1
    assert all(b.input_ids.shape == (micro, BLOCK) for batches in ranks for b in batches)
    real = [
        (int(f), int(b)) for batches in ranks for x in batches for f, b in zip(x.files, x.blocks, strict=True)
    ]
    assert sorted(b for f, b in real if f >= 0) == list(range(22))
    filler = [x.labels[x.files < 0] for batches in ranks for x in batches]
    assert all((labels == -100).all() for labels in filler)
    targets = sum(x.targets for batches in ranks for x in batches)
    assert targets == 22 * (BLOCK - 1)  # one document starts inside each row


def test_shards_of_two_tokenizers_or_block_sizes_are_not_mixed(tmp_path):
    made = {"a": (BLOCK, "one"), "b": (BLOCK, "two"), "c": (BLOCK + 1, "one")}
    for name, (width, tokenizer) in made.items():
        write_shard(
            tmp_path / f"{name}.arrow",
            make_rows(3, width),
            width,
            {"tokenizer_digest": tokenizer, "source": name},
        )
    for other, said in (("b", "another tokenizer"), ("c", "blocks of 9, not 8")):
        loader = BlockLoader(
            [{"path": tmp_path / f"{n}.arrow", "rows": 3} for n in ("a", other)], seed=1, batch_size=6
        )
        with pytest.raises(DataError, match=said):
            loader.batch(0)
