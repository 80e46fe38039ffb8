"""Two losses on the same targets: teacher-forced, and honest (only the tokens before the target are given).

Training and validation hand a model the whole row and read the prediction at every position. A causal model's
prediction at t cannot depend on what comes after, so it scores the same when it is given the prefix alone. A
model that leaks scores better on the whole row than it ever will when it generates: the difference is the leak.

    teacher-forced   -log p(x[t] | model(x)[t - 1])
    honest           -log p(x[t] | model(x[:t])[t - 1])
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from model.training.batch import IGNORED
from model.training.gather import Rows


@dataclass(frozen=True)
class Losses:
    """Per target, FP64 [N] each, in the same order."""

    forced: np.ndarray
    honest: np.ndarray


@torch.inference_mode()
def losses(
    model: torch.nn.Module,
    files: Sequence[dict[str, Any]],
    *,
    rows: int,
    positions: int,
    seed: int,
    batch_rows: int = 32,
) -> Losses:
    """Score targets at `positions` places of up to `rows` rows of the shard files {"path", "rows"?, …}.

    The rows are spread evenly over all files together, the places over a row with a random shift each (seed).
    Costs one forward pass for each place, of half a row's length on average. Raises ValueError if no
    place has a target.
    """
    every_id, every_label, every_position, every_document = _rows(files, rows)
    length = every_id.shape[1]
    shift = np.random.default_rng(seed).random()
    places = np.unique(((np.arange(positions) + shift) * length / positions).astype(int)).tolist()
    forced, honest = [], []
    for start in range(0, len(every_id), batch_rows):
        part = slice(start, start + batch_rows)
        ids, labels = every_id[part], every_label[part]
        position_ids, documents = every_position[part], every_document[part]
        hidden = model.model(
            input_ids=ids, position_ids=position_ids, doc_index=documents, use_cache=False
        ).last_hidden_state
        for place in places:
            target = labels[:, place]
            if (target == IGNORED).all():
                continue
            end = place + 1
            alone = model.model(
                input_ids=ids[:, :end],
                position_ids=position_ids[:, :end],
                doc_index=documents[:, :end],
                use_cache=False,
            ).last_hidden_state[:, -1]
            forced.append(_nll(model, hidden[:, place], target))
            honest.append(_nll(model, alone, target))
    if not forced:
        raise ValueError("none of the chosen places has a target")
    return Losses(np.concatenate(forced), np.concatenate(honest))


def _rows(files: Sequence[dict[str, Any]], limit: int) -> list[Tensor]:
    """input_ids, labels, position_ids, doc_index [B, T] of up to `limit` rows, evenly over all of them."""
    opened = Rows(files)
    ends = np.cumsum(opened.rows)
    count = int(ends[-1])
    chosen = np.unique(np.linspace(0, count - 1, min(limit, count)).round().astype(np.int64))
    file = np.searchsorted(ends, chosen, side="right")
    row = chosen - (ends - opened.rows)[file]
    (batch,) = opened.batches(file, row, chosen, len(chosen))
    return [batch.input_ids, batch.labels, batch.position_ids, batch.doc_index]


def _nll(model: torch.nn.Module, hidden: Tensor, target: Tensor) -> np.ndarray:
    """hidden [B, D], target [B] -> -log p of the real targets, FP64."""
    real = target != IGNORED
    logits = model.lm_head(hidden[real]).float()
    return F.cross_entropy(logits, target[real], reduction="none").double().numpy()
