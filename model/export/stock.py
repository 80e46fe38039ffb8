"""A Steel folder as a stock Qwen2 or Qwen2-MoE folder of transformers, which needs no code of Steel's.

Dense: the same function under other names; Steel keeps `down_proj` [width, hidden], so it is transposed.

Soft MoE by token with a linear router l = scale * x·phi / sqrt(d): a Qwen2-MoE whose every expert is taken, without
renormalising the weights; scale and sqrt(d) go into the gate. Its shared expert cannot be left out: its matrices are
zero, and its gate is not, as llama.cpp computes sigmoid(g) as silu(g) / g.

A cosine router is almost linear, because the norm before it gives every x nearly the length of the norm's weight w:
    scale * cos(x, phi) ~ x · (scale * phi / |phi| / |w|)
`fold_cosine` takes that. How near it is depends on w, so each folder is measured (parity.py).

The multiplier of the embeddings goes into the table, and the head keeps a table of its own.
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor
from transformers import GenerationConfig, Qwen2Config, Qwen2ForCausalLM, Qwen2MoeConfig, Qwen2MoeForCausalLM

from model import place
from model.export.forms import FormError, refusal, stock_form
from model.place import ModelError, share_modes, weight_files

SAME = (
    "vocab_size", "hidden_size", "num_hidden_layers", "num_attention_heads", "num_key_value_heads",
    "max_position_embeddings", "rms_norm_eps", "bos_token_id", "eos_token_id", "pad_token_id",
)  # fmt: skip
SHARED_WIDTH = 32
"""Width of the shared expert of zeros: the least that blocks of Q8_0 divide."""
NOT_COPIED = ("config.json", "generation_config.json", "README.md", "model.safetensors.index.json")


def read_config(folder: Path) -> dict[str, Any]:
    """The parsed config.json. FormError where there is none."""
    try:
        return place.read_config(folder)
    except ModelError as error:
        raise FormError(str(error)) from None


def write_stock(source: Path, out: Path, *, fold_cosine: bool = False) -> str:
    """Write the folder `out` and return its form, `qwen2` or `qwen2_moe`. FormError where there is none.

    A model that is stock already is copied.
    """
    steel = read_config(source)
    form = stock_form(steel, fold_cosine=fold_cosine)
    if form is None:
        raise FormError(refusal("qwen2", steel))
    out.mkdir(parents=True, exist_ok=True)
    if steel["model_type"] != "steel":
        shutil.copytree(source, out, dirs_exist_ok=True)
        return form
    weights = {k: v for file in weight_files(source) for k, v in load_file(file).items()}
    with torch.device("meta"):
        lm = (Qwen2ForCausalLM if form == "qwen2" else Qwen2MoeForCausalLM)(stock_config(steel, form))
    lm.load_state_dict(stock_weights(steel, weights, form), strict=True, assign=True)
    lm.config.dtype = next(iter(weights.values())).dtype
    lm.generation_config = GenerationConfig.from_pretrained(source)
    lm.save_pretrained(out)  # experts one by one, as older readers want them
    config = read_config(out)
    config["rope_theta"] = steel["rope_theta"]  # older readers know it at the top only
    (out / "config.json").write_text(json.dumps(config, indent=2, sort_keys=True) + "\n", "utf-8")
    for path in sorted(source.iterdir()):
        if path.suffix in (".json", ".jinja", ".txt") and path.name not in NOT_COPIED:
            shutil.copyfile(path, out / path.name)
    share_modes(out)
    return form


def stock_config(steel: dict[str, Any], form: str) -> Qwen2Config | Qwen2MoeConfig:
    """The configuration of the stock model."""
    same = {name: steel.get(name) for name in SAME}
    same["rope_parameters"] = {"rope_type": "default", "rope_theta": steel["rope_theta"]}
    same["tie_word_embeddings"] = steel["tie_word_embeddings"] and steel["embedding_multiplier"] == 1.0
    same["intermediate_size"] = steel["num_experts"] * steel["expert_width"]
    if form == "qwen2":
        return Qwen2Config(**same)
    return Qwen2MoeConfig(
        **same,
        moe_intermediate_size=steel["expert_width"],
        shared_expert_intermediate_size=SHARED_WIDTH,
        num_experts=steel["num_experts"],
        num_experts_per_tok=steel["num_experts"],
        norm_topk_prob=False,
        router_aux_loss_coef=0.0,
    )


def stock_weights(steel: dict[str, Any], weights: dict[str, Tensor], form: str) -> dict[str, Tensor]:
    """Steel's tensors under Qwen's names, in their dtype."""
    made: dict[str, Tensor] = {}
    for name, w in weights.items():
        if ".mlp." not in name:
            made[name] = w
    for layer in range(steel["num_hidden_layers"]):
        at = f"model.layers.{layer}."
        dense = form == "qwen2"
        made.update(_dense(weights, f"{at}mlp.") if dense else _experts(steel, weights, at))
    table = "model.embed_tokens.weight"
    if steel["embedding_multiplier"] != 1.0:
        made.setdefault("lm_head.weight", made[table])
        made[table] = (made[table].float() * steel["embedding_multiplier"]).to(made[table].dtype)
    elif steel["tie_word_embeddings"]:
        made["lm_head.weight"] = made[table]
    return made


def _dense(weights: dict[str, Tensor], mlp: str) -> dict[str, Tensor]:
    """One expert of the whole width; the weights of a single expert add up to 1, so a router of one is left out."""
    return {
        f"{mlp}gate_proj.weight": weights[f"{mlp}experts.gate_up_proj"],
        f"{mlp}up_proj.weight": weights[f"{mlp}experts.up_proj"],
        f"{mlp}down_proj.weight": weights[f"{mlp}experts.down_proj"].T.contiguous(),
    }


def _experts(steel: dict[str, Any], weights: dict[str, Tensor], at: str) -> dict[str, Tensor]:
    mlp, count = f"{at}mlp.", steel["num_experts"]
    gate, up, down = (
        weights[f"{mlp}experts.{name}"].unflatten(0, (count, -1))
        for name in ("gate_up_proj", "up_proj", "down_proj")
    )
    phi, scale = weights[f"{mlp}phi"].float(), weights[f"{mlp}scale"].float()
    if steel.get("router", "cosine") == "linear":
        router = scale * phi * len(phi) ** -0.5
    else:
        norm = weights[f"{at}post_attention_layernorm.weight"].float()
        router = scale * torch.nn.functional.normalize(phi, dim=0) / torch.linalg.vector_norm(norm)
    width, zeros = len(phi), gate.new_zeros
    return {
        f"{mlp}gate.weight": router.T.contiguous().to(gate.dtype),
        f"{mlp}experts.gate_up_proj": torch.cat([gate, up], 1),
        f"{mlp}experts.down_proj": down.transpose(1, 2).contiguous(),
        f"{mlp}shared_expert.gate_proj.weight": zeros(SHARED_WIDTH, width),
        f"{mlp}shared_expert.up_proj.weight": zeros(SHARED_WIDTH, width),
        f"{mlp}shared_expert.down_proj.weight": zeros(width, SHARED_WIDTH),
        f"{mlp}shared_expert_gate.weight": gate.new_ones(1, width),
    }
