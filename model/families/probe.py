"""Short rows of two documents, computed as training does, against transformers' own forward of each document alone.

A list of names knows the models of today; this finds the factor, window or recurrence of the next one before the first
step, on the weights that are to be trained.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
from torch import Tensor
from torch.nn import functional as F
from transformers import PreTrainedModel

from model.families.attention import PACKED
from model.families.configuration import FamilyError, reason_of
from model.families.head import soft_cap, with_head
from model.scores.head import finished

LENGTHS = (7, 10)
REPLY = 4
"""Tokens of a branch, of which the second document gets two: its end, and as many others."""
TOLERANCE = {torch.float32: 1e-3, torch.bfloat16: 0.1}
"""Of the relative difference (norms); BF16 rounds, and experts may be chosen otherwise."""


@torch.no_grad()
def check(
    lm: PreTrainedModel, packed: Callable[..., Tensor], dtype: torch.dtype, *, branches: bool = False
) -> bool:
    """Raise FamilyError where the two differ; whether branches of a document (asked with `branches`) do not.

    `packed(input_ids, position_ids, doc_index[, branch_index])`, each [1, T] -> hidden states [T, D], as training
    computes them.
    """
    kind, device = lm.config.model_type, lm.device
    window = shortest_window(lm)
    lengths = LENGTHS if window is None or window > 512 else (LENGTHS[0], window + LENGTHS[1])
    rng = torch.Generator().manual_seed(0)
    ids = torch.randint(0, lm.config.vocab_size, (1, sum(lengths)), generator=rng).to(device)
    places = torch.cat([torch.arange(n) for n in lengths])[None].to(device)
    documents = torch.repeat_interleave(torch.arange(2), torch.tensor(lengths))[None].to(device)
    with _in_one_line(kind, "its packed forward"):
        ours = _logits(lm, packed(ids, places, documents))
    first, second = ids.split(lengths, dim=1)
    reply = second[:, -REPLY:].flip(1)
    branched = None
    if branches:
        more, which = torch.cat([ids, reply], 1), torch.zeros_like(documents)
        which[:, -REPLY:] = 1
        hidden = packed(
            more,
            torch.cat([places, places[:, -REPLY:]], 1),
            F.pad(documents, (0, REPLY), value=1),
            F.pad(which, (0, REPLY), value=2),
        )
        branched = _logits(lm, hidden)
    lm.config._attn_implementation = "eager"
    try:
        with _in_one_line(kind, "transformers' own forward"):
            theirs = [lm(input_ids=part, use_cache=False).logits[0] for part in (first, second)]
            if branched is not None:
                other = torch.cat([second[:, :-REPLY], reply], 1)
                other = lm(input_ids=other, use_cache=False).logits[0, -REPLY:]
        _check_head(lm, dtype)
    finally:
        lm.config._attn_implementation = PACKED
    if (apart := _apart(ours, torch.cat(theirs))) > TOLERANCE[dtype]:
        raise FamilyError(
            f"{kind} cannot be trained here: its logits for packed documents differ by {apart:.2g} from those that "
            "transformers computes for each document alone"
        )
    return branched is not None and _apart(branched, torch.cat([*theirs, other])) <= TOLERANCE[dtype]


@contextmanager
def _in_one_line(kind: str, what: str) -> Iterator[None]:
    """Sizes that a configuration takes may still not go together: then a product fails, with an error of any kind."""
    try:
        yield
    except FamilyError:
        raise
    except Exception as error:
        raise FamilyError(f"{kind} cannot be trained here: {what} fails: {reason_of(error)}") from error


def shortest_window(lm: PreTrainedModel) -> int | None:
    """The shortest sliding window of any layer, in tokens."""
    windows = (getattr(module, "sliding_window", None) for module in lm.modules())
    return min((w for w in windows if isinstance(w, int) and w > 0), default=None)


def _check_head(lm: PreTrainedModel, dtype: torch.dtype) -> None:
    """With hidden states so large that a soft cap shows, which fresh weights would hide."""
    weight = lm.get_output_embeddings().weight
    hidden = torch.randn(1, 4, weight.shape[1], generator=torch.Generator().manual_seed(0))
    raw, columns = with_head(lm, hidden[0].to(weight))
    hidden = (hidden * (100 / (raw @ columns.t()).float().abs().max().clamp(min=1e-6).item())).to(weight)
    ours = _logits(lm, hidden[0])
    none = torch.zeros(1, 4, dtype=torch.long, device=weight.device)
    hook = lm.get_output_embeddings().register_forward_pre_hook(lambda *_: (hidden,))
    try:
        theirs = lm(input_ids=none, use_cache=False)
    finally:
        hook.remove()
    if (apart := _apart(ours, theirs.logits[0])) > TOLERANCE[dtype] / 4:
        raise FamilyError(
            f"{lm.config.model_type} cannot be trained here: its head does more than a product, a bias, a known factor "
            f"and a soft cap (logits differ by {apart:.2g})"
        )


def _logits(lm: PreTrainedModel, hidden: Tensor) -> Tensor:
    hidden, weight = with_head(lm, hidden)
    return finished(hidden @ weight.t(), 1.0, soft_cap(lm))


def _apart(a: Tensor, b: Tensor) -> float:
    a, b = a.double(), b.double()
    return ((a - b).norm() / b.norm().clamp(min=1e-30)).item()
