"""Where documents begin in a batch of rows and which of its tokens are there; made once per forward pass.

The kinds of FFN that look at more than one token need it (`prefix`, `merge`, `paper`, `released`).
This file is copied into every exported model folder: it imports nothing of this repository.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor


@dataclass(frozen=True)
class Layout:
    """Shape suffixes: B rows, T tokens of a row, G groups (documents, or their segments) in the batch."""

    starts_BT: Tensor
    """bool: a document begins here. Behind a cache, a row's first token begins nothing."""
    real_BT: Tensor | None
    """bool: this is a token, not padding. None: all are."""

    @staticmethod
    def of(
        batch: int,
        length: int,
        device: torch.device,
        *,
        doc_index: Tensor | None = None,
        attention_mask: Tensor | None = None,
        behind: bool = False,
    ) -> Layout:
        """From `doc_index` [1 or B, T]; `behind`: an earlier call's tokens come before. `attention_mask` [B, earlier +
        T] is 0 at padding."""
        starts = torch.zeros(batch, length, dtype=torch.bool, device=device)
        if not behind:
            starts[:, 0] = True
        if doc_index is not None:
            starts[:, 1:] = doc_index[:, 1:] != doc_index[:, :-1]
        real = None
        if attention_mask is not None:
            if attention_mask.dim() != 2:
                raise ValueError(
                    f"attention_mask has {attention_mask.dim()} dimensions. This kind of FFN looks at several tokens "
                    "and needs the plain [batch, tokens] mask to know which are padding."
                )
            real = attention_mask[:, -length:].bool()
        return Layout(starts, real)

    @cached_property
    def document_N(self) -> Tensor:
        """int [B*T]: the number of the token's document in the batch; a row always begins a new one."""
        starts = self.starts_BT.clone()
        starts[:, 0] = True
        return starts.flatten().cumsum(0) - 1

    @cached_property
    def documents(self) -> int:
        return int(self.document_N[-1]) + 1

    def segments(self, size: int, done_B: Tensor | None = None) -> Segments:
        """The segments of `size` tokens, counted from each document's start; `done` tokens [B] of the row's first
        segment lie in earlier calls."""
        batch, length = self.starts_BT.shape
        here = torch.ones_like(self.starts_BT) if self.real_BT is None else self.real_BT
        before = here.cumsum(1) - here.long()
        first = torch.zeros_like(before[:, 0]) if done_B is None else -done_B
        base = before.masked_fill(~self.starts_BT, torch.iinfo(before.dtype).min)
        base = torch.maximum(base, first.unsqueeze(1)).cummax(1).values
        number = (before - base) // size
        new = self.starts_BT.clone()
        new[:, 1:] |= number[:, 1:] != number[:, :-1]
        new[:, 0] = True
        at = new.flatten().nonzero().squeeze(1)
        return Segments(
            index_N=new.flatten().cumsum(0) - 1,
            place_N=((before - base) % size).flatten(),
            first_G=(number.flatten()[at] == 0) & self.starts_BT.flatten()[at],
            opens_row_G=at % length == 0,
            real_N=here.flatten(),
        )


@dataclass(frozen=True)
class Segments:
    """Every document cut into segments; those of a row stand one behind the other."""

    index_N: Tensor
    """int [B*T]: the token's segment in the batch."""
    place_N: Tensor
    """int [B*T]: its place in there."""
    first_G: Tensor
    """bool: a document's first segment, with its beginning in this call."""
    opens_row_G: Tensor
    """bool: the first segment of its row in this call."""
    real_N: Tensor
    """bool [B*T]: a token, not padding."""
