"""Tiny models of other architectures, and transformers' own loss of each document alone."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.nn import functional as F
from transformers import AutoModelForCausalLM

from model.families import configuration, network
from model.training.objectives import FamilyScorer
from model.training.shards import ShardFile
from tests.support import engine_helpers as tiny

BASE: dict[str, Any] = {
    "vocab_size": tiny.VOCAB, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2,
    "num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 64, "initializer_range": 0.15,
}  # fmt: skip
EXPERTS = {"num_experts_per_tok": 2, "output_router_logits": True}
MODELS: dict[str, dict[str, Any]] = {
    "qwen2": {"model_type": "qwen2", **BASE, "tie_word_embeddings": False},
    "qwen2-tied": {"model_type": "qwen2", **BASE, "tie_word_embeddings": True},
    "llama": {"model_type": "llama", **BASE, "head_dim": 8},
    "qwen3": {"model_type": "qwen3", **BASE, "head_dim": 8},
    "olmo2": {"model_type": "olmo2", **BASE},
    "mistral-window": {"model_type": "mistral", **BASE, "head_dim": 8, "sliding_window": 5},
    "mixtral": {"model_type": "mixtral", **BASE, "head_dim": 8, "num_local_experts": 4, **EXPERTS},
    "qwen3-moe": {
        "model_type": "qwen3_moe", **BASE, "head_dim": 8, "num_experts": 4, "moe_intermediate_size": 16, **EXPERTS,
    },
    "gpt2": {
        "model_type": "gpt2", "vocab_size": tiny.VOCAB, "n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 64,
        "initializer_range": 0.15,
    },
    "granite": {"model_type": "granite", **BASE, "logits_scaling": 4.0, "attention_multiplier": 0.2},
    "cohere": {"model_type": "cohere", **BASE, "logit_scale": 0.5},
    "phi-biased-head": {"model_type": "phi", **BASE},
    "gemma2": {
        "model_type": "gemma2", **BASE, "head_dim": 8, "query_pre_attn_scalar": 8, "sliding_window": 6, "pad_token_id": 0,
        "attn_logit_softcapping": 2.0, "final_logit_softcapping": 3.0,
    },
    "deepseek2-latent": {
        "model_type": "deepseek_v2", **BASE, "num_key_value_heads": 4, "q_lora_rank": None, "kv_lora_rank": 16,
        "qk_rope_head_dim": 8, "qk_nope_head_dim": 8, "v_head_dim": 12, "n_routed_experts": 4, "num_experts_per_tok": 2,
        "moe_intermediate_size": 16, "n_group": 1, "topk_group": 1, "first_k_dense_replace": 1, "n_shared_experts": 1,
    },
    "deepseek3": {
        "model_type": "deepseek_v3", **BASE, "num_key_value_heads": 4, "q_lora_rank": 16, "kv_lora_rank": 16,
        "qk_rope_head_dim": 8, "qk_nope_head_dim": 8, "v_head_dim": 12, "n_routed_experts": 4, "num_experts_per_tok": 2,
        "moe_intermediate_size": 16, "n_group": 2, "topk_group": 1, "first_k_dense_replace": 1, "n_shared_experts": 1,
    },
    "gpt-oss": {
        "model_type": "gpt_oss", **BASE, "head_dim": 8, "num_local_experts": 4, "num_experts_per_tok": 2,
        "sliding_window": 6, "layer_types": ["sliding_attention", "full_attention"],
    },
    "glm4-moe": {
        "model_type": "glm4_moe", **BASE, "head_dim": 8, "n_routed_experts": 4, "num_experts_per_tok": 2, "n_group": 1,
        "topk_group": 1, "moe_intermediate_size": 16, "first_k_dense_replace": 1, "n_shared_experts": 1,
    },
    "gemma4": {
        "model_type": "gemma4_text", **BASE, "head_dim": 8, "pad_token_id": 0, "sliding_window": 6,
        "hidden_size_per_layer_input": 8, "vocab_size_per_layer_input": tiny.VOCAB,
    },
    "cwm": {"model_type": "cwm", **BASE, "head_dim": 8, "sliding_window": 6},
    "jetmoe": {"model_type": "jetmoe", **BASE, "kv_channels": 8, "num_local_experts": 4, **EXPERTS},
    "opt": {
        "model_type": "opt", "vocab_size": tiny.VOCAB, "hidden_size": 32, "word_embed_proj_dim": 24, "ffn_dim": 48,
        "num_hidden_layers": 2, "num_attention_heads": 4, "max_position_embeddings": 64, "init_std": 0.15,
    },
    "gemma3": {"model_type": "gemma3_text", **BASE, "head_dim": 8, "sliding_window": 6,
        "layer_types": ["sliding_attention", "full_attention"], "pad_token_id": 0},
}  # fmt: skip


def built(model: dict[str, Any], seed: int = 7) -> FamilyScorer:
    """A model on the CPU with fresh weights, and its scorer."""
    lm = network.build(configuration.from_fields(model))
    tensor_of = network.from_seed(lm, seed)
    scorer = FamilyScorer(lm, torch.float32, "sdpa", True)
    network.materialise(scorer, torch.device("cpu"))
    lm.tie_weights()
    with torch.no_grad():
        for name, parameter in lm.named_parameters():
            parameter.copy_(tensor_of(name))
    return scorer.eval()


def loss_of_documents(export: Path, shards: list[Path]) -> float:
    """Mean loss of the targets, one forward of transformers a document."""
    lm = AutoModelForCausalLM.from_pretrained(export, attn_implementation="eager", dtype=torch.float32).eval()
    total, targets = 0.0, 0
    for shard in shards:
        for batch in ShardFile(shard).batches():
            for row, valid in enumerate(batch.valid):
                starts = batch.starts[batch.offsets[row] : batch.offsets[row + 1]]
                for begin, end in zip(starts, [*starts[1:], valid], strict=True):
                    ids = torch.from_numpy(batch.input_ids[row, begin:end].astype(np.int64))
                    if len(ids) > 1:
                        with torch.no_grad():
                            logits = lm(input_ids=ids[None, :-1]).logits[0]
                        total += F.cross_entropy(logits.double(), ids[1:], reduction="sum").item()
                        targets += len(ids) - 1
    return total / targets
