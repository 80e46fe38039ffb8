"""transformers' attention interface over rows packed with documents.

Every model that takes its attention from `ALL_ATTENTION_FUNCTIONS` hands the keyword arguments of its forward down to
it. So `documents=` reaches each layer, whatever the architecture, and transformers makes no mask of its own.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from model.families.configuration import FamilyError
from model.steel.attention import KERNELS, Documents, packed_attention

PACKED = "packed_documents"
OTHERS = ("head_mask", "sinks", "position_bias", "indices")
"""Arguments of some models that change the scores; the packed attention has none of them."""


class PackedRows:
    """The documents of a batch's rows, and the mask of each sliding window, made when the first layer asks for it."""

    def __init__(
        self,
        doc_index: Tensor,
        position_ids: Tensor,
        how: str,
        chunked: bool | None,
        at_most: int | None,
        branch_index: Tensor | None = None,
    ):
        """As model.steel.attention.Documents.of; all [B, T]."""
        self.doc_index, self.position_ids, self.branch_index = doc_index, position_ids, branch_index
        self.how, self.chunked, self.at_most = how, chunked, at_most
        self.made: dict[tuple[torch.dtype, int | None], Documents] = {}

    def of(self, dtype: torch.dtype, window: int | None) -> Documents:
        """Who may see whom; `window`: a query sees so many keys, its own among them."""
        length = self.doc_index.shape[1]
        if window is not None and window >= length:
            window = None
        if (dtype, window) not in self.made:
            if window is not None and self.how in KERNELS:
                raise FamilyError(
                    f"a sliding window of {window} is shorter than the rows of {length}: choose attention sdpa"
                )
            documents = Documents.of(
                self.doc_index, dtype, self.how, self.chunked, self.at_most, self.branch_index
            )
            if window is not None:
                assert documents.mask is not None
                place = self.position_ids
                far = place.unsqueeze(2) - place.unsqueeze(1) >= window
                documents.mask.masked_fill_(far.unsqueeze(1), float("-inf"))
            self.made[dtype, window] = documents
        return self.made[dtype, window]


def attend(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    scaling: float | None = None,
    documents: PackedRows | None = None,
    sliding_window: int | None = None,
    softcap: float | None = None,
    s_aux: Tensor | None = None,
    **more: Any,
) -> tuple[Tensor, None]:
    """query [B, H, T, head_dim], key and value with H or fewer heads -> [B, T, H, head_dim]. `s_aux` [H]: sinks.

    Dropout is left out: a resumed run must repeat every step.
    """
    kind = getattr(getattr(module, "config", None), "model_type", type(module).__name__)
    if documents is None:
        raise FamilyError(
            f"{kind} cannot be trained here: its attention does not get the documents of its rows: they would not be kept apart"
        )
    if attention_mask is not None:
        raise FamilyError(f"{kind} cannot be trained here: it makes an attention mask of its own")
    for name in OTHERS:
        if more.get(name) is not None:
            raise FamilyError(
                f"{kind} cannot be trained here: its attention uses {name}, which packed attention does not have"
            )
    if scaling is None:
        scaling = query.shape[-1] ** -0.5
    if softcap != soft_cap(getattr(module, "config", None)):
        raise FamilyError(
            f"{kind} cannot be trained here: its attention does not get the soft cap that it names"
        )
    plain = softcap is not None or s_aux is not None or value.shape[-1] != query.shape[-1]
    if documents.how in KERNELS and plain:
        raise FamilyError(
            f"{kind}: its attention has a soft cap, sinks, or values of another width than its queries: choose attention sdpa"
        )
    seen = documents.of(query.dtype, sliding_window)
    out = packed_attention(query, key, value, seen, scaling, softcap, s_aux)
    return out.contiguous(), None  # some models take another view of it


def soft_cap(config: Any) -> float | None:
    """The attention scores s of a configuration become cap tanh(s / cap) (Gemma 2, arXiv 2408.00118, section 2)."""
    return getattr(config, "attn_logit_softcapping", None)


def plain_only(lm: nn.Module) -> bool:
    """Whether its attention has what the kernels of packed attention have not: a soft cap, sinks (gpt-oss, arXiv 2508.10925),
    or values of another width than queries and keys (multi-head latent attention, arXiv 2405.04434). Windows:
    probe.shortest_window."""
    config: Any = lm.config
    width = getattr(config, "v_head_dim", None)
    sinks = any(getattr(module, "sinks", None) is not None for module in lm.modules())
    return sinks or soft_cap(config) is not None or width not in (None, getattr(config, "qk_head_dim", None))


ALL_ATTENTION_FUNCTIONS.register(PACKED, attend)
