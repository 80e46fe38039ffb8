"""A micro-batch: what the loader hands over (tokens and where documents start), and what the model reads.

The loader moves the least it can: tokens as 32-bit integers, copied once, and a few numbers a row. Labels, positions
and document numbers, seven times as many bytes, are computed where they are needed, after the transfer: on a GPU they
cost the loader's core nothing.

Shapes: b rows, T = block_size positions, D documents in the batch.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cached_property
from typing import ClassVar

import torch
from torch import Tensor

IGNORED = -100
"""The label of a position that is not a target (torch's ignore_index)."""


@dataclass(frozen=True)
class Batch:
    """One rank's micro-batch; b rows of T = block_size positions. The first four fields, and the last, are all there is to move."""

    tokens: Tensor
    """int32 [b, T + 1]"""
    starts: Tensor
    """int64 [D], row · (T + 1) + place of every document's first token; each row has one at place 0."""
    valid: Tensor
    """int32 [b], real tokens of the row; what follows is padding."""
    loss_mask: Tensor | None
    """uint8 [b, T + 1], 1 = may be a target; None: every token may be one."""
    targets: int
    """Number of positions that have a label."""
    blocks: Tensor
    """int64 [b], number of each row's block in the manifest; -1 for a filler row."""
    files: Tensor
    """int32 [b], index of each row's file in the list given; -1 for a filler row."""
    sources: Tensor | None = None
    """int64 [D], number of every document's source (gather.Rows.sources)."""
    branch_index: ClassVar[None] = None
    """Documents of shards have no branches."""

    def to(self, device: torch.device | str) -> Batch:
        """A copy with what the model reads on the device; blocks and files stay."""
        moved = {
            name: value.to(device, non_blocking=True)
            for name in ("tokens", "starts", "valid", "loss_mask", "sources")
            if (value := getattr(self, name)) is not None
        }
        return replace(self, **moved)

    @property
    def max_documents(self) -> int:
        """A bound that needs no counting: what `starts` lists, and each row's padding."""
        return len(self.starts) + len(self.valid)

    @cached_property
    def input_ids(self) -> Tensor:
        """int64 [b, T]"""
        return self.tokens[:, :-1].long()

    @cached_property
    def labels(self) -> Tensor:
        """int64 [b, T], already shifted: labels[t] is the token after input_ids[t]. -100 where that is padding, the
        first token of another document, or switched off by the loss mask."""
        target = self._places < self.valid.unsqueeze(1)
        target.view(-1)[self.starts] = False
        if self.loss_mask is not None:
            target &= self.loss_mask != 0
        return torch.where(target[:, 1:], self.tokens[:, 1:], IGNORED).long()

    @cached_property
    def position_ids(self) -> Tensor:
        """int64 [b, T], from 0 in every document."""
        begun = torch.where(self._begins, self._places, 0)[:, :-1].cummax(1).values
        return self._places[:-1] - begun

    @cached_property
    def doc_index(self) -> Tensor:
        """int32 [b, T], which document of its row a position belongs to (padding is a document too)."""
        return self._begins[:, :-1].cumsum(1, dtype=torch.int32) - 1

    @cached_property
    def target_sources(self) -> Tensor:
        """int64 [b, T], number of the source that the token after each position is of; needs `sources`."""
        assert self.sources is not None
        begins = torch.zeros_like(self.tokens).view(-1)
        begins[self.starts] = 1
        document = begins.cumsum(0).view(self.tokens.shape)[:, 1:] - 1
        return self.sources[document]

    @cached_property
    def _places(self) -> Tensor:
        return torch.arange(self.tokens.shape[1], device=self.tokens.device)

    @cached_property
    def _begins(self) -> Tensor:
        """bool [b, T + 1]: a document begins here; so does the padding."""
        begins = self._places == self.valid.unsqueeze(1)
        begins.view(-1)[self.starts] = True
        return begins
