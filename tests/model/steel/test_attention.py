"""One name for attention: what `auto` takes, what is refused, and that every way computes the same."""

import inspect
import logging
import sys
from types import SimpleNamespace
from typing import get_args

import pytest
import torch

from model.steel import SteelForCausalLM, attention, attention_choice
from model.steel.attention_choice import ATTENTIONS, choose
from tests.support.kinds import config, model, packed, tokens

CPU = torch.device("cpu")
LENGTHS = [5, 90, 1, 54]


def test_the_setting_has_the_same_values_everywhere():
    from model.training.config import ATTENTIONS as ENGINE
    from tasks.settings.config import Runtime

    assert get_args(Runtime.model_fields["attention"].annotation) == ENGINE == ATTENTIONS


def test_auto_takes_what_a_cpu_has_and_says_so_once(caplog):
    attention_choice._best.cache_clear()
    with caplog.at_level(logging.INFO, logger="steel.attention"):
        assert {choose("auto", CPU, torch.float32) for _ in range(3)} == {"sdpa"}
    assert [record.getMessage() for record in caplog.records] == ["attention: sdpa (cpu, float32)"]


@pytest.mark.parametrize("name", ["flash_attention_4", "flash_attention_2", "varlen"])
def test_what_the_machine_lacks_is_refused_with_the_way_out(name, monkeypatch):
    with pytest.raises(ValueError, match=rf"attention {name} (is not installed: pip install|runs on CUDA)"):
        choose(name, CPU, torch.bfloat16)
    attention_choice._obstacle.cache_clear()
    monkeypatch.setattr(attention_choice, "_exists", lambda module: False)
    with pytest.raises(ValueError, match="pip install") as error:
        choose(name, torch.device("cuda"), torch.bfloat16)
    assert "\n" not in str(error.value)
    assert "auto" in str(error.value)
    attention_choice._obstacle.cache_clear()


def test_what_cannot_compute_packed_rows_is_refused():
    lm = model("token")
    lm.config._attn_implementation = "flex_attention"
    with pytest.raises(ValueError, match="Choose one of auto"):
        lm(tokens(1, 10), **packed([4, 6]))


@pytest.mark.parametrize(
    ("capability", "installed", "dtype", "taken"),
    [
        (9, True, torch.bfloat16, "varlen"),
        (9, True, torch.float32, "sdpa"),
        (7, True, torch.bfloat16, "sdpa"),
        (9, False, torch.bfloat16, "sdpa"),
    ],
)
def test_auto_on_a_gpu(capability, installed, dtype, taken, monkeypatch):
    """The choice alone: nothing is computed here."""
    attention_choice._best.cache_clear()
    attention_choice._obstacle.cache_clear()
    monkeypatch.setattr(attention_choice, "_exists", lambda module: installed)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (capability, 0))
    assert choose("auto", torch.device("cuda", 0), dtype) == taken
    attention_choice._best.cache_clear()
    attention_choice._obstacle.cache_clear()


@pytest.mark.parametrize("name", ["auto", "sdpa", "eager"])
@pytest.mark.parametrize("kv_heads", [4, 2])
def test_every_way_on_a_cpu_computes_the_same(name, kv_heads):
    lm, x = model("token", num_key_value_heads=kv_heads), tokens(1, 150)
    expected, grads = None, []
    for how in ("sdpa", name):
        lm.set_attn_implementation(how)
        lm.zero_grad()
        logits = lm(x, **packed(LENGTHS)).logits
        logits.square().mean().backward()
        grads.append([p.grad.clone() for p in lm.parameters()])
        expected = logits.detach() if expected is None else expected
    torch.testing.assert_close(logits, expected, atol=2e-5, rtol=1e-4)
    for a, b in zip(*grads, strict=True):
        torch.testing.assert_close(a, b, atol=1e-6, rtol=1e-3)
    plain = lm(x[:, :20]).logits  # not packed: transformers' function of that name
    torch.testing.assert_close(plain, model("token", num_key_value_heads=kv_heads)(x[:, :20]).logits)


