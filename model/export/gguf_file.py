"""A stock Qwen2 or Qwen2-MoE folder as one GGUF file, with tokenizer and chat template, for llama.cpp and Ollama.

No tensor is transposed or permuted: both architectures use RoPE by halves, as transformers does. Norms, biases and
routers stay F32. Q8_0 works in blocks of 32: a matrix whose rows these do not divide is written as F16.

llama.cpp does not normalise text: a tokenizer of Steel's does (NFC). Texts in NFC get the same ids.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import safe_open

from model.export.forms import FormError
from model.export.splits import split_name
from model.export.stock import read_config
from model.place import weight_files

DTYPES = {"F32": "ALL_F32", "F16": "MOSTLY_F16", "BF16": "MOSTLY_BF16", "Q8_0": "MOSTLY_Q8_0"}
"""Types of the matrices -> the file's type in its header."""
USUAL = {
    "use_sliding_window": False, "norm_topk_prob": False, "decoder_sparse_step": 1, "mlp_only_layers": [],
    "hidden_act": "silu",
}  # fmt: skip
"""Fields that llama.cpp takes to be so, whatever a file says."""
BLOCK = 32
TOP = {"model.embed_tokens": "token_embd", "model.norm": "output_norm", "lm_head": "output"}
LAYER = {
    "input_layernorm": "attn_norm", "post_attention_layernorm": "ffn_norm", "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k", "self_attn.v_proj": "attn_v", "self_attn.o_proj": "attn_output",
    "mlp.gate_proj": "ffn_gate", "mlp.up_proj": "ffn_up", "mlp.down_proj": "ffn_down", "mlp.gate": "ffn_gate_inp",
    "mlp.shared_expert_gate": "ffn_gate_inp_shexp", "mlp.shared_expert.gate_proj": "ffn_gate_shexp",
    "mlp.shared_expert.up_proj": "ffn_up_shexp", "mlp.shared_expert.down_proj": "ffn_down_shexp",
}  # fmt: skip
_NAME = re.compile(r"(?:model\.layers\.(\d+)\.)?(.+)\.(weight|bias)")
_EXPERT = re.compile(r"mlp\.experts\.(\d+)\.(gate|up|down)_proj")


