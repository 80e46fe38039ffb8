"""The tree of shared beginnings: every sequence once, and fewer tokens than without it."""

import random

import pytest

from model.scores.plan import LEAST_PREFIX, LEAST_SAVED, MAX_DEPTH, batches, tree


def leaves(node, above=0, depth=0):
    """(sequence, where its own tokens begin) of all, and the tokens of all nodes."""
    found, cost = [(i, node.end) for i in node.leaves], node.end - above
    assert depth <= MAX_DEPTH
    for child in node.children:
        assert child.end - node.end >= LEAST_PREFIX
        more, tokens = leaves(child, node.end, depth + 1)
        found, cost = found + more, cost + tokens
    return found, cost


def sequences(seed, count=60):
    draw = random.Random(seed)
    header = [1] * 12
    shots = [[draw.randrange(9) for _ in range(draw.randrange(5, 40))] for _ in range(3)]
    return [
        header * draw.randrange(2)
        + draw.choice(shots)
        + [draw.randrange(9) for _ in range(draw.randrange(1, 9))]
        for _ in range(count)
    ]


@pytest.mark.parametrize("seed", range(8))
def test_every_sequence_stands_behind_its_own_beginning(seed):
    rows = sequences(seed)
    root = tree(rows, share=True)
    found, cost = leaves(root)
    assert sorted(i for i, _ in found) == list(range(len(rows)))
    assert all(end < len(rows[i]) for i, end in found)

    def hold(node):
        for i, end in leaves(node)[0]:
            assert end >= node.end
            assert rows[i][: node.end] == rows[node.example][: node.end]
        for child in node.children:
            hold(child)

    hold(root)
    computed = cost + sum(len(rows[i]) - end for i, end in found)
    assert computed < 0.6 * sum(map(len, rows))


def test_nothing_is_shared_where_it_does_not_pay():
    rows = [[7, 7, 7, 7, 7, k] for k in range(LEAST_SAVED // 5 - 1)]
    assert tree(rows, share=True).children == []
    assert tree([*rows, *([7] * 5 + [k, k] for k in range(9))], share=True).children
    assert tree([[1, 2, 3]] * 100, share=False).children == []


def test_nested_beginnings_of_growing_length_end():
    rows = [[1] * length for length in range(1, 400)]
    found, _ = leaves(tree(rows, share=True))
    assert sorted(i for i, _ in found) == list(range(len(rows)))


def test_what_is_shared_counts_in_the_budget():
    for batch in batches([5, 4, 4, 2], 30, equal=False, shared=10):
        assert len(batch) <= 2
