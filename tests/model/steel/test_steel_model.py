"""The network: its size, that no logit sees the future or another document, that its experts are alive."""

import pytest
import torch

from model.steel import SteelConfig, SteelForCausalLM
from model.steel.configuration import FFN_KINDS as KINDS_OF_FFN
from tests.support.kinds import config

KINDS = [
    {"ffn": ffn, "expert": expert, "slots_per_expert": slots, "num_key_value_heads": kv}
    for ffn, expert, slots, kv in [
        ("token", "double_swiglu", 1, 4),
        ("token", "swiglu", 2, 2),
        ("dense", "double_swiglu", 1, 1),
        ("dense", "swiglu", 1, 4),
        ("prefix", "double_swiglu", 1, 4),
        ("prefix", "swiglu", 2, 2),
        ("merge", "double_swiglu", 2, 4),
        ("merge", "swiglu", 1, 2),
    ]
]


@pytest.fixture(params=KINDS, ids=lambda k: f"{k['ffn']}-{k['expert']}")
def lm(request) -> SteelForCausalLM:
    torch.manual_seed(0)
    return SteelForCausalLM(config(**request.param)).eval()


def tokens(rows: int, length: int, seed: int = 0) -> torch.Tensor:
    return torch.randint(0, 97, (rows, length), generator=torch.Generator().manual_seed(seed))


def count(geometry: SteelConfig) -> int:
    with torch.device("meta"):
        return sum(p.numel() for p in SteelForCausalLM(geometry).parameters())


# ------------------------------------------------------------------------------------- size
def test_the_default_is_steel_1b_to_the_parameter():
    assert count(SteelConfig()) == SteelConfig().num_params() == 1_122_922_770


def test_dense_lacks_the_router_alone():
    dense = SteelConfig(ffn="dense")
    assert count(dense) == dense.num_params() == 1_122_729_216


@pytest.mark.parametrize("fields", [*KINDS, {"tie_word_embeddings": True}, {"expert_width": 5}])
def test_parameters_are_counted_without_building(fields):
    assert count(config(**fields)) == config(**fields).num_params()


def test_flops_of_a_trained_token():
    assert SteelConfig().num_flops_per_token(2048) / 1e9 == pytest.approx(5.501, abs=1e-3)


@pytest.mark.parametrize(
    ("ffn", "millions"),
    [("dense", 693.6), ("token", 694.4), ("prefix", 694.8), ("merge", 118.7), ("paper", 1.5)],
)
def test_flops_of_the_ffn_in_18_layers(ffn, millions):
    assert 18 * SteelConfig(ffn=ffn)._ffn_flops(2048) / 1e6 == pytest.approx(millions, abs=0.06)


def test_kinds_share_one_state_dict():
    token, dense, *others = (
        SteelForCausalLM(config(ffn=ffn)).state_dict() for ffn in ("token", *KINDS_OF_FFN)
    )
    for other in others:
        assert {name: t.shape for name, t in other.items()} == {name: t.shape for name, t in token.items()}
    extra = {name: t for name, t in token.items() if name not in dense}
    assert {name.rpartition(".")[2] for name in extra} == {"phi", "scale"}
    assert all(token[name].shape == dense[name].shape for name in dense)


def test_what_does_not_fit_is_refused_in_one_line():
    for fields, words in [
        ({"ffn": "moe"}, "Choose one"),
        ({"expert": "relu"}, "Choose one"),
        ({"num_attention_heads": 5}, "does not split"),
        ({"num_key_value_heads": 3}, "evenly"),
        ({"merge_segment": 0}, "at least 1"),
    ]:
        with pytest.raises(ValueError, match=words) as error:
            config(**fields)
        assert "\n" not in str(error.value)


# -------------------------------------------------------------------------------- causality
@torch.inference_mode()
def test_a_changed_future_token_moves_no_earlier_logit(lm):
    first, second = tokens(2, 24), tokens(2, 24)
    second[:, 13:] = (second[:, 13:] + 1) % 97
    before, after = lm(first).logits, lm(second).logits
    assert torch.equal(before[:, :13], after[:, :13])
    assert not torch.equal(before[:, 13:], after[:, 13:])


def test_the_gradient_is_zero_in_the_future(lm):
    lm = lm.double()
    x = lm.model.embed_tokens(tokens(1, 12)).detach().requires_grad_()
    (grad,) = torch.autograd.grad(lm.model(inputs_embeds=x).last_hidden_state[:, 5].sum(), x)
    assert grad[:, 6:].abs().max() == 0
    assert grad[:, :6].abs().min(-1).values.min() > 0


