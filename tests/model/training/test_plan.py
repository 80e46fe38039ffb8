"""The order of blocks: exactness over any history of appends, and randomness worth the name."""

import time
from collections import Counter

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from model.training.plan import Feistel, Plan


@settings(max_examples=60, deadline=None)
@given(n=st.integers(1, 3000), key=st.integers(0, 2**63))
def test_feistel_is_a_permutation_with_its_inverse(n, key):
    order = Feistel(n, key)
    image = order(np.arange(n))
    assert sorted(image.tolist()) == list(range(n))
    np.testing.assert_array_equal(order.inverse(image), np.arange(n))


def test_the_order_is_pinned():
    """A changed order would silently continue a run on other data: bump the plan's name instead."""
    assert Feistel(10, 1, 2)(np.arange(10)).tolist() == [1, 7, 5, 8, 0, 3, 4, 9, 2, 6]


def test_seeds_and_epochs_give_different_orders_without_structure():
    plan = Plan(seed=3, blocks=5000)
    first, second = plan.block(np.arange(5000)), plan.block(np.arange(5000, 10000))
    other = Plan(seed=4, blocks=5000).block(np.arange(5000))
    for a, b in ((first, second), (first, other), (first, np.arange(5000))):
        assert (a == b).mean() < 0.002
        assert abs(np.corrcoef(a, b)[0, 1]) < 0.05
    assert abs(np.corrcoef(first[:-1], first[1:])[0, 1]) < 0.05


@pytest.mark.parametrize("n", [2, 3, 5])
def test_small_ranges_reach_every_order(n):
    seen = Counter(tuple(Feistel(n, key)(np.arange(n)).tolist()) for key in range(600 * n))
    assert len(seen) == np.prod(range(1, n + 1))


@settings(max_examples=60, deadline=None)
@given(data=st.data())
def test_every_block_once_an_epoch_over_any_appends(data):
    """Also: the consumed prefix keeps its place, and any position can be asked for alone."""
    plan = Plan(data.draw(st.integers(0, 9)), data.draw(st.integers(1, 40)))
    position, consumed, starts = 0, [], {}
    seen: dict[int, list[int]] = {}
    for _ in range(data.draw(st.integers(0, 5))):
        read = data.draw(st.integers(0, 60))
        consumed += plan.block(np.arange(position, position + read)).tolist()
        position += read
        before = plan.block(np.arange(position))
        epoch, _ = plan.epoch(position)
        new = data.draw(st.integers(1, 20))
        starts.update({plan.blocks + i: epoch for i in range(new)})
        plan.append(new, position)
        assert plan.block(np.arange(position)).tolist() == before.tolist() == consumed
    last_epoch, begun = plan.epoch(position)
    end = begun + plan.blocks + plan.blocks  # to the end of the next epoch
    stream = plan.block(np.arange(end))
    assert stream[:position].tolist() == consumed
    for p in range(end):
        seen.setdefault(plan.epoch(p)[0], []).append(int(stream[p]))
    for epoch in range(last_epoch + 2):
        due = [b for b in range(plan.blocks) if starts.get(b, 0) <= epoch]
        assert sorted(seen[epoch]) == due
    shuffled = np.random.default_rng(0).permutation(end)
    np.testing.assert_array_equal(plan.block(shuffled), stream[shuffled])


def test_appended_blocks_mix_evenly_into_the_rest():
    plan = Plan(seed=1, blocks=10_000)
    plan.append(5_000, 3_000)
    rest = plan.block(np.arange(3_000, 15_000)) >= 10_000
    assert abs(rest[:6_000].mean() - 5 / 12) < 0.03
    assert abs(rest[6_000:].mean() - 5 / 12) < 0.03


def test_half_a_billion_blocks_cost_no_memory_and_no_time():
    begun = time.perf_counter()
    plan = Plan(seed=1, blocks=488_000_000)
    plan.append(50_000_000, 123_456_789)
    positions = np.arange(200_000_000, 200_010_000)
    assert len(np.unique(plan.block(positions))) == 10_000
    assert time.perf_counter() - begun < 1


def test_wrong_use_is_refused():
    with pytest.raises(ValueError, match="at least one block"):
        Plan(seed=1, blocks=0)
    plan = Plan(seed=1, blocks=5)
    plan.append(5, 4)
    with pytest.raises(ValueError, match="after the one before"):
        plan.append(5, 3)
    with pytest.raises(ValueError, match="count from 0"):
        plan.block(np.array([-1]))
