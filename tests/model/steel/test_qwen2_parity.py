"""Around the Soft MoE stands Qwen2's block: with its weights and a plain SwiGLU the logits are transformers'."""

import pytest
import torch
from transformers import Qwen2Config, Qwen2ForCausalLM

from model.steel import SteelConfig, SteelForCausalLM


def both(kv_heads: int, tied: bool) -> tuple[Qwen2ForCausalLM, SteelForCausalLM]:
    torch.manual_seed(0)
    shape = {
        "vocab_size": 211,
        "hidden_size": 64,
        "num_hidden_layers": 3,
        "num_attention_heads": 4,
        "num_key_value_heads": kv_heads,
        "rms_norm_eps": 1e-6,
        "tie_word_embeddings": tied,
        "initializer_range": 0.08,
    }
    rope = {"rope_type": "default", "rope_theta": 1e6}
    theirs = Qwen2ForCausalLM(Qwen2Config(**shape, intermediate_size=176, rope_parameters=rope)).eval()
    for name, parameter in theirs.named_parameters():
        if name.endswith(("bias", "norm.weight", "layernorm.weight")):
            torch.nn.init.normal_(parameter, mean=1.0 if "norm" in name else 0.0, std=0.2)
    ours = SteelForCausalLM(
        SteelConfig(**shape, ffn="dense", expert="swiglu", num_experts=2, expert_width=88)
    )
    weights = theirs.state_dict()
    for i in range(3):
        mlp = f"model.layers.{i}.mlp"
        weights[f"{mlp}.experts.gate_up_proj"] = weights.pop(f"{mlp}.gate_proj.weight")
        weights[f"{mlp}.experts.up_proj"] = weights.pop(f"{mlp}.up_proj.weight")
        weights[f"{mlp}.experts.down_proj"] = weights.pop(f"{mlp}.down_proj.weight").t()
    ours.load_state_dict(weights)
    return theirs, ours.eval()


@pytest.mark.parametrize(("kv_heads", "tied"), [(4, False), (2, True)])
@torch.inference_mode()
def test_logits_are_those_of_qwen2(kv_heads, tied):
    theirs, ours = both(kv_heads, tied)
    x = torch.randint(0, 211, (2, 100), generator=torch.Generator().manual_seed(1))
    expected = theirs(x).logits
    torch.testing.assert_close(ours(x).logits, expected, atol=1e-5, rtol=1e-5)
    assert expected.std() > 0.1
    # left padding and a continued cache, too
    mask = torch.ones_like(x)
    mask[0, :30] = 0
    position = (mask.cumsum(1) - 1).clamp_min(0)
    got, expected = (m(x, attention_mask=mask, position_ids=position).logits for m in (ours, theirs))
    torch.testing.assert_close(got[0, 30:], expected[0, 30:], atol=1e-5, rtol=1e-5)


def test_greedy_continuations_are_those_of_qwen2():
    theirs, ours = both(2, False)
    x = torch.randint(0, 211, (1, 9), generator=torch.Generator().manual_seed(1))
    settings = {"max_new_tokens": 20, "do_sample": False, "pad_token_id": 0, "eos_token_id": None}
    replies = [m.generate(x, attention_mask=torch.ones_like(x), **settings).tolist() for m in (theirs, ours)]
    assert replies[0] == replies[1]