@torch.inference_mode()
def test_a_prefix_alone_gives_the_same(lm):
    x = tokens(1, 70)
    full = lm(x).logits
    for length in (1, 2, 63, 64, 65, 70):
        torch.testing.assert_close(lm(x[:, :length]).logits[:, -1], full[:, length - 1], atol=2e-5, rtol=1e-4)


@torch.inference_mode()
def test_cached_decode_is_the_full_forward(lm):
    x = tokens(2, 20)
    cache, steps = None, []
    for part in (x[:, :7], *(x[:, t : t + 1] for t in range(7, 20))):
        out = lm(part, past_key_values=cache, use_cache=True)
        cache = out.past_key_values
        steps.append(out.logits)
    torch.testing.assert_close(torch.cat(steps, 1), lm(x).logits, atol=2e-5, rtol=1e-4)


@torch.inference_mode()
def test_left_padding_changes_nothing(lm):
    x = tokens(1, 9)
    padded = torch.cat([torch.full((1, 4), 3), x], 1)
    mask = torch.ones_like(padded)
    mask[:, :4] = 0
    torch.testing.assert_close(
        lm(padded, attention_mask=mask).logits[:, 4:], lm(x).logits, atol=2e-5, rtol=1e-4
    )


def test_generate_batches_of_different_lengths_as_one_by_one(lm):
    prompts = [tokens(1, n, seed=n) for n in (4, 7)]
    settings = {"max_new_tokens": 6, "do_sample": False, "pad_token_id": 0, "eos_token_id": 96}
    alone = [lm.generate(p, attention_mask=torch.ones_like(p), **settings)[0, p.shape[1] :] for p in prompts]
    padded = torch.cat([torch.nn.functional.pad(p, (7 - p.shape[1], 0)) for p in prompts])
    mask = torch.cat([torch.nn.functional.pad(torch.ones_like(p), (7 - p.shape[1], 0)) for p in prompts])
    together = lm.generate(padded, attention_mask=mask, **settings)[:, 7:]
    for one, row in zip(alone, together, strict=True):
        assert row[: len(one)].tolist() == one.tolist()


# -------------------------------------------------------------------------------- documents
def packed(lengths: list[int]) -> tuple[torch.Tensor, torch.Tensor]:
    doc = torch.cat([torch.full((n,), i, dtype=torch.int32) for i, n in enumerate(lengths)])
    position = torch.cat([torch.arange(n) for n in lengths])
    return doc[None], position[None]


@pytest.mark.parametrize("chunked", [True, False])
@torch.inference_mode()
def test_documents_in_a_row_do_not_mix(lm, chunked):
    lm.model.chunk_documents = chunked
    lengths = [5, 90, 1, 54]
    x, (doc, position) = tokens(1, sum(lengths)), packed(lengths)
    together = lm(x, doc_index=doc, position_ids=position).logits
    start = 0
    for n in lengths:
        alone = lm(x[:, start : start + n]).logits
        torch.testing.assert_close(together[:, start : start + n], alone, atol=2e-5, rtol=1e-4)
        start += n


def test_chunks_and_the_whole_mask_have_the_same_gradient(lm):
    lengths = [[5, 90, 1, 54], [150]]
    doc, position = (torch.cat(parts) for parts in zip(*map(packed, lengths), strict=True))
    x, grads = tokens(2, 150), []
    for chunked in (True, False):
        lm.model.chunk_documents = chunked
        lm.zero_grad()
        lm(x, doc_index=doc, position_ids=position).logits.square().mean().backward()
        grads.append([p.grad.clone() for p in lm.parameters()])
    for a, b in zip(*grads, strict=True):
        torch.testing.assert_close(a, b, atol=1e-6, rtol=1e-3)


def test_a_changed_document_leaves_the_others_bitwise_alone(lm):
    lengths = [30, 40, 58]
    x, (doc, position) = tokens(1, 128), packed(lengths)
    other = x.clone()
    other[:, 30:70] = (other[:, 30:70] + 5) % 97
    with torch.inference_mode():
        a, b = (lm(t, doc_index=doc, position_ids=position).logits for t in (x, other))
    assert torch.equal(a[:, :30], b[:, :30])
    assert torch.equal(a[:, 70:], b[:, 70:])