def reference(q, k, v, edges, longest, scaling):
    """What a variable-length kernel computes, one document after the other."""
    assert edges.dtype == torch.int32
    assert longest >= (edges[1:] - edges[:-1]).max()
    k, v = (x.repeat_interleave(q.shape[1] // k.shape[1], dim=1) for x in (k, v))
    out = []
    for a, b in zip(edges, edges[1:], strict=False):
        parts = (x[a:b].transpose(0, 1)[None] for x in (q, k, v))
        done = torch.nn.functional.scaled_dot_product_attention(*parts, is_causal=True, scale=scaling)
        out.append(done[0].transpose(0, 1))
    return torch.cat(out)


@pytest.mark.parametrize("kv_heads", [4, 2])
def test_kernels_for_variable_lengths_get_each_document_as_a_sequence(kv_heads, monkeypatch):
    """With the definition in the kernel's place: layouts, edges and scale are what a CPU can check of that path."""
    monkeypatch.setitem(attention.KERNELS, "varlen", reference)
    monkeypatch.setattr(attention_choice, "_obstacle", lambda *_: None)
    lm, rows = model("token", num_key_value_heads=kv_heads), [packed(LENGTHS), packed([150])]
    layout = {name: torch.cat([row[name] for row in rows]) for name in rows[0]}
    x = tokens(2, 150)
    expected = lm(x, **layout).logits
    lm.set_attn_implementation("varlen")
    torch.testing.assert_close(lm(x, **layout).logits, expected, atol=2e-5, rtol=1e-4)
    # counted beforehand, a few too many: empty documents at the end
    bounded = lm(x, **layout, max_documents=len(LENGTHS) + 4).logits
    torch.testing.assert_close(bounded, expected, atol=2e-5, rtol=1e-4)
    with pytest.raises(RuntimeError, match="more than 2 documents"):
        lm(x, **layout, max_documents=2)


@pytest.mark.parametrize("asked", [True, False])
@pytest.mark.parametrize(
    ("how", "capability", "due"),
    [("flash_attention_2", 9, True), ("flash_attention_4", 10, True), ("flash_attention_4", 9, False)],
)
def test_flash_attention_is_asked_for_a_deterministic_backward(monkeypatch, how, capability, due, asked):
    told = []

    def kernel(q, k, v, *edges, deterministic=False, softmax_scale=None, causal=False, **named):
        told.append((deterministic, softmax_scale, causal))
        return q

    def older(q, k, v, *edges, softmax_scale=None, causal=False, **named):
        told.append((softmax_scale, causal))
        return q

    monkeypatch.setattr(torch, "are_deterministic_algorithms_enabled", lambda: asked)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _: (capability, 0))
    for function in (kernel, older):
        library = SimpleNamespace(flash_attn_varlen_func=function)
        monkeypatch.setitem(sys.modules, "flash_attn", library)
        monkeypatch.setitem(sys.modules, "flash_attn.cute", library)
        x = torch.zeros(4, 1, 8)
        attention.KERNELS[how](x, x, x, torch.tensor([0, 4]), 4, 0.5)
    assert told == [(due and asked, 0.5, True), (0.5, True)]


def test_torchs_kernel_takes_the_arguments_that_we_give():
    varlen = pytest.importorskip(
        "torch.nn.attention.varlen",
        reason="this torch has no varlen_attn: install the one in requirements.txt",
    )
    known = inspect.signature(varlen.varlen_attn).parameters
    assert {"window_size", "is_causal"} & set(known)
    assert list(known)[:7] == ["query", "key", "value", "cu_seq_q", "cu_seq_k", "max_q", "max_k"]


@pytest.mark.gpu
@pytest.mark.skipif(
    not torch.cuda.is_available(), reason="torch sees no CUDA GPU: run pytest -m gpu where there is one"
)
@pytest.mark.parametrize("name", ["flash_attention_4", "flash_attention_2", "varlen", "sdpa", "eager"])
def test_every_way_on_a_gpu_computes_the_same_at_head_size_56(name):
    device = torch.device("cuda")
    try:
        choose(name, device, torch.bfloat16)
    except ValueError as error:
        pytest.skip(str(error))
    torch.manual_seed(0)
    geometry = config(hidden_size=224, num_attention_heads=4)
    exact = SteelForCausalLM(geometry).to(device)
    lm = SteelForCausalLM(geometry).to(device)
    lm.load_state_dict(exact.state_dict())
    lm = lm.to(torch.bfloat16)
    lm.set_attn_implementation(name)
    layout = {key: value.to(device) for key, value in packed(LENGTHS).items()}
    x = tokens(1, 150).to(device)
    outs = []
    for m in (exact, lm):
        out = m(x, **layout).logits
        out.float().square().mean().backward()
        outs.append(out.detach().float())
    assert (outs[1] - outs[0]).square().mean().sqrt() < 0.05 * outs[0].std()
    for a, b in zip(exact.parameters(), lm.parameters(), strict=True):
        assert (b.grad.float() - a.grad).norm() < 0.1 * a.grad.norm() + 1e-6
