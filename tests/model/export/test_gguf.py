"""GGUF files: read back bit for bit, refused where llama.cpp could not read them right, and run by others."""

import json

import pytest
import torch

from model.chat_template import render_chat
from model.export import ollama, splits, stock
from model.export.forms import FormError
from model.export.write import write_form
from model.scoring import load
from model.tokenizer import TextTokenizer
from tests.support import exports

gguf = pytest.importorskip("gguf", reason="the package gguf (requirements.txt) is not installed")

from model.export import gguf_file  # noqa: E402

KINDS = {
    "dense": {"ffn": "dense", "expert": "swiglu"},
    "experts": {"expert": "swiglu", "router": "linear", "num_experts": 3, "tie_word_embeddings": True},
}
DIALOGUE = [{"role": "user", "content": "法国的首都是哪里？"}]


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory):
    return exports.qwen_tokenizer(tmp_path_factory.mktemp("tokenizer"))


@pytest.fixture(scope="module", params=KINDS)
def made(request, tokenizer, tmp_path_factory):
    """(the trained folder, its stock folder, the folder with the files, its certificate)."""
    work = tmp_path_factory.mktemp(request.param)
    source = exports.export(work / "export", tokenizer, **KINDS[request.param])
    stock.write_stock(source, work / "stock")
    certificate = write_form(source, work / "gguf", "gguf", dtypes=list(gguf_file.DTYPES))
    return source, work / "stock", work / "gguf", certificate


def test_each_type_is_read_back_and_certified(made):
    files = made[3]["files"]
    assert list(files) == [f"model-{dtype}.gguf" for dtype in gguf_file.DTYPES]
    differences = [one["max_logit_difference"] for one in files.values()]
    assert differences[0] < 5e-5
    assert differences == sorted(differences), "a narrower type is further away"
    assert files["model-F32.gguf"]["equal"] == "bit for bit"
    assert files["model-F32.gguf"]["greedy"]["equal"] == 12
    assert files["model-Q8_0.gguf"]["tensors"]["Q8_0"] > 10
    assert (made[2] / "Modelfile").is_file()


def test_a_changed_byte_is_noticed(made, tmp_path):
    path = made[2] / "model-F16.gguf"
    reader = gguf.GGUFReader(path)
    tensor = next(t for t in reader.tensors if t.name == "blk.0.attn_q.weight")
    data = bytearray(path.read_bytes())
    data[int(tensor.data_offset) + 1] ^= 0x40
    (tmp_path / "wrong.gguf").write_bytes(data)
    with pytest.raises(FormError, match="blk.0.attn_q.weight"):
        gguf_file.check_tensors(tmp_path / "wrong.gguf", made[1], "F16")
    gguf_file.check_tensors(path, made[1], "F16")


def test_the_same_model_gives_the_same_bytes(made, tmp_path):
    gguf_file.write_gguf(made[1], tmp_path / "again.gguf", "BF16", name="Steel")
    assert (tmp_path / "again.gguf").read_bytes() == (made[2] / "model-BF16.gguf").read_bytes()


def test_the_header_says_what_llama_cpp_asks(made):
    fields = gguf.GGUFReader(made[2] / "model-F16.gguf").fields
    config = json.loads((made[1] / "config.json").read_text())
    tokens = fields["tokenizer.ggml.tokens"].contents()
    assert len(tokens) == config["vocab_size"]
    assert tokens[config["eos_token_id"]] == "<|im_end|>"
    assert fields["tokenizer.ggml.eos_token_id"].contents() == config["eos_token_id"]
    assert fields["tokenizer.ggml.add_bos_token"].contents() is False
    assert fields["tokenizer.ggml.pre"].contents() == "qwen2"
    types = fields["tokenizer.ggml.token_type"].contents()
    assert types[config["eos_token_id"]] == gguf.TokenType.CONTROL
    assert types[-1] == gguf.TokenType.UNUSED, "rows beyond the tokenizer"
    assert "{% generation" not in fields["tokenizer.chat_template"].contents()


