"""A forward pass for every node of the tree of shared beginnings: the state of each sequence's last token."""

from __future__ import annotations

from collections.abc import Iterator, Sequence, Set
from dataclasses import dataclass

import torch
from torch import Tensor
from transformers.cache_utils import Cache

from model.scores import cache as caches
from model.scores.network import Network, hole_mask
from model.scores.plan import Node, batches, tree


@dataclass
class Reached:
    """Some sequences, computed to their last token."""

    sequences: list[int]
    last: Tensor
    """Their states [B, D]."""
    shared: int
    """Tokens of the beginning that they share."""
    lengths: list[int]
    """Tokens of each behind it."""
    cache: Cache | None
    """Of all their tokens, where something stands behind one of them."""

    def further(self, network: Network, rows: Sequence[int], tokens: Sequence[Sequence[int]]) -> Tensor:
        """States [len(rows), T, D] of tokens behind these rows; the cache can be read again."""
        assert self.cache is not None
        where = torch.tensor(rows, device=self.last.device)
        mask = positions = None
        if len(set(self.lengths)) > 1:
            own = [self.lengths[row] for row in rows]
            more = max(map(len, tokens))
            mask, positions = hole_mask(self.shared, own, max(self.lengths), more, self.last.device)
        return network.states(tokens, caches.behind(self.cache, where, keep=False), mask, positions)


def walk(
    network: Network,
    sequences: Sequence[Sequence[int]],
    budget: int,
    share: bool,
    kept: Set[int] = frozenset(),
) -> Iterator[Reached]:
    """Every sequence once, in groups under `budget` tokens. `kept`: those that something stands behind."""
    yield from _visit(network, tree(sequences, share), None, sequences, budget, kept)


def _visit(
    network: Network,
    node: Node,
    cache: Cache | None,
    sequences: Sequence[Sequence[int]],
    budget: int,
    kept: Set[int],
) -> Iterator[Reached]:
    for keep in (True, False):
        leaves = [i for i in node.leaves if (i in kept) == keep]
        equal = not network.padded or (keep and not network.maskable)
        rests = [len(sequences[i]) - node.end for i in leaves]
        for batch in batches(rests, budget, equal, shared=node.end):
            yield _reach(network, [leaves[k] for k in batch], node.end, cache, sequences, keep)
    for child in node.children:
        grown = network.new_cache() if cache is None else _one(cache)
        network.states([sequences[child.example][node.end : child.end]], grown)
        yield from _visit(network, child, grown, sequences, budget, kept)


def _reach(
    network: Network,
    batch: list[int],
    shared: int,
    cache: Cache | None,
    sequences: Sequence[Sequence[int]],
    keep: bool,
) -> Reached:
    if cache is not None:
        cache = caches.behind(cache, torch.zeros(len(batch), dtype=torch.long, device=network.device), keep)
    elif keep:
        cache = network.new_cache()
    rests = [list(sequences[i][shared:]) for i in batch]
    states = network.states(rests, cache)
    ends = torch.tensor([len(rest) - 1 for rest in rests], device=states.device)
    last = states[torch.arange(len(batch), device=states.device), ends]
    return Reached(batch, last, shared, [len(rest) for rest in rests], cache if keep else None)


def _one(cache: Cache) -> Cache:
    """The cache of one row, to be read and grown by a child."""
    device = next(layer.keys.device for layer in cache.layers if layer.keys is not None)
    return caches.behind(cache, torch.zeros(1, dtype=torch.long, device=device), keep=True)
