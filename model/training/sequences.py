"""Prompts and replies packed into rows: each sequence is a document of its own, and only replies are targets.

Attention does not mix the documents of a row, and short sequences waste nothing. DPO and GRPO read such batches.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from model.training.batch import IGNORED

ROW_MULTIPLE = 64


@dataclass(frozen=True)
class Packed:
    """n sequences in b rows of T positions."""

    input_ids: Tensor
    """int64 [b, T]"""
    labels: Tensor
    """int64 [b, T], shifted: the reply's tokens, -100 elsewhere."""
    position_ids: Tensor
    """int64 [b, T], from 0 in every sequence."""
    doc_index: Tensor
    """int32 [b, T], ascending along a row; padding is a document too."""
    owner: Tensor
    """int64 [targets in reading order]: the number of the sequence that a target belongs to."""


def pack(prompts: Sequence[Sequence[int]], replies: Sequence[Sequence[int]]) -> Packed:
    """Sequence i is prompts[i] + replies[i]; neither is empty. Its last token is predicted, never read."""
    sequences = [[*prompt, *reply] for prompt, reply in zip(prompts, replies, strict=True)]
    places, shape = _fit([len(s) - 1 for s in sequences])
    input_ids, labels = np.zeros(shape, np.int64), np.full(shape, IGNORED, np.int64)
    position, owner = np.zeros(shape, np.int64), np.zeros(shape, np.int64)
    document = np.full(shape, -1, np.int32)
    for number, (sequence, (row, start)) in enumerate(zip(sequences, places, strict=True)):
        length, prompt = len(sequence) - 1, len(prompts[number])
        here = slice(start, start + length)
        input_ids[row, here] = sequence[:-1]
        labels[row, start + prompt - 1 : start + length] = sequence[prompt:]
        position[row, here] = np.arange(length)
        document[row, here] = owner[row, here] = number
    # padding is a document of its own; numbers must ascend along a row, and sequences were placed in any order
    document = np.cumsum(np.diff(document, axis=1, prepend=document[:, :1]) != 0, axis=1, dtype=np.int32)
    return Packed(
        input_ids=torch.from_numpy(input_ids),
        labels=torch.from_numpy(labels),
        position_ids=torch.from_numpy(position),
        doc_index=torch.from_numpy(document),
        owner=torch.from_numpy(owner[labels != IGNORED]),
    )


def _fit(lengths: Sequence[int]) -> tuple[list[tuple[int, int]], tuple[int, int]]:
    """First fit by decreasing length: (row, start) of each sequence, and the shape of the rows."""
    width = -(-max(lengths) // ROW_MULTIPLE) * ROW_MULTIPLE
    used: list[int] = []
    places: list[tuple[int, int]] = [(0, 0)] * len(lengths)
    for i in sorted(range(len(lengths)), key=lambda i: (-lengths[i], i)):
        row = next((r for r, u in enumerate(used) if u + lengths[i] <= width), len(used))
        if row == len(used):
            used.append(0)
        places[i] = (row, used[row])
        used[row] += lengths[i]
    return places, (len(used), width)
