"""The estimate for other models: counts are the model's, and activations those that a real forward keeps."""

import pytest
import torch

from model.families import FamilyError, configuration, network
from model.training import memory_estimate
from tests.support.families import MODELS

ROWS, LENGTH = 2, 24


def question(model: dict, **more) -> dict:
    train = {
        "objective": "pretrain", "work_dir": "-", "data": {"files": [{"path": "-"}]}, "steps": 1, "batch_size": 8,
        "model": model, "precision": "fp32",
    }  # fmt: skip
    return {
        "train": train,
        "ranks": 2,
        "rows": [1, 2, 4],
        "micro": 1,
        "length": LENGTH,
        "limit": 1e12,
        **more,
    }


@pytest.mark.parametrize(
    "name",
    [
        "qwen2",
        "qwen2-tied",
        "llama",
        "gpt2",
        "gemma2",
        "gemma3",
        "gemma4",
        "olmo2",
        "mixtral",
        "qwen3-moe",
        "gpt-oss",
        "glm4-moe",
    ],
)
def test_what_autograd_keeps_is_what_a_real_forward_keeps(name):
    lm = network.build(configuration.from_fields(MODELS[name]))
    lm.config._attn_implementation = memory_estimate.PLANNED
    network.materialise(lm, torch.device("cpu"))
    lm.tie_weights()
    parameters, real = sum(p.numel() for p in lm.parameters()), {}
    own = {p.untyped_storage().data_ptr() for p in lm.parameters()}
    alive = []

    def pack(tensor):
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in own:
            real[storage.data_ptr()] = storage.nbytes()
            alive.append(storage)
        return tensor

    ids = torch.zeros(ROWS, LENGTH, dtype=torch.long)
    with torch.autograd.graph.saved_tensors_hooks(pack, lambda t: t):
        lm.base_model(input_ids=ids, position_ids=ids, attention_mask=None, use_cache=False)
    assert memory_estimate._kept(lm.to("meta"), ROWS, LENGTH) == pytest.approx(sum(real.values()), rel=0.02)
    found = memory_estimate.answer(question(MODELS[name]))
    assert found["parameters"] == parameters
    totals = [found["peaks"][rows]["total"] for rows in ("1", "2", "4")]
    assert totals == sorted(totals)
    assert found["largest"] == 4


def test_what_does_not_fit_is_seen():
    found = memory_estimate.answer(question(MODELS["llama"]))
    limit = found["peaks"]["2"]["total"]
    assert memory_estimate.answer(question(MODELS["llama"], limit=limit))["largest"] == 2
    assert memory_estimate.answer(question(MODELS["llama"], limit=1))["largest"] == 0


def test_a_model_that_cannot_be_planned_is_named():
    with pytest.raises(FamilyError, match="bloom cannot be trained here"):
        memory_estimate.answer(question({"model_type": "bloom", "vocab_size": 100}))
