"""The folder of a model of transformers, under its own type."""

from __future__ import annotations

import copy
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch
from huggingface_hub.errors import StrictDataclassError
from torch import Tensor
from transformers import AutoModelForCausalLM, GenerationConfig, PreTrainedConfig


def save(
    folder: Path,
    config: PreTrainedConfig,
    weights: dict[str, Tensor],
    special_tokens: dict[str, Any],
    init_from: str | None,
) -> None:
    """config.json, weights and generation_config.json, as transformers writes them.

    A model continued from `init_from` keeps that folder's special tokens and way of generating; a fresh one has
    `special_tokens` (bos_token_id, eos_token_id, pad_token_id; empty: none are known).
    """
    config = copy.deepcopy(config)
    config._attn_implementation = None
    config.use_cache = True
    if init_from is None:
        for name in ("bos_token_id", "eos_token_id", "pad_token_id"):
            with suppress(StrictDataclassError):  # a configuration that must have a number keeps its own
                setattr(config, name, special_tokens.get(name))
    with torch.device("meta"):
        lm = AutoModelForCausalLM.from_config(
            config, dtype=next(iter(weights.values())).dtype, trust_remote_code=False
        )
    if init_from is not None and (Path(init_from) / "generation_config.json").is_file():
        lm.generation_config = GenerationConfig.from_pretrained(init_from)
    elif init_from is None and special_tokens:
        ends = [special_tokens["eos_token_id"], special_tokens["pad_token_id"]]
        lm.generation_config = GenerationConfig(
            bos_token_id=special_tokens["bos_token_id"],
            eos_token_id=list(dict.fromkeys(ends)),
            pad_token_id=special_tokens["pad_token_id"],
        )
    lm.save_pretrained(folder, state_dict=weights)
