"""Steel folders as stock Qwen2 and Qwen2-MoE: the same logits and texts, or a certificate that says how near."""

import json
import subprocess
import sys

import pytest
import torch
from transformers import AutoModelForCausalLM

from model.export import parity
from model.export.forms import FormError
from model.export.write import write_form
from model.scoring import load
from tests.support import exports

KINDS = {
    "dense": ("qwen2", {"ffn": "dense", "expert": "swiglu", "num_key_value_heads": 2}),
    "linear": ("qwen2_moe", {"expert": "swiglu", "router": "linear", "num_experts": 5}),
    "tied": (
        "qwen2_moe",
        {"expert": "swiglu", "router": "linear", "tie_word_embeddings": True, "embedding_multiplier": 5.7},
    ),
    "one": ("qwen2", {"expert": "swiglu", "num_experts": 1, "tie_word_embeddings": True}),
}


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory):
    return exports.qwen_tokenizer(tmp_path_factory.mktemp("tokenizer"))


@pytest.mark.parametrize("kind", KINDS)
def test_a_stock_folder_computes_the_same(kind, tokenizer, tmp_path):
    form, fields = KINDS[kind]
    source = exports.export(tmp_path / "export", tokenizer, **fields)
    certificate = write_form(source, tmp_path / "out", form)
    assert certificate["max_logit_difference"] < 5e-5
    assert certificate["top1_changed"] == 0
    assert certificate["greedy"]["equal"] == certificate["prompts"] == 12
    assert "approximation" not in certificate
    assert json.loads((tmp_path / "out" / "parity.json").read_text()) == certificate
    config = json.loads((tmp_path / "out" / "config.json").read_text())
    assert config["model_type"] == form
    assert "auto_map" not in config
    assert config["rope_theta"] == 1_000_000.0
    assert not list((tmp_path / "out").glob("*.py"))
    modes = {path.stat().st_mode for path in (tmp_path / "out").iterdir() if path.name != "parity.json"}
    assert len(modes) == 1, "a shared folder is readable as a whole"


def test_a_stock_folder_needs_nothing_of_this_repository(tokenizer, tmp_path):
    source = exports.export(tmp_path / "export", tokenizer, **KINDS["linear"][1])
    write_form(source, tmp_path / "out", "qwen2_moe")
    code = (
        "import sys; from transformers import AutoModelForCausalLM, AutoTokenizer\n"
        "lm = AutoModelForCausalLM.from_pretrained(sys.argv[1]); t = AutoTokenizer.from_pretrained(sys.argv[1])\n"
        "ids = t.apply_chat_template([{'role': 'user', 'content': 'hi'}], add_generation_prompt=True,"
        " return_tensors='pt', return_dict=True)['input_ids']\n"
        "out = lm.generate(ids, max_new_tokens=4, do_sample=False)\n"
        "assert 'model' not in sys.modules; print(type(lm).__name__, lm.generation_config.eos_token_id)"
    )
    command = [sys.executable, "-c", code, str(tmp_path / "out")]
    out = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=True).stdout
    assert out.split(None, 1)[0] == "Qwen2MoeForCausalLM"
    assert len(json.loads(out.split(None, 1)[1])) == 2, "both ends are kept"


def test_a_cosine_router_leaves_nearly_equal_and_says_so(tokenizer, tmp_path):
    source = exports.export(tmp_path / "export", tokenizer, expert="swiglu")
    with pytest.raises(FormError, match="router: linear"):
        write_form(source, tmp_path / "no", "qwen2_moe")
    certificate = write_form(source, tmp_path / "out", "qwen2_moe", fold_cosine=True)
    assert "folded" in certificate["approximation"]
    assert 1e-5 < certificate["max_logit_difference"] < parity.FOLDED


def test_a_folding_that_is_not_near_is_refused(tokenizer, tmp_path):
    source = exports.export(tmp_path / "export", tokenizer, expert="swiglu")
    lm = load(source)
    with torch.no_grad():
        for layer in lm.model.layers:  # a norm of one large weight: the lengths of x differ by far
            layer.post_attention_layernorm.weight.fill_(0.01)
            layer.post_attention_layernorm.weight[0] = 5.0
            layer.mlp.scale.fill_(20.0)
    lm.save_pretrained(source)
    with pytest.raises(FormError, match="differ from the trained model's by"):
        write_form(source, tmp_path / "out", "qwen2_moe", fold_cosine=True)


def test_the_certificate_notices_a_wrong_tensor(tokenizer, tmp_path):
    source = exports.export(tmp_path / "export", tokenizer, **KINDS["dense"][1])
    good, bad = load(source), load(source)
    with torch.no_grad():
        bad.model.layers[1].mlp.experts.down_proj[0] += 0.5
    prompts = [[1, 2, 3], [4, 5]]
    assert parity.certify(good, good, prompts, tolerance=1e-6)["greedy"]["equal"] == 2
    with pytest.raises(FormError, match="more than 0.001"):
        parity.certify(good, bad, prompts, tolerance=1e-3)


def test_the_own_form_names_the_model_without_a_head(tokenizer, tmp_path):
    source = exports.export(tmp_path / "export", tokenizer)
    certificate = write_form(source, tmp_path / "out", "steel")
    assert certificate["max_logit_difference"] == 0
    maps = json.loads((tmp_path / "out" / "config.json").read_text())["auto_map"]
    assert maps["AutoModel"] == "modeling.SteelModel"
    assert "AutoModel" not in json.loads((source / "config.json").read_text())["auto_map"]


def test_a_model_of_transformers_leaves_as_it_is(tokenizer, tmp_path):
    source = exports.export(tmp_path / "export", tokenizer, **KINDS["dense"][1])
    write_form(source, tmp_path / "qwen2", "qwen2")
    again = write_form(tmp_path / "qwen2", tmp_path / "again", "qwen2")
    assert again["of"] == "qwen2"
    assert again["max_logit_difference"] == 0
    one, two = (AutoModelForCausalLM.from_pretrained(tmp_path / name) for name in ("qwen2", "again"))
    assert all(torch.equal(a, b) for a, b in zip(one.parameters(), two.parameters(), strict=True))


def test_served_pages_do_not_mistake_restarting_positions_for_packed_rows(tokenizer, tmp_path):
    """As vLLM and continuous batching call it: positions begin again, and attention itself knows where."""
    from transformers.masking_utils import ALL_MASK_ATTENTION_FUNCTIONS
    from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

    seen = []

    def paged(module, q, k, v, mask, *, attention_instances, **_):
        seen.append((module.layer_idx, attention_instances))
        return torch.zeros_like(q).transpose(1, 2), None

    ALL_ATTENTION_FUNCTIONS.register("paged_here", paged)
    ALL_MASK_ATTENTION_FUNCTIONS.register("paged_here", lambda *_, **__: None)
    source = exports.export(tmp_path / "export", tokenizer)
    lm = load(source).model
    lm.config._attn_implementation = "paged_here"
    places = torch.tensor([[0, 1, 2, 0, 1]])
    lm(torch.tensor([[1, 2, 3, 4, 5]]), position_ids=places, use_cache=False, attention_instances={"a": 1})
    assert seen == [(0, {"a": 1}), (1, {"a": 1})]