def write_gguf(folder: Path, out: Path, dtype: str, name: str = "") -> None:
    """Write the file. `dtype`: one of DTYPES. FormError where llama.cpp could not read it right."""
    from gguf import GGUFWriter, LlamaFileType

    config = read_config(folder)
    if config["model_type"] not in ("qwen2", "qwen2_moe"):
        raise FormError(f"the GGUF writer does not know models of type {config['model_type']}")
    for field, usual in USUAL.items():
        if config.get(field, usual) not in (usual, None):
            raise FormError(
                f"a model with {field}: {config[field]} cannot leave as GGUF: {field}: {usual} can"
            )
    writer = GGUFWriter(out, config["model_type"].replace("_", ""))
    writer.add_type("model")
    writer.add_name(name or folder.name)
    writer.add_file_type(LlamaFileType[DTYPES[dtype]])
    if dtype == "Q8_0":
        writer.add_quantization_version(2)
    _add_geometry(writer, config)
    _add_tokenizer(writer, folder, config)
    for tensor, w in tensors(folder):
        data, kind = _encoded(tensor, w, dtype)
        writer.add_tensor(tensor, data, raw_dtype=kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def tensors(folder: Path) -> Iterator[tuple[str, np.ndarray]]:
    """All tensors of a stock folder under llama.cpp's names, FP32, in the shapes of torch."""
    experts: dict[str, dict[int, np.ndarray]] = {}
    head = table = None
    for file in weight_files(folder):
        with safe_open(file, "pt") as opened:  # numpy has no BF16
            for name in opened.keys():  # noqa: SIM118  (no mapping)
                w = opened.get_tensor(name).float().numpy()
                match = _NAME.fullmatch(name)
                if match is None:
                    raise FormError(f"the GGUF writer does not know the tensor {name}")
                layer, part, end = match.groups()
                if layer is None:
                    head = w if part == "lm_head" else head
                    table = w if part == "model.embed_tokens" else table
                    yield f"{TOP[part]}.{end}", w
                elif each := _EXPERT.fullmatch(part):
                    experts.setdefault(f"blk.{layer}.ffn_{each[2]}_exps.weight", {})[int(each[1])] = w
                else:
                    yield f"blk.{layer}.{LAYER[part]}.{end}", w[0] if part == "mlp.shared_expert_gate" else w
    for name, members in experts.items():
        yield name, np.stack([members[i] for i in range(len(members))])
    if experts and head is None:  # this architecture does not fall back to the table
        assert table is not None
        yield "output.weight", table


def read_back(path: Path, config: dict[str, Any]) -> dict[str, torch.Tensor]:
    """The file's weights, FP32, under the names of transformers' state dict; to be held against the folder's."""
    from gguf import GGUFReader, quants

    top = {new: old for old, new in TOP.items()}
    layer_part = {new: old for old, new in LAYER.items()}
    read, stacks = {}, {}
    for tensor in GGUFReader(path).tensors:
        w = torch.from_numpy(np.array(quants.dequantize(tensor.data, tensor.tensor_type)))
        body, _, end = tensor.name.rpartition(".")
        if not body.startswith("blk."):
            read[f"{top[body]}.{end}"] = w
            continue
        _, layer, part = body.split(".")
        at = f"model.layers.{layer}."
        if part.endswith("_exps"):
            stacks.setdefault(f"{at}mlp.experts.", {})[part] = w
        else:
            old = layer_part[part]
            read[f"{at}{old}.{end}"] = w[None] if old == "mlp.shared_expert_gate" else w
    for name, parts in stacks.items():
        read[f"{name}gate_up_proj"] = torch.cat([parts["ffn_gate_exps"], parts["ffn_up_exps"]], 1)
        read[f"{name}down_proj"] = parts["ffn_down_exps"]
    if "lm_head.weight" not in read and config["tie_word_embeddings"]:
        read["lm_head.weight"] = read["model.embed_tokens.weight"]
    return read


def check_tensors(path: Path, folder: Path, dtype: str) -> dict[str, Any]:
    """Hold every tensor of the file against the folder's: bit for bit in the type it is written in, to 0.56 of a step
    in Q8_0. FormError where one differs; else what was compared."""
    from gguf import GGUFReader, quants

    wanted = dict(tensors(folder))
    types: dict[str, int] = {}
    for tensor in GGUFReader(path).tensors:
        w, kind = wanted.pop(tensor.name), tensor.tensor_type.name
        types[kind] = types.get(kind, 0) + 1
        got = quants.dequantize(tensor.data, tensor.tensor_type).reshape(w.shape)
        if kind == "Q8_0":
            blocks = np.abs(w).reshape(-1, BLOCK).max(1) / 127
            good = (np.abs(got - w).reshape(-1, BLOCK) <= 0.56 * blocks[:, None] + 1e-12).all()
        else:
            cast = {"F16": torch.float16, "BF16": torch.bfloat16}.get(kind, torch.float32)
            good = np.array_equal(torch.from_numpy(w.copy()).to(cast).float().numpy(), got)
        if not good:
            raise FormError(f"{path.name}: the tensor {tensor.name} is not what was written")
    if wanted:
        raise FormError(f"{path.name} lacks the tensor {next(iter(wanted))}")
    exact = {"F32": "bit for bit", "Q8_0": "to 0.56 of a quantisation step"}
    return {"tensors": types, "equal": exact.get(dtype, f"bit for bit, as {dtype}")}


def _add_geometry(writer: Any, config: dict[str, Any]) -> None:
    writer.add_block_count(config["num_hidden_layers"])
    writer.add_context_length(config["max_position_embeddings"])
    writer.add_embedding_length(config["hidden_size"])
    writer.add_feed_forward_length(config["intermediate_size"])
    writer.add_head_count(config["num_attention_heads"])
    writer.add_head_count_kv(config["num_key_value_heads"])
    writer.add_layer_norm_rms_eps(config["rms_norm_eps"])
    theta = config.get("rope_theta") or (config.get("rope_parameters") or {}).get("rope_theta", 10000.0)
    writer.add_rope_freq_base(theta)
    writer.add_vocab_size(config["vocab_size"])
    if config["model_type"] == "qwen2_moe":
        writer.add_expert_count(config["num_experts"])
        writer.add_expert_used_count(config["num_experts_per_tok"])
        writer.add_expert_feed_forward_length(config["moe_intermediate_size"])
        writer.add_expert_shared_feed_forward_length(config["shared_expert_intermediate_size"])


def _add_tokenizer(writer: Any, folder: Path, config: dict[str, Any]) -> None:
    from gguf import TokenType

    pre = split_name(folder)
    data = json.loads((folder / "tokenizer.json").read_text("utf-8"))
    tokens = {number: (text, TokenType.NORMAL) for text, number in data["model"]["vocab"].items()}
    for added in data["added_tokens"]:
        special = added["special"] or re.fullmatch(r"<\|.*\|>", added["content"])
        tokens[added["id"]] = (added["content"], TokenType.CONTROL if special else TokenType.USER_DEFINED)
    rows = [tokens.get(i, (f"[PAD{i}]", TokenType.UNUSED)) for i in range(config["vocab_size"])]
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre(pre)
    writer.add_token_list([text for text, _ in rows])
    writer.add_token_types([kind for _, kind in rows])
    writer.add_token_merges([m if isinstance(m, str) else " ".join(m) for m in data["model"]["merges"]])
    ends = config.get("eos_token_id")
    ids = {
        "bos": config.get("bos_token_id"),
        "eos": ends[0] if isinstance(ends, list) else ends,
        "pad": config.get("pad_token_id"),
    }
    for name, number in ids.items():
        if number is not None:
            getattr(writer, f"add_{name}_token_id")(number)
    writer.add_add_bos_token(False)
    settings = json.loads((folder / "tokenizer_config.json").read_text("utf-8"))
    if template := settings.get("chat_template"):
        writer.add_chat_template(template)


def _encoded(name: str, w: np.ndarray, dtype: str) -> tuple[np.ndarray, Any]:
    from gguf import GGMLQuantizationType, quants

    if w.ndim == 1 or "ffn_gate_inp" in name:
        kind = "F32"
    else:
        kind = "F16" if dtype == "Q8_0" and w.shape[-1] % BLOCK else dtype
    return quants.quantize(w, GGMLQuantizationType[kind]), GGMLQuantizationType[kind]