def test_the_modelfile_speaks_the_models_format(made):
    text = (made[2] / "Modelfile").read_text()
    assert text.startswith("FROM ./model-F32.gguf\n")
    assert 'SYSTEM "You are a helpful assistant."' in text
    assert text.count("PARAMETER stop") == 2
    assert "PARAMETER num_ctx 256" in text


@pytest.mark.parametrize(
    "turns",
    [
        DIALOGUE,
        [{"role": "system", "content": "Be brief."}, *DIALOGUE],
        [*DIALOGUE, {"role": "assistant", "content": "巴黎。"}, {"role": "user", "content": "Why?"}],
    ],
)
def test_ollamas_template_means_what_render_chat_does(turns, tokenizer):
    """The Go template by hand: SYSTEM is laid before a dialogue that begins without a system turn."""
    before, rest = ollama.TEMPLATE.split("{{ range .Messages }}")
    each, after = rest.split("{{ end }}")
    laid = turns if turns[0]["role"] == "system" else [{"role": "system", "content": ollama.SYSTEM}, *turns]
    said = "".join(
        each.replace("{{ .Role }}", t["role"]).replace("{{ .Content }}", t["content"]) for t in laid
    )
    encoder = TextTokenizer.open(tokenizer)
    ids = render_chat(encoder, turns, generation_prompt=True)[0]
    assert before + said + after == encoder.decode(ids)


def test_a_tokenizer_that_llama_cpp_cannot_name_is_refused(tokenizer, tmp_path):
    assert splits.split_name(tokenizer) == "qwen2"
    tree = json.loads((tokenizer / "tokenizer.json").read_text())
    tree["pre_tokenizer"]["pretokenizers"][0]["pattern"]["Regex"] += "|x"
    (tmp_path / "tokenizer.json").write_text(json.dumps(tree))
    with pytest.raises(FormError, match="no name known here"):
        splits.split_name(tmp_path)


def test_transformers_reads_the_file(made):
    pytest.importorskip("accelerate", reason="transformers reads GGUF with accelerate (make peers)")
    from transformers import AutoConfig, AutoModelForCausalLM

    config = AutoConfig.from_pretrained(made[1])  # its table for qwen2_moe lacks the widths
    lm = AutoModelForCausalLM.from_pretrained(made[2], gguf_file="model-F32.gguf", config=config).eval()
    ids = torch.tensor([[5, 6, 7, 8]])
    with torch.no_grad():
        torch.testing.assert_close(lm(ids).logits, load(made[0])(ids).logits, atol=1e-4, rtol=1e-4)


def test_llama_cpp_says_the_same(made):
    xllamacpp = pytest.importorskip("xllamacpp", reason="llama.cpp as a wheel is not installed (make peers)")
    params = xllamacpp.CommonParams()
    params.model.path = str(made[2] / "model-F32.gguf")
    params.n_ctx, params.warmup, params.verbosity = 256, False, 1
    params.cache_type_k = params.cache_type_v = xllamacpp.ggml_type.GGML_TYPE_F32
    params.flash_attn_type = xllamacpp.llama_flash_attn_type.LLAMA_FLASH_ATTN_TYPE_DISABLED
    server = xllamacpp.Server(params)
    encoder, lm = TextTokenizer.open(made[0]), load(made[0])
    for text in ("中国的首都是", "The capital of France is", "def add(a, b):"):
        ids = encoder.encode(text)
        mine = lm.generate(torch.tensor([ids]), max_new_tokens=16, do_sample=False)[0, len(ids) :]
        request = {"prompt": text, "max_tokens": 16, "temperature": 0}
        theirs = server.handle_completions(request)["choices"][0]["text"]
        assert theirs == encoder.decode(mine.tolist(), skip_special_tokens=True)
