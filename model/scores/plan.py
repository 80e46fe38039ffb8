"""Token sequences as a tree of shared beginnings, and groups of them under a budget of tokens."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

LEAST_PREFIX = 4
"""A shorter common beginning is not worth a forward pass of its own."""
LEAST_SAVED = 64
"""Tokens that a node must save, to be worth its forward pass."""
MAX_DEPTH = 4
"""Nodes above one another; every one keeps its cache while its children are computed."""


@dataclass
class Node:
    """Sequences that begin alike."""

    end: int
    """The node's tokens are `sequence[start of the parent's end : end]` of any of its sequences."""
    example: int
    """The number of one of them."""
    leaves: list[int] = field(default_factory=list)
    """Sequences that part here: each computes what is behind `end` by itself."""
    children: list[Node] = field(default_factory=list)


def tree(sequences: Sequence[Sequence[int]], share: bool) -> Node:
    """The root (it ends at 0) over all sequences. Each keeps at least one token behind its node."""
    root = Node(0, 0)
    order = sorted(range(len(sequences)), key=lambda i: tuple(sequences[i]))
    if not share or len(order) < 2:
        root.leaves = order
        return root
    _grow(root, order, sequences, 0)
    return root


def _grow(node: Node, order: list[int], sequences: Sequence[Sequence[int]], depth: int) -> None:
    """Give a node its children: the runs of `order` (sorted) that go on alike for long enough."""
    if depth == MAX_DEPTH:
        node.leaves += order
        return
    for run in _runs(order, sequences, node.end):
        end = common_prefix([sequences[run[0]], sequences[run[-1]]])  # sorted: these two differ first
        end = min(end, min(len(sequences[i]) for i in run) - 1)
        segment = end - node.end
        if len(run) > 1 and segment >= LEAST_PREFIX and segment * (len(run) - 1) >= LEAST_SAVED:
            child = Node(end, run[0])
            _grow(child, run, sequences, depth + 1)
            node.children.append(child)
        else:
            node.leaves += run


def _runs(order: list[int], sequences: Sequence[Sequence[int]], at: int) -> Iterator[list[int]]:
    """Neighbours that have the same LEAST_PREFIX tokens from `at` on, and at least one more."""
    run: list[int] = []
    last: tuple[int, ...] | None = None
    for i in order:
        goes_on = len(sequences[i]) > at + LEAST_PREFIX
        key = tuple(sequences[i][at : at + LEAST_PREFIX]) if goes_on else None
        if run and (key is None or key != last):
            yield run
            run = []
        run.append(i)
        last = key
    if run:
        yield run


def common_prefix(sequences: Sequence[Sequence[int]]) -> int:
    """Tokens that all sequences begin with; each keeps one of its own."""
    low, high = min(map(list, sequences)), max(map(list, sequences))  # these two differ first
    limit = min(map(len, sequences)) - 1
    return next((k for k, (x, y) in enumerate(zip(low, high, strict=False)) if x != y or k == limit), limit)


def batches(lengths: Sequence[int], budget: int, equal: bool, shared: int = 0) -> Iterator[list[int]]:
    """Indices, longest first, in groups of (rows times longest row) tokens at most; one row at least.

    `shared` tokens stand before each row. `equal`: rows of one length only.
    """
    order = sorted(range(len(lengths)), key=lambda i: (-lengths[i], i))
    batch: list[int] = []
    for i in order:
        longest = lengths[batch[0]] if batch else lengths[i]
        if batch and ((len(batch) + 1) * (longest + shared) > budget or (equal and lengths[i] != longest)):
            yield batch
            batch = []
        batch.append(i)
    if batch:
        yield batch
