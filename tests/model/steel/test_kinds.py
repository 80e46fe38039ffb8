"""The kinds of FFN: each is its formula, the causal ones see no future, and the measurements catch those that do."""

import pytest
import torch
from torch.nn import functional as F

from model.steel.layout import Layout
from tests.support.kinds import (
    CAUSAL,
    LEAKY,
    SEGMENT,
    config,
    decode_gap,
    future_leak,
    model,
    packed,
    prefix_gap,
    tokens,
)

EDGES = (1, SEGMENT - 1, SEGMENT, SEGMENT + 1, 2 * SEGMENT, 31, 32, 33, 63, 64, 65, 70)
TIGHT = 2e-5
"""FP32 rounding between shapes, on logits of about 1."""

LOUDER = {"paper": 2.0, "released": 10.0}
"""Their slots are means over many tokens, or of unit vectors: fresh experts would hardly be heard."""


def expert(ffn, e: int, z: torch.Tensor) -> torch.Tensor:
    """f_e(z), written out."""
    width = ffn.experts.down_proj.shape[0] // ffn.num_experts
    part = {name: w[e * width : (e + 1) * width] for name, w in ffn.experts.named_parameters()}
    return through(z, part)


def through(z: torch.Tensor, part: dict[str, torch.Tensor]) -> torch.Tensor:
    h = F.silu(z @ part["gate_up_proj"].T) * (z @ part["up_proj"].T)
    if "gate_down_proj" in part:
        return F.silu(h @ part["gate_down_proj"]) * (h @ part["down_proj"])
    return h @ part["down_proj"]