# ----------------------------------------------------------------------------- the Soft MoE
@pytest.mark.parametrize("slots", [1, 3])
def test_soft_moe_is_the_weighted_sum_of_its_experts(slots):
    torch.manual_seed(0)
    geometry = config(slots_per_expert=slots)
    ffn = SteelForCausalLM(geometry).model.layers[0].mlp.double()
    torch.nn.init.constant_(ffn.scale, 3.0)
    x, width = torch.randn(5, 32, dtype=torch.float64), geometry.expert_width
    phi = ffn.phi / ffn.phi.norm(dim=0)
    weights = torch.softmax(3.0 * (x / x.norm(dim=1, keepdim=True)) @ phi, dim=-1).view(5, 3, slots).sum(-1)
    expected = torch.zeros_like(x)
    for e in range(3):
        g1, u1, g2, u2 = (
            getattr(ffn.experts, name)[e * width : (e + 1) * width]
            for name in ("gate_up_proj", "up_proj", "gate_down_proj", "down_proj")
        )
        h = torch.nn.functional.silu(x @ g1.T) * (x @ u1.T)
        expected += weights[:, e : e + 1] * torch.nn.functional.silu(h @ g2) * (h @ u2)
    # the router computes in FP32
    torch.testing.assert_close(ffn(x), expected, atol=0, rtol=1e-5)


@pytest.mark.parametrize(("width", "heads", "spread"), [(64, 4, 0.106), (192, 4, 0.061)])
@pytest.mark.parametrize("ffn", ["token", "dense", "merge"])
def test_experts_get_gradients_at_the_start(width, heads, spread, ffn):
    torch.manual_seed(0)
    geometry = config(hidden_size=width, num_attention_heads=heads, num_experts=6, num_hidden_layers=1)
    geometry.ffn, geometry.initializer_range = ffn, spread
    lm = SteelForCausalLM(geometry)
    x = tokens(2, 16)
    lm(x, labels=x).loss.backward()
    rms = {name: p.grad.square().mean().sqrt().item() for name, p in lm.model.layers[0].named_parameters()}
    experts = [value for name, value in rms.items() if "experts" in name]
    attention = [rms[f"self_attn.{name}_proj.weight"] for name in ("v", "o")]
    assert min(experts) > 1e-3 * max(attention)


def test_rope_stays_in_fp32_under_bf16():
    torch.manual_seed(0)
    lm = SteelForCausalLM(config(rope_theta=100.0)).to(torch.bfloat16)
    cos, sin = lm.model.rope(torch.arange(5000)[None])
    assert cos.dtype == sin.dtype == torch.float32
    frequencies = 100.0 ** -(torch.arange(0, 8, 2, dtype=torch.float64) / 8)
    exact = torch.arange(5000, dtype=torch.float64)[:, None] * frequencies
    torch.testing.assert_close(cos[0].double(), exact.cos().repeat(1, 2), atol=2e-3, rtol=0)


def test_embedding_options():
    torch.manual_seed(0)
    lm = SteelForCausalLM(config(vocab_size=2000, embedding_initializer_range=1.0, embedding_multiplier=3.0))
    assert lm.model.embed_tokens.weight.std().item() == pytest.approx(1.0, rel=0.02)
    assert lm.lm_head.weight.std().item() == pytest.approx(0.15, rel=0.02)
    x = tokens(1, 4)
    out = lm.model(x, output_hidden_states=True)
    torch.testing.assert_close(out.hidden_states[0], 3 * lm.model.embed_tokens(x))
    tied = SteelForCausalLM(config(tie_word_embeddings=True))
    assert tied.lm_head.weight is tied.model.embed_tokens.weight


def test_gradient_checkpointing_changes_no_gradient(lm):
    x, grads = tokens(2, 10), []
    for on in (False, True):
        lm.train()
        lm.gradient_checkpointing_enable() if on else lm.gradient_checkpointing_disable()
        lm.zero_grad()
        lm(x, labels=x).loss.backward()
        grads.append([p.grad.clone() for p in lm.parameters()])
    assert all(torch.equal(a, b) for a, b in zip(*grads, strict=True))


def test_eager_attention_is_the_same(lm):
    x = tokens(2, 12)
    with torch.inference_mode():
        expected = lm(x).logits
        lm.set_attn_implementation("eager")
        out = lm(x, output_attentions=True)
    torch.testing.assert_close(out.logits, expected, atol=2e-5, rtol=1e-4)
    assert out.attentions[0].shape == (2, 4, 12, 12)


def test_the_configuration_of_runs_knows_the_same_kinds():
    from typing import get_args

    from model.steel.configuration import EXPERT_KINDS, LEAKY_KINDS
    from tasks.settings import config as runs

    assert get_args(runs.FfnKind) == KINDS_OF_FFN
    assert runs.LEAKY_KINDS == LEAKY_KINDS
    assert get_args(runs.Model.model_fields["expert"].annotation) == EXPERT_KINDS
    # other models than Steel's: what stands in these two is not the network's
    ours = set(runs.Model.model_fields) - {"transformers", "pretrained"}
    theirs = {*SteelConfig().to_dict(), *SteelConfig.__annotations__}  # an older folder has no router
    assert ours <= theirs, "a field of the settings that the network does not know"
