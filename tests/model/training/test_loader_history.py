"""The guarantee: every block exactly as often an epoch as planned, whatever happens to the run.

A state machine appends data, trains, crashes, and resumes with other ranks, batch and micro-batch sizes; what was
really consumed is compared with the definition: for each epoch, each row `repeats` times (and its extra time), or,
where a file joined in mid-epoch, that often in what is left of it.
"""

from collections import Counter

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from model.training.loader import BlockLoader, DataError, Numbering, Prefetch, val_batches
from model.training.shards import Row, write_shard
from tests.support.shard_helpers import make_file

BLOCK = 4


@pytest.fixture(scope="module", autouse=True)
def shards(tmp_path_factory):
    """Ten files of 1 to 9 rows; row r of file k begins with the token 100·k + r."""
    folder = tmp_path_factory.mktemp("history")
    Life.shards = [
        {
            "path": str(folder / f"{k}.arrow"),
            "rows": 1 + (5 * k) % 9,
            "digest": make_file(folder / f"{k}.arrow", 1 + (5 * k) % 9, BLOCK, 100 * k).digest,
        }
        for k in range(10)
    ]


class Life(RuleBasedStateMachine):
    """One training run with an eventful life."""

    shards: list[dict] = []

    @initialize(data=st.data())
    def begin(self, data):
        self.files, self.joined = [], {}
        self.consumed: list[int] = []
        self.step, self.saved, self.loaders = 0, None, []
        first, *more = self.some_files(data)
        self.draw(data, [{**first, "repeats": 1}, *more])

    def some_files(self, data):
        new = self.shards[len(self.files) : len(self.files) + data.draw(st.integers(1, 3))]
        return [
            {**f, "repeats": data.draw(st.integers(0, 2)), "extra_rows": data.draw(st.integers(0, f["rows"]))}
            for f in new
        ]

    def draw(self, data, new=()):
        """Start the engine again from the last checkpoint: other machines, maybe another batch, maybe more data."""
        batch_size = data.draw(st.sampled_from([1, 2, 3, 4, 6]))
        world = data.draw(st.sampled_from([w for w in (1, 2, 3) if batch_size % w == 0]))
        micro = data.draw(st.sampled_from([m for m in (1, 2, 3) if batch_size // world % m == 0]))
        files = [*self.files, *new]
        blocks = sum(f["rows"] * f["repeats"] + f["extra_rows"] for f in new)
        if new and not blocks:
            with pytest.raises(DataError, match="hold no blocks"):
                BlockLoader(files, seed=3, batch_size=1, state=self.saved, append=True)
            return
        self.loaders = [
            BlockLoader(
                files, seed=3, batch_size=batch_size, rank=rank, world_size=world, micro_batch_size=micro,
                state=self.saved, append=bool(new),
            )
            for rank in range(world)
        ]  # fmt: skip
        if self.saved is not None:  # what was trained since the checkpoint is lost, and trained again
            self.step = self.saved["step"]
            self.consumed = self.consumed[: self.saved["position"]]
        epoch = self.loaders[0].state(self.step)["epoch"]
        self.joined |= {len(self.files) + i: epoch for i in range(len(new))}
        self.files = files
        self.save()

    @rule(steps=st.integers(1, 12))
    def train(self, steps):
        for _ in range(steps):
            for loader in self.loaders:
                self.consumed += [int(t) for b in loader.batch(self.step) for t in b.tokens[:, 0]]
            self.step += 1

    @rule()
    def save(self):
        states = [loader.state(self.step) for loader in self.loaders]
        assert all(state == states[0] for state in states)
        self.saved = states[0]

    @rule(data=st.data())
    def crash_and_resume(self, data):
        self.draw(data)

    @rule(data=st.data())
    def append(self, data):
        if len(self.files) < len(self.shards):
            self.save()
            self.draw(data, self.some_files(data))

    @rule()
    def refuse_a_duplicate(self):
        with pytest.raises(DataError, match="same content"):
            BlockLoader([*self.files, self.files[0]], seed=3, batch_size=1, state=self.saved, append=True)

    @invariant()
    def every_block_as_often_as_planned(self):
        loader = self.loaders[0]
        state = loader.state(self.step)
        assert state["position"] == len(self.consumed)
        seen: dict[int, Counter] = {}
        for position, token in enumerate(self.consumed):
            seen.setdefault(loader._plan.epoch(position)[0], Counter())[token] += 1
        for epoch, counts in seen.items():
            due = Counter()
            for k, file in enumerate(self.files):
                if self.joined[k] <= epoch:
                    for row in range(file["rows"]):
                        extra = {i * file["rows"] // file["extra_rows"] for i in range(file["extra_rows"])}
                        due[100 * k + row] = file["repeats"] + (row in extra)
            if epoch < state["epoch"]:
                assert counts == +due
            else:
                assert not counts - due  # the epoch is under way: nothing more often than due

    @invariant()
    def the_inverse_knows_where_a_row_was_read(self):
        loader = self.loaders[0]
        if not self.consumed:
            return
        token = self.consumed[len(self.consumed) // 2]
        positions = [p for p, t in enumerate(self.consumed) if t == token]
        found = loader.steps_of_row(token // 100, token % 100, self.step)
        assert [epoch for epoch, _ in found] == [loader._plan.epoch(p)[0] for p in positions]
        for position, (_, step) in zip(positions, found, strict=True):
            assert loader.position(step) <= position < loader.position(step + 1)
            files, rows = loader.rows_of_step(step)
            assert (
                100 * files[position - loader.position(step)] + rows[position - loader.position(step)]
                == token
            )


TestLife = Life.TestCase
TestLife.settings = settings(max_examples=25, stateful_step_count=15, deadline=None)


@settings(max_examples=100, deadline=None)
@given(data=st.data())
def test_numbers_of_blocks_and_back(data):
    rows = data.draw(st.lists(st.integers(1, 30), min_size=1, max_size=4))
    files = [
        {"repeats": data.draw(st.integers(0, 3)), "extra_rows": data.draw(st.integers(0, r))} for r in rows
    ]
    if not any(f["repeats"] or f["extra_rows"] for f in files):
        return
    numbering = Numbering(files, np.array(rows))
    found_files, found_rows = numbering.rows_of(np.arange(numbering.total))
    for file, count in enumerate(rows):
        mine = found_rows[found_files == file].tolist()
        seen = Counter(mine)
        assert set(seen.values()) <= {files[file]["repeats"], files[file]["repeats"] + 1}
        assert sum(seen.values()) == count * files[file]["repeats"] + files[file]["extra_rows"]
        for row in range(count):
            blocks = numbering.blocks_of(file, row)
            assert (
                sorted(blocks.tolist())
                == np.flatnonzero((found_files == file) & (found_rows == row)).tolist()
            )


@settings(max_examples=40, deadline=None)
@given(data=st.data())
def test_what_the_model_reads_follows_from_tokens_and_starts(tmp_path_factory, data):
    """Against the definition, position by position."""
    width, folder = 9, tmp_path_factory.mktemp("definition")
    masked = data.draw(st.booleans())
    rows = []
    for _ in range(data.draw(st.integers(1, 5))):
        valid = data.draw(st.integers(1, width))
        starts = sorted({0, *data.draw(st.lists(st.integers(0, valid - 1), max_size=4))})
        tokens = np.array(
            data.draw(st.lists(st.integers(0, 2**31 - 1), min_size=width, max_size=width)), np.uint32
        )
        mask = np.array(data.draw(st.lists(st.integers(0, 1), min_size=width, max_size=width)), np.uint8)
        rows.append(
            Row(
                tokens, np.array(starts, np.int32), [b"x" * 16] * len(starts), valid, mask if masked else None
            )
        )
    write_shard(folder / "s.arrow", rows, width - 1, loss_mask=masked)
    filler = data.draw(st.integers(0, 1))
    (batch,) = val_batches([{"path": folder / "s.arrow"}], len(rows) + filler)
    targets = 0
    for i, row in enumerate(rows):
        document, position = -1, 0
        for t in range(width - 1):
            begins = t in row.doc_starts or t == row.valid
            document, position = document + begins, 0 if begins else position + 1
            predicts = t + 1 < row.valid and t + 1 not in row.doc_starts
            predicts = predicts and (not masked or bool(row.loss_mask[t + 1]))
            targets += predicts
            assert int(batch.input_ids[i, t]) == row.input_ids[t]
            assert int(batch.labels[i, t]) == (row.input_ids[t + 1] if predicts else -100)
            assert (int(batch.position_ids[i, t]), int(batch.doc_index[i, t])) == (position, document)
    assert batch.targets == targets == int((batch.labels != -100).sum())
    assert batch.blocks.tolist() == [*range(len(rows)), *[-1] * filler]


def test_a_prefetching_thread_gives_the_same_batches_and_its_errors():
    loader = BlockLoader([{**f, "repeats": 1} for f in Life.shards], seed=1, batch_size=4)
    ready = Prefetch(loader, 3, steps=8)
    for step in (0, 1, 2, 6, 7):
        assert [b.tokens.tolist() for b in ready.batch(step)] == [
            b.tokens.tolist() for b in loader.batch(step)
        ]
    ready.close()
    files = [Life.shards[0], {"path": "gone", "rows": 5, "digest": "x"}]
    broken = Prefetch(BlockLoader(files, seed=1, batch_size=4), 1, steps=9)
    with pytest.raises(DataError, match="there is no shard"):
        [broken.batch(step) for step in range(9)]
    broken.close()


def test_epochs_end_where_the_plan_says():
    files = [{**f, "repeats": 1} for f in Life.shards]  # 1 6 2 7 3 8 4 9 5 1 rows
    loader = BlockLoader(files[:4], seed=1, batch_size=4)
    assert (loader.steps_for(1), loader.steps_for(2.5)) == (4, 10)
    grown = BlockLoader(files[:5], seed=1, batch_size=2, state=loader.state(3), append=True)
    assert grown.steps_for(1) == 3 + (16 + 3 - 12 + 1) // 2
    assert grown.position(3) == 12
    assert grown.position(4) == 14
