"""Prompts and replies packed into rows: each prompt is a document of its own, and only replies are targets.

Attention does not mix the documents of a row, and short sequences waste nothing. DPO and GRPO read such batches. Replies
to one prompt can stand behind one copy of it, as branches that do not see each other: the same numbers for fewer
positions (a pair of 80 + 50 and 80 + 50 tokens takes 180 instead of 260).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from model.training.batch import IGNORED

ROW_MULTIPLE = 64
WIDE = 1024
"""Rows are not made longer than this for the sake of a better fit."""


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
    branch_index: Tensor | None
    """int32 [b, T]: 0 what all of the document sees, 1, 2, ... the replies behind it. None: no prompt is shared."""
    owner: Tensor
    """int64 [targets in reading order]: the number of the sequence that a target belongs to."""


def pack(
    prompts: Sequence[Sequence[int]], replies: Sequence[Sequence[int]], *, share: bool = False
) -> Packed:
    """Sequence i is prompts[i] + replies[i]; neither is empty. Its last token is predicted, never read.

    `share`: neighbours with the same prompt become branches of one document. A prompt's last token, from which a
    reply's first one is predicted, stands in every branch: a position has one label.
    """
    lengths = [len(prompt) + len(reply) - 1 for prompt, reply in zip(prompts, replies, strict=True)]
    documents = _documents(prompts, replies, max(WIDE, 2 * max(lengths)) if share else 0)
    places, shape = _fit([_length(document, prompts, replies) for document in documents])
    input_ids, labels = np.zeros(shape, np.int64), np.full(shape, IGNORED, np.int64)
    position, owner = np.zeros(shape, np.int64), np.zeros(shape, np.int64)
    document, branch = np.full(shape, -1, np.int32), np.zeros(shape, np.int32)
    for index, (numbers, (row, start)) in enumerate(zip(documents, places, strict=True)):
        prompt = prompts[numbers[0]]
        shared = len(prompt) - 1
        end = start + shared
        input_ids[row, start:end] = prompt[:-1]
        position[row, start:end] = np.arange(shared)
        for which, number in enumerate(numbers, 1):
            reply = replies[number]
            here = slice(end, end + len(reply))
            input_ids[row, here] = [prompt[-1], *reply[:-1]]
            labels[row, here] = reply
            position[row, here] = shared + np.arange(len(reply))
            branch[row, here], owner[row, here] = which, number
            end += len(reply)
        document[row, start:end] = index
    # padding is a document of its own; numbers must ascend along a row, and documents were placed in any order
    document = np.cumsum(np.diff(document, axis=1, prepend=document[:, :1]) != 0, axis=1, dtype=np.int32)
    return Packed(
        input_ids=torch.from_numpy(input_ids),
        labels=torch.from_numpy(labels),
        position_ids=torch.from_numpy(position),
        doc_index=torch.from_numpy(document),
        branch_index=torch.from_numpy(branch) if len(documents) < len(lengths) else None,
        owner=torch.from_numpy(owner[labels != IGNORED]),
    )


def _documents(
    prompts: Sequence[Sequence[int]], replies: Sequence[Sequence[int]], longest: int
) -> list[list[int]]:
    """The sequences of each document: neighbours with one prompt, as far as they fit into `longest` positions."""
    documents: list[list[int]] = []
    for number, prompt in enumerate(prompts):
        if documents and list(prompts[documents[-1][0]]) == list(prompt):
            together = [*documents[-1], number]
            if _length(together, prompts, replies) <= longest:
                documents[-1] = together
                continue
        documents.append([number])
    return documents


def _length(
    numbers: Sequence[int], prompts: Sequence[Sequence[int]], replies: Sequence[Sequence[int]]
) -> int:
    """Positions of a document of these sequences."""
    return len(prompts[numbers[0]]) - 1 + sum(len(replies[number]) for number in numbers)


def _fit(lengths: Sequence[int]) -> tuple[list[tuple[int, int]], tuple[int, int]]:
    """(row, start) of each document, and the shape of the rows: of all widths the one with the fewest positions."""
    least = -(-max(lengths) // ROW_MULTIPLE) * ROW_MULTIPLE
    fits = [_first_fit(lengths, width) for width in range(least, max(least, WIDE) + 1, ROW_MULTIPLE)]
    return min(fits, key=lambda fit: fit[1][0] * fit[1][1])


def _first_fit(lengths: Sequence[int], width: int) -> tuple[list[tuple[int, int]], tuple[int, int]]:
    """First fit by decreasing length."""
    used: list[int] = []
    places: list[tuple[int, int]] = [(0, 0)] * len(lengths)
    for i in sorted(range(len(lengths)), key=lambda i: (-lengths[i], i)):
        row = next((r for r, u in enumerate(used) if u + lengths[i] <= width), len(used))
        if row == len(used):
            used.append(0)
        places[i] = (row, used[row])
        used[row] += lengths[i]
    return places, (len(used), width)
