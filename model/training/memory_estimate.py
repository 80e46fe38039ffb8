"""Memory of one rank for another model of transformers, by arithmetic: what model.training.memory tracks for Steel's own.

    python -m model.training.memory_estimate QUESTIONS.json       prints a JSON list, an answer for each

Questions and answers are those of model.training.memory. The model's forward runs on the meta device, and what autograd
would keep is added up, each storage once: that is exact. Around it stands what FSDP2 keeps: FP32 shards of weights,
gradients and two moments, all weights gathered in the dtype of the products, whole FP32 gradients between micro-steps,
the loss's buffers. What the backward pass makes for a moment is taken as two more blocks. It is an estimate, and held
against the tracker on one geometry that both know (a test).
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd import Function
from transformers import PreTrainedModel
from transformers.integrations import moe
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from kernels import cross_entropy
from model.families import FamilyError, counts, network
from model.families.head import auxiliary_weight, soft_cap
from model.steel.attention import Documents, packed_attention
from model.training.config import ConfigError, TrainConfig, from_dict
from model.training.loss import CHUNK_TOKENS
from model.training.memory import beside
from model.training.parallel import read_geometry

PLANNED = "planned_without_numbers"


class _Attention(Function):
    """Keeps what a fused attention keeps: its inputs, its output and a number a query."""

    @staticmethod
    def forward(ctx: Any, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        out = query.new_empty(*query.shape[:-1], value.shape[-1])
        ctx.save_for_backward(query, key, value, out, query.new_empty(query.shape[:-1], dtype=torch.float32))
        return out

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Any:
        raise RuntimeError("nothing is computed here")


def _attend(
    _: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    *__: Any,
    softcap: float | None = None,
    s_aux: Tensor | None = None,
    **___: Any,
) -> tuple[Tensor, None]:
    if softcap is not None or s_aux is not None:
        # as it is computed: the whole square, and what autograd keeps of it
        length = query.shape[2]
        seen = Documents("sdpa", query.new_empty(len(query), 1, length, length))
        return packed_attention(query, key, value, seen, 1.0, softcap, s_aux).contiguous(), None
    return _Attention.apply(query, key, value).transpose(1, 2), None


ALL_ATTENTION_FUNCTIONS.register(PLANNED, _attend)


class _Grouped(Function):
    """Keeps what a product with the experts' stacked weights keeps. torch's own has no form without numbers in FP32."""

    @staticmethod
    def forward(ctx: Any, rows: Tensor, weight: Tensor, ends: Tensor) -> Tensor:
        ctx.save_for_backward(rows, weight, ends)
        return rows.new_empty(len(rows), weight.shape[-1])

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Any:
        raise RuntimeError("nothing is computed here")


@contextmanager
def _grouped() -> Iterator[None]:
    """transformers' experts without numbers."""
    theirs = moe._grouped_mm
    moe._grouped_mm = lambda input, weight, offs: _Grouped.apply(input.to(weight.dtype), weight, offs)
    try:
        yield
    finally:
        moe._grouped_mm = theirs


def answer(question: dict[str, Any]) -> dict[str, Any]:
    """As model.training.memory.answer. FamilyError for a model whose memory is not known without its numbers."""
    train = from_dict(question["train"])
    geometry = read_geometry(train, None if train.init_from is None else Path(train.init_from))
    lm = network.build(geometry)
    auxiliary_weight(lm)
    lm.config._attn_implementation = PLANNED
    tables = {id(m.weight) for m in lm.modules() if isinstance(m, nn.Embedding)}
    tables.add(id(lm.get_output_embeddings().weight))
    parameters = sum(p.numel() for p in lm.parameters())
    flops = counts.flops_per_token(lm)(question["length"])
    lm.to(device="meta", dtype=torch.float32 if train.precision == "fp32" else torch.bfloat16)
    lm.tie_weights()
    peaks = {rows: _peak(question, train, lm, rows) for rows in question["rows"]}
    fitting = [rows for rows, parts in peaks.items() if parts["total"] <= question["limit"]]
    return {
        "parameters": parameters,
        "parameters_without_embeddings": parameters
        - sum(p.numel() for p in lm.parameters() if id(p) in tables),
        "flops_per_token": flops,
        "peaks": {str(rows): parts for rows, parts in peaks.items()},
        "largest": max(fitting, default=0),
        "estimated": True,
    }


def _peak(question: dict[str, Any], train: TrainConfig, lm: PreTrainedModel, rows: int) -> dict[str, int]:
    whole, size = sum(p.numel() for p in lm.parameters()), lm.dtype.itemsize
    shard = -(-whole // question["ranks"])
    lines = rows * (2 if question.get("dpo") else question.get("group") or 1)
    kept = _kept(lm, lines, question["length"])
    blocks = len(network.blocks(lm))
    head = lm.get_output_embeddings().weight
    classes, hidden = head.shape
    tokens = lines * question["length"]
    chunk = cross_entropy.default_chunk(tokens, classes, hidden, size)
    micro_steps = question["micro"] and train.batch_size > rows * question["ranks"]
    parts = {
        "parameters": 4 * shard,
        "gradients": 4 * (whole if micro_steps else shard),
        "optimizer": 8 * shard,
        "activations": kept + 2 * kept // max(1, blocks),
        "unsharded": size * whole,
        "loss": cross_entropy.extra_bytes(tokens, classes, hidden, size, chunk)
        if train.kernels != "off" and soft_cap(lm) is None
        else min(CHUNK_TOKENS, tokens) * classes * (2 * size + 4) + 4 * classes * hidden,
    }
    parts["total"] = sum(parts.values())
    if not question.get("group"):
        return parts
    return beside(parts, whole, size, question["ranks"], bool(question.get("reference")))


def _kept(lm: PreTrainedModel, rows: int, length: int) -> int:
    """Bytes that autograd keeps of a forward over so many rows, up to the head."""
    own = {p.untyped_storage()._cdata for p in lm.parameters()}
    seen: dict[int, int] = {}
    alive = []  # a freed storage's number may come again

    def pack(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage._cdata not in own:
            seen[storage._cdata] = storage.nbytes()
            alive.append(storage)
        return tensor

    ids = torch.zeros(rows, length, dtype=torch.long, device="meta")
    try:
        with _grouped(), torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
            lm.base_model(input_ids=ids, position_ids=ids, attention_mask=None, use_cache=False)
    except (NotImplementedError, RuntimeError) as error:
        raise FamilyError(
            f"the memory of {lm.config.model_type} is not known without its numbers: {str(error).partition(chr(10))[0]}"
        ) from error
    return sum(seen.values())


def main(arguments: list[str]) -> int:
    try:
        print(
            json.dumps([answer(question) for question in json.loads(Path(arguments[0]).read_text("utf-8"))])
        )
    except (ConfigError, FamilyError) as error:
        print(error, file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