def one_document(kind: str, ffn, x: torch.Tensor) -> torch.Tensor:
    """y [T, D] of one document by the table's formula, one token and slot at a time."""
    unit = x / x.norm(dim=-1, keepdim=True)
    logits = ffn.scale * unit @ (ffn.phi / ffn.phi.norm(dim=0))
    combine = torch.softmax(logits, -1)
    n, slots = ffn.num_experts, ffn.phi.shape[1]
    routing = combine.view(len(x), n, -1).sum(-1)
    y = torch.zeros_like(x)
    for t in range(len(x)):
        if kind == "merge":
            k = t // SEGMENT
            r = routing[(k - 1) * SEGMENT : k * SEGMENT].mean(0) if k else torch.full((n,), 1 / n).double()
            merged = {
                name: torch.einsum("e,ewd->wd", r, w.unflatten(0, (n, -1)))
                for name, w in ffn.experts.named_parameters()
            }
            y[t] = through(x[t], merged)
            continue
        seen = slice(0, t + 1) if kind == "prefix" else slice(0, len(x))
        for s in range(slots):
            dispatch = torch.softmax(logits[seen, s], 0)
            z = dispatch @ (unit if kind == "released" else x)[seen]
            y[t] += combine[t, s] * expert(ffn, s * n // slots, z)
    return y


@pytest.mark.parametrize("shape", ["double_swiglu", "swiglu"])
@pytest.mark.parametrize("slots", [1, 2])
@pytest.mark.parametrize("kind", ["prefix", "merge", "paper", "released"])
def test_a_layer_is_its_formula_on_every_document(kind, slots, shape):
    ffn = model(kind, slots_per_expert=slots, expert=shape).model.layers[0].mlp.double()
    x = torch.randn(2, 40, 32, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    doc = torch.tensor([[0] * 5 + [1] * 30 + [2] * 5, [0] * 19 + [1] * 21])
    with torch.inference_mode():
        got = ffn(x, Layout.of(2, 40, x.device, doc_index=doc))
        for row in range(2):
            for number in doc[row].unique():
                here = doc[row] == number
                # the router computes in FP32
                torch.testing.assert_close(
                    got[row, here], one_document(kind, ffn, x[row, here]), atol=1e-6, rtol=1e-5
                )


# -------------------------------------------------------------------------------- causality
@pytest.mark.parametrize("slots", [1, 2])
@pytest.mark.parametrize("kind", CAUSAL)
def test_the_future_moves_no_earlier_logit(kind, slots):
    lm = model(kind, slots_per_expert=slots)
    assert max(future_leak(lm, cut, 70) for cut in (1, SEGMENT, 13, 32, 64, 69)) == 0.0
    assert future_leak(lm, 40, 70, **packed([10, 25, 20, 15])) == 0.0


@pytest.mark.parametrize("kind", CAUSAL)
def test_a_prefix_alone_gives_the_same_at_every_edge(kind):
    assert prefix_gap(model(kind), EDGES) < TIGHT


@pytest.mark.parametrize("chunk", [1, 5, SEGMENT, 20])
@pytest.mark.parametrize("kind", CAUSAL)
def test_cached_decode_is_the_full_forward(kind, chunk):
    lm = model(kind, slots_per_expert=2)
    assert max(decode_gap(lm, prompt, chunk=chunk) for prompt in (1, SEGMENT, 11)) < TIGHT


def test_the_measurements_catch_the_leaky_kinds():
    for lm in (model(kind, louder=LOUDER[kind]) for kind in LEAKY):
        assert future_leak(lm) > 1e-2
        assert prefix_gap(lm, EDGES) > 1e-2
        assert decode_gap(lm) > 1e-2


@pytest.mark.parametrize("kind", CAUSAL + LEAKY)
def test_the_experts_are_heard(kind):
    """Else the measurements above would pass for a layer that does nothing."""
    lm = model(kind, louder=LOUDER.get(kind, 1.0))
    with torch.inference_mode():
        full = lm(tokens(1, 40)).logits
        for name, parameter in lm.named_parameters():
            if name.endswith("mlp.experts.down_proj"):
                parameter.zero_()
        assert (lm(tokens(1, 40)).logits - full).abs().max() > 0.1


# ----------------------------------------------------------------------- limits of one another
def shared(*kinds: str):
    """One layer's FFN under several kinds, with the same weights."""
    layers = [model(kind, slots_per_expert=2).model.layers[0].mlp for kind in kinds]
    for layer in layers[1:]:
        layer.load_state_dict(layers[0].state_dict())
    return layers


@torch.inference_mode()
def test_prefix_equals_paper_at_the_last_position():
    prefix, paper = shared("prefix", "paper")
    x = torch.randn(2, 45, 32, generator=torch.Generator().manual_seed(1))
    for t in (1, 2, 32, 33, 45):
        torch.testing.assert_close(prefix(x)[:, t - 1], paper(x[:, :t])[:, -1], atol=1e-5, rtol=1e-4)


@torch.inference_mode()
def test_token_is_the_one_token_limit_of_paper():
    token, paper = shared("token", "paper")
    x = torch.randn(9, 1, 32, generator=torch.Generator().manual_seed(1))
    torch.testing.assert_close(paper(x), token(x), atol=1e-6, rtol=1e-5)


@pytest.mark.parametrize("scale", [0.0, 80.0, -80.0, 1e6, -1e6, 1e30])
def test_prefix_is_finite_for_any_learned_scale(scale):
    lm = model("prefix")
    for layer in lm.model.layers:
        torch.nn.init.constant_(layer.mlp.scale, scale)
    x = tokens(2, 70)
    loss = lm(x, labels=x).loss
    assert loss.isfinite()
    if abs(scale) <= 1e6:  # beyond, the true gradients of two layers leave FP32
        loss.backward()
        assert all(p.grad.isfinite().all() for p in lm.parameters())
    # the largest weight may come late: nothing before it may drown or move
    assert future_leak(lm, 13, 70) == 0.0


# ------------------------------------------------------------------------ documents and padding
@pytest.mark.parametrize("kind", CAUSAL + LEAKY)
@torch.inference_mode()
def test_documents_in_a_row_do_not_mix(kind):
    lm = model(kind, louder=LOUDER.get(kind, 1.0))
    lengths = [5, 40, 1, 24]
    x, layout = tokens(1, 70), packed(lengths)
    together = lm(x, **layout).logits
    start = 0
    for n in lengths:
        alone = lm(x[:, start : start + n], use_cache=False).logits
        torch.testing.assert_close(together[:, start : start + n], alone, atol=TIGHT, rtol=1e-4)
        start += n
    # bitwise, both directions
    other = x.clone()
    other[:, 5:45] = (other[:, 5:45] + 5) % 97
    changed = lm(other, **layout).logits
    assert torch.equal(together[:, :5], changed[:, :5])
    assert torch.equal(together[:, 45:], changed[:, 45:])
    # transformers' own way to say it: positions that begin again
    assert torch.equal(lm(x, position_ids=layout["position_ids"]).logits, together)
    ones = torch.ones_like(x)  # as tokenizers and generate() add them: no padding, so nothing is said
    assert torch.equal(lm(x, position_ids=layout["position_ids"], attention_mask=ones).logits, together)
    assert torch.equal(lm(x, **layout, attention_mask=ones).logits, together)
    rows = lm(x.expand(2, -1), position_ids=layout["position_ids"]).logits
    torch.testing.assert_close(rows, together.expand(2, -1, -1), atol=TIGHT, rtol=1e-4)


@torch.inference_mode()
def test_documents_and_padding_are_not_said_at_once():
    lm, x, layout = model("prefix"), tokens(1, 30), packed([9, 12, 9])
    mask = torch.ones_like(x)
    mask[:, 21:] = 0
    with pytest.raises(ValueError, match="Number padding as a document of its own in doc_index"):
        lm(x, **layout, attention_mask=mask)
    # which is enough: what stands in the padding changes nothing
    other = x.clone()
    other[:, 21:] = (other[:, 21:] + 5) % 97
    assert torch.equal(lm(x, **layout).logits[:, :21], lm(other, **layout).logits[:, :21])


@torch.inference_mode()
def test_decoding_with_a_cache_never_asks_whether_the_mask_is_all_ones(monkeypatch):
    """Asking would make every step wait for the GPU."""
    lm, x = model("prefix"), tokens(2, 12)
    calls, documents = [], lm.model.documents

    def spy(positions, mask, cache):
        calls.append(cache)
        return documents(positions, mask, cache)

    class Unread:
        """A mask that documents() may not look at."""

    assert documents(torch.zeros(1, 4), Unread(), object()) is None
    monkeypatch.setattr(type(lm.model), "documents", staticmethod(spy))
    settings = {"max_new_tokens": 5, "do_sample": False, "pad_token_id": 0, "eos_token_id": None}
    cached = lm.generate(x, attention_mask=torch.ones_like(x), use_cache=True, **settings)
    assert calls == []
    assert torch.equal(lm.generate(x, attention_mask=torch.ones_like(x), use_cache=False, **settings), cached)


@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize("kind", CAUSAL + LEAKY)
@torch.inference_mode()
def test_padding_changes_nothing(kind, side):
    lm = model(kind, slots_per_expert=2, louder=LOUDER.get(kind, 1.0))
    x, filler = tokens(1, 20), tokens(1, 11, seed=5)
    mask = torch.ones(1, 31, dtype=torch.long)
    if side == "left":
        padded, at = torch.cat([filler, x], 1), slice(11, None)
        mask[:, :11] = 0
    else:
        padded, at = torch.cat([x, filler], 1), slice(0, 20)
        mask[:, 20:] = 0
    got = lm(padded, attention_mask=mask, use_cache=False).logits
    assert got.isfinite().all()
    torch.testing.assert_close(got[:, at], lm(x, use_cache=False).logits, atol=TIGHT, rtol=1e-4)


# -------------------------------------------------------------------------------- generation
@pytest.mark.parametrize("kind", CAUSAL + LEAKY)
def test_generate_batches_of_different_lengths_as_one_by_one(kind):
    lm = model(kind)
    prompts = [tokens(1, n, seed=n) for n in (4, 9, 21)]
    settings = {"max_new_tokens": 12, "do_sample": False, "pad_token_id": 0, "eos_token_id": None}
    alone = [lm.generate(p, attention_mask=torch.ones_like(p), **settings)[0, p.shape[1] :] for p in prompts]
    padded = torch.cat([F.pad(p, (21 - p.shape[1], 0)) for p in prompts])
    mask = torch.cat([F.pad(torch.ones_like(p), (21 - p.shape[1], 0)) for p in prompts])
    together = lm.generate(padded, attention_mask=mask, **settings)[:, 21:]
    assert [row.tolist() for row in together] == [one.tolist() for one in alone]


@pytest.mark.parametrize("kind", ["prefix", "merge"])
def test_beam_search_takes_the_state_along(kind):
    lm = model(kind)
    prompt = tokens(2, 6)
    settings = {
        "max_new_tokens": 12,
        "num_beams": 3,
        "do_sample": False,
        "pad_token_id": 0,
        "eos_token_id": None,
    }
    cached = lm.generate(prompt, attention_mask=torch.ones_like(prompt), **settings)
    anew = lm.generate(prompt, attention_mask=torch.ones_like(prompt), use_cache=False, **settings)
    assert cached.tolist() == anew.tolist()


@pytest.mark.parametrize("kind", ["prefix", "merge"])
@torch.inference_mode()
def test_a_cache_can_be_copied_for_several_continuations(kind):
    lm, x = model(kind), tokens(2, 20)
    cache = lm(x[:, :11], use_cache=True).past_key_values
    cache.batch_repeat_interleave(2)
    cache.batch_select_indices(torch.tensor([3, 0]))
    got = lm(x[[1, 0], 11:], past_key_values=cache).logits
    torch.testing.assert_close(got, lm(x[[1, 0]], use_cache=False).logits[:, 11:], atol=TIGHT, rtol=1e-4)


@pytest.mark.parametrize("kind", ["prefix", "merge"])
def test_a_cache_that_cannot_hold_the_state_is_refused(kind):
    from transformers import DynamicCache, StaticCache

    lm, x = model(kind), tokens(1, 5)
    with pytest.raises(ValueError, match="empty DynamicCache"):
        lm(x, past_key_values=StaticCache(config=lm.config, max_cache_len=16))
    used = model("token")(x, past_key_values=DynamicCache(config=lm.config)).past_key_values
    with pytest.raises(ValueError, match="empty DynamicCache"):
        lm(x, past_key_values=used)
    with pytest.raises(ValueError, match="no token can be taken back"):
        lm(x, use_cache=True).past_key_values.crop(-1)
    with pytest.raises(ValueError, match="stateful"):  # transformers' own words
        lm.generate(x, prompt_lookup_num_tokens=2, max_new_tokens=4)
    again = model("token").generate(x, prompt_lookup_num_tokens=2, max_new_tokens=4, pad_token_id=0)
    assert again.shape[1] > 5


# ------------------------------------------------------------------------------- refused leaks
@pytest.mark.parametrize("kind", CAUSAL + LEAKY)
def test_training_refuses_a_leak_that_is_not_asked_for(kind):
    if kind in CAUSAL:
        config(ffn=kind).refuse_leakage()
        return
    with pytest.raises(ValueError, match="allow_future_leakage") as error:
        config(ffn=kind).refuse_leakage()
    assert "later tokens" in str(error.value)
    config(ffn=kind, allow_future_leakage=True).refuse_leakage()


# ------------------------------------------------------------------------------ other machinery
@pytest.mark.parametrize(
    "kind",
    ["token", *(pytest.param(k, marks=pytest.mark.slow) for k in ("dense", "prefix", "merge", *LEAKY))],
)
def test_a_block_is_traced_for_torch_compile(kind):
    """By dynamo and AOTAutograd; what inductor would then make of it needs minutes. Fullgraph where the config says so."""
    torch._dynamo.reset()
    lm, x = model(kind), tokens(1, 40)
    layouts = [packed(lengths) for lengths in ([10, 30], [3, 17, 20])]
    expected = []
    for layout in layouts:
        lm.zero_grad()
        logits = lm(x, **layout).logits
        logits.square().mean().backward()
        expected.append((logits.detach(), [p.grad.clone() for p in lm.parameters()]))
    lm.model.chunk_documents = False
    for block in lm.model.layers:
        block.compile(fullgraph=lm.config.ffn_keeps_shapes, backend="aot_eager")
    for layout, (logits, grads) in zip(layouts, expected, strict=True):
        lm.zero_grad()
        got = lm(x, **layout).logits
        got.square().mean().backward()
        torch.testing.assert_close(got, logits, atol=TIGHT, rtol=1e-4)
        for p, grad in zip(lm.parameters(), grads, strict=True):
            torch.testing.assert_close(p.grad, grad, atol=1e-6, rtol=1e-3)
    torch._dynamo.reset()


@pytest.mark.gpu
@pytest.mark.skipif(
    not torch.cuda.is_available(), reason="torch sees no CUDA GPU: run pytest -m gpu where there is one"
)
@pytest.mark.parametrize("kind", CAUSAL + LEAKY)
def test_a_gpu_computes_what_the_cpu_does(kind):
    lm, x = model(kind, slots_per_expert=2), tokens(2, 70)
    layout = {name: t.expand(2, -1) for name, t in packed([10, 25, 35]).items()}
    results = []
    for device in ("cpu", "cuda"):
        lm.to(device).zero_grad()
        logits = lm(x.to(device), **{name: t.to(device) for name, t in layout.items()}).logits
        logits.square().mean().backward()
        results.append([logits.detach().cpu(), *(p.grad.cpu() for p in lm.parameters())])
    for a, b in zip(*results, strict=True):
        torch.testing.assert_close(b, a, atol=1e-4, rtol=1e-2)
    if kind in CAUSAL:
        steps = lm.generate(
            x[:, :9].cuda(), max_new_tokens=12, do_sample=False, pad_token_id=0, eos_token_id=None
        )
        anew = lm.generate(
            x[:, :9].cuda(),
            max_new_tokens=12,
            do_sample=False,
            pad_token_id=0,
            eos_token_id=None,
            use_cache=False,
        )
        assert steps.tolist() == anew.tolist()
