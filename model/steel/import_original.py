"""Weights of the published Steel-LLM, under its own names, as a Steel model of the kind `released`.

    python -m model.steel.import_original CHECKPOINT_FOLDER TARGET_FOLDER

| original                                                   | here                                               |
|------------------------------------------------------------|----------------------------------------------------|
| `mlp.phi` [d, experts, slots]                              | `mlp.phi` [d, experts * slots]                     |
| `mlp.experts.E.gate_up_proj.weight`, `up_proj` [w, d]      | rows E*w ... of `mlp.experts.gate_up_proj`, ...    |
| `mlp.experts.E.gate_down_proj.weight`, `down_proj` [d, w]  | the same rows, transposed                          |
| `mlp.experts.E.gate_proj.weight` (its plain SwiGLU)        | rows E*w ... of `mlp.experts.gate_up_proj`         |

All other names are the same. Every weight is used and every parameter is filled, or the import fails. The result can
be scored under each kind (`config.ffn`); `token` is what the original computes in cached decoding, but for the unit
length of its tokens.
"""

from __future__ import annotations

import argparse
import re
import shutil
import sys
from collections.abc import Mapping
from pathlib import Path
from pickle import UnpicklingError
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor
from transformers import GenerationConfig

from model.place import ModelError, aside, read_config, weight_files
from model.steel import SteelConfig, SteelForCausalLM

EXPERT = re.compile(r"(?P<layer>.*\.mlp\.experts)\.(?P<number>\d+)\.(?P<name>\w+)\.weight")
SAME_FIELDS = (
    "vocab_size",
    "hidden_size",
    "num_hidden_layers",
    "num_attention_heads",
    "num_key_value_heads",
    "max_position_embeddings",
    "rope_theta",
    "rms_norm_eps",
    "initializer_range",
    "tie_word_embeddings",
    "bos_token_id",
    "eos_token_id",
    "pad_token_id",
)
TOKENIZER_FILES = (
    "tokenizer.json",
    "tokenizer_config.json",
    "vocab.json",
    "merges.txt",
    "special_tokens_map.json",
)


class NotOriginalError(ValueError):
    """A folder that does not hold the published model, or a target that is there already: one clear line."""


def convert_config(original: Mapping[str, Any]) -> SteelConfig:
    """The geometry, from the original's config.json."""
    if original.get("FFN_type") != "softmoe_v3":
        raise NotOriginalError(
            f"FFN_type is {original.get('FFN_type')!r}: only softmoe_v3, which was published, can be read"
        )
    experts = {"senet": "double_swiglu", "raw": "swiglu"}
    if original.get("mlp_type") not in experts:
        raise NotOriginalError(f"mlp_type is {original.get('mlp_type')!r}, not one of {', '.join(experts)}")
    missing = [name for name in ("n_experts", "intermediate_size", "mlp_div_ratio") if name not in original]
    if missing:
        raise NotOriginalError(f"config.json has no {', '.join(missing)}")
    return SteelConfig(
        **{name: original[name] for name in SAME_FIELDS if name in original},
        ffn="released",
        expert=experts[original["mlp_type"]],
        num_experts=original["n_experts"],
        slots_per_expert=original.get("slots_per_expert", 1),
        expert_width=original["intermediate_size"] // original["mlp_div_ratio"],
    )


def convert_weights(original: Mapping[str, Tensor], config: SteelConfig) -> dict[str, Tensor]:
    """The same numbers under our names and in our shapes."""
    weights, experts = {}, {}
    for name, tensor in original.items():
        if name.endswith("rotary_emb.inv_freq"):  # a table that is computed here
            continue
        found = EXPERT.fullmatch(name)
        if found:
            kind = "gate_up_proj" if found["name"] == "gate_proj" else found["name"]
            wide = tensor.t() if kind in ("gate_down_proj", "down_proj") else tensor
            experts.setdefault(f"{found['layer']}.{kind}", {})[int(found["number"])] = wide
        else:
            weights[name] = tensor.flatten(1) if name.endswith(".mlp.phi") else tensor
    for name, parts in experts.items():
        if sorted(parts) != list(range(config.num_experts)):
            raise NotOriginalError(
                f"{name} has the experts {sorted(parts)}, the config says {config.num_experts}"
            )
        weights[name] = torch.cat([parts[e] for e in range(config.num_experts)]).contiguous()
    with torch.device("meta"):
        wanted = {name: p.shape for name, p in SteelForCausalLM(config).state_dict().items()}
    if config.tie_word_embeddings:
        weights.setdefault("lm_head.weight", weights["model.embed_tokens.weight"])
    missing, unknown = sorted(wanted.keys() - weights), sorted(weights.keys() - wanted)
    if missing or unknown:
        raise NotOriginalError(f"not the original's weights: missing {missing[:3]}, unknown {unknown[:3]}")
    wrong = [name for name, shape in wanted.items() if weights[name].shape != shape]
    if wrong:
        raise NotOriginalError(
            f"{wrong[0]} has the shape {tuple(weights[wrong[0]].shape)}, not {tuple(wanted[wrong[0]])}"
        )
    return weights


def read_weights(folder: Path) -> dict[str, Tensor]:
    """All weights of a checkpoint folder: safetensors, or PyTorch files without code in them."""
    whole = any(folder.glob("*.safetensors"))
    files = weight_files(folder) if whole else sorted(folder.glob("pytorch_model*.bin"))
    if not files:
        raise NotOriginalError(f"{folder} holds neither *.safetensors nor pytorch_model*.bin")
    weights: dict[str, Tensor] = {}
    for file in files:
        try:
            weights |= load_file(file) if whole else torch.load(file, map_location="cpu", weights_only=True)
        except (OSError, EOFError, RuntimeError, SafetensorError, UnpicklingError) as error:
            line = str(error).partition("\n")[0]
            raise NotOriginalError(f"{file} cannot be read: {type(error).__name__} {line}") from error
    return weights


def import_folder(source: Path, target: Path) -> SteelForCausalLM:
    """Read an original checkpoint folder, write a Steel folder with its tokenizer, renamed into place; the model is
    returned. NotOriginalError or ModelError where the source is no such folder, or the target is there already."""
    if target.exists():
        raise NotOriginalError(f"{target} exists")
    config = convert_config(read_config(source))
    weights = convert_weights(read_weights(source), config)
    with torch.device("meta"):
        lm = SteelForCausalLM(config)
    lm.load_state_dict(weights, assign=True)
    lm.tie_weights()
    ends = [token for token in (config.eos_token_id, config.bos_token_id) if token is not None]
    lm.generation_config = GenerationConfig(eos_token_id=ends, pad_token_id=config.pad_token_id)
    with aside(target) as partial:
        lm.save_pretrained(partial)
        for name in TOKENIZER_FILES:
            if (source / name).is_file():
                shutil.copyfile(source / name, partial / name)
    return lm


def main(arguments: list[str]) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m model.steel.import_original", description=__doc__.partition("\n")[0]
    )
    parser.add_argument("source", type=Path, help="the published checkpoint's folder")
    parser.add_argument("target", type=Path, help="the folder to make")
    options = parser.parse_args(arguments)
    try:
        made = import_folder(options.source, options.target)
    except (NotOriginalError, ModelError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    print(f"{made.num_parameters():,} parameters, ffn: {made.config.ffn}, in {options.target}")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
