"""An export in the hands of others: transformers' loaders, pipelines and streams, lm-evaluation-harness, a bare folder."""

import json
import os
import stat
import subprocess
import sys

import pytest
import torch
from transformers import (
    AutoConfig,
    AutoModel,
    AutoModelForCausalLM,
    AutoTokenizer,
    TextIteratorStreamer,
    pipeline,
)

from model.steel import SteelConfig, SteelForCausalLM
from model.steel.configuration import FFN_KINDS
from model.training.card import card
from model.training.export import write_export
from tests.support import engine_helpers as tiny
from tests.support.tiny import steel

PROMPT = [{"role": "user", "content": "hello"}]
ALONE = """
import json, os, sys
assert not os.listdir(".")
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer, pipeline
import torch
told = {}
for kind in json.loads(sys.argv[2]):
    folder = os.path.join(sys.argv[1], kind)
    lm = AutoModelForCausalLM.from_pretrained(folder, trust_remote_code=True).eval()
    assert type(lm).__module__.startswith("transformers_modules.")
    assert AutoConfig.from_pretrained(folder, trust_remote_code=True).num_params() == lm.num_parameters()
    with torch.no_grad():
        told[kind] = lm(torch.arange(40)[None], use_cache=False).logits[0, -1].tolist()
    out = lm.generate(torch.arange(9)[None], max_new_tokens=9, do_sample=False)
    told[kind + " reply"] = out[0, 9:].tolist()
talk = pipeline("text-generation", folder, trust_remote_code=True)
told["pipeline"] = talk([{"role": "user", "content": "hello"}], max_new_tokens=6)[0]["generated_text"][-1]["role"]
told["ours"] = [name for name in sys.modules if name.split(".")[0] in ("model", "kernels", "tasks", "flows")]
print(json.dumps(told))
"""


@pytest.fixture(scope="module")
def exports(tmp_path_factory):
    """A folder for every kind."""
    root = tmp_path_factory.mktemp("exports")
    tokenizer = tiny.byte_tokenizer(root / "tokenizer")
    for kind in FFN_KINDS:
        lm = steel(vocab_size=tiny.VOCAB, ffn=kind, merge_segment=8)
        write_export(root / kind, lm.config, {n: p.detach() for n, p in lm.named_parameters()}, tokenizer)
    return root


def test_an_exported_folder_needs_nothing_of_this_repository(exports, tmp_path):
    """In an empty folder, with nothing of ours on the path, every kind computes and generates what it does here."""
    empty = tmp_path / "empty"
    empty.mkdir()
    environment = {k: v for k, v in os.environ.items() if k != "PYTHONPATH"}
    environment |= {
        "HF_MODULES_CACHE": str(tmp_path / "modules"),
        "HF_HUB_OFFLINE": "1",
        "PYTHONSAFEPATH": "1",
    }
    command = [sys.executable, "-c", ALONE, str(exports), json.dumps(FFN_KINDS)]
    done = subprocess.run(command, cwd=empty, env=environment, capture_output=True, text=True, timeout=170)
    assert done.returncode == 0, done.stderr
    told = json.loads(done.stdout.splitlines()[-1])
    assert told["ours"] == []
    assert told["pipeline"] == "assistant"
    for kind in FFN_KINDS:
        lm = SteelForCausalLM.from_pretrained(exports / kind).eval()
        with torch.no_grad():
            here = lm(torch.arange(40)[None], use_cache=False).logits[0, -1]
        torch.testing.assert_close(torch.tensor(told[kind]), here, atol=1e-6, rtol=1e-6)
        out = lm.generate(torch.arange(9)[None], max_new_tokens=9, do_sample=False)
        assert told[f"{kind} reply"] == out[0, 9:].tolist()


def test_auto_classes_know_the_type_without_remote_code(exports):
    folder = exports / "prefix"
    assert type(AutoConfig.from_pretrained(folder)) is SteelConfig
    lm = AutoModelForCausalLM.from_pretrained(folder)
    assert type(lm) is SteelForCausalLM
    body = AutoModel.from_pretrained(folder)
    assert torch.equal(body.layers[0].mlp.phi, lm.model.layers[0].mlp.phi)


@torch.inference_mode()
def test_weights_in_several_files_are_the_same(exports, tmp_path):
    lm = SteelForCausalLM.from_pretrained(exports / "token").eval()
    lm.save_pretrained(tmp_path, max_shard_size="40KB")
    files = sorted(path.name for path in tmp_path.glob("*.safetensors"))
    assert len(files) > 2
    assert json.loads((tmp_path / "model.safetensors.index.json").read_text())["metadata"]["total_size"]
    again = SteelForCausalLM.from_pretrained(tmp_path).eval()
    ids = torch.arange(20)[None]
    assert torch.equal(again(ids).logits, lm(ids).logits)


@pytest.mark.parametrize("kind", ["token", "prefix", "merge"])
def test_pipeline_stream_and_template_agree(exports, kind):
    folder = exports / kind
    lm, tokenizer = AutoModelForCausalLM.from_pretrained(folder), AutoTokenizer.from_pretrained(folder)
    ids = tokenizer.apply_chat_template(
        PROMPT, add_generation_prompt=True, return_tensors="pt", return_dict=True
    )
    settings = {"max_new_tokens": 12, "do_sample": False}
    out = lm.generate(**ids, **settings)
    expected = tokenizer.decode(out[0, ids["input_ids"].shape[1] :], skip_special_tokens=True)
    streamer = TextIteratorStreamer(tokenizer, skip_prompt=True, skip_special_tokens=True)
    lm.generate(**ids, **settings, streamer=streamer)
    assert "".join(streamer) == expected
    talk = pipeline("text-generation", model=lm, tokenizer=tokenizer)
    assert talk(PROMPT, **settings)[0]["generated_text"][-1] == {"role": "assistant", "content": expected}
    tokenizer.pad_token, tokenizer.padding_side = "<|endoftext|>", "left"
    both = talk([PROMPT, [{"role": "user", "content": "a longer question"}]], batch_size=2, **settings)
    assert both[0][0]["generated_text"][-1]["content"] == expected


def test_the_template_marks_what_the_assistant_says(exports):
    tokenizer = AutoTokenizer.from_pretrained(exports / "token")
    turns = [*PROMPT, {"role": "assistant", "content": "hi"}]
    marks = (exports / "token" / "training_chat_template.jinja").read_text("utf-8")
    marked = tokenizer.apply_chat_template(
        turns, chat_template=marks, return_dict=True, return_assistant_tokens_mask=True
    )
    assert marked["input_ids"] == tokenizer.apply_chat_template(turns, return_dict=True)["input_ids"]
    said = [i for i, on in zip(marked["input_ids"], marked["assistant_masks"], strict=True) if on]
    assert tokenizer.decode(said) == "hi<|im_end|>"


@pytest.mark.parametrize("mask", [0o022, 0o002, 0o027, 0o077])
def test_the_umask_decides_who_reads_an_export(tmp_path, mask):
    lm = steel(vocab_size=tiny.VOCAB)
    tokenizer = tiny.byte_tokenizer(tmp_path / "tokenizer")
    before = os.umask(mask)
    try:
        weights = {name: p.detach() for name, p in lm.named_parameters()}
        write_export(tmp_path / "export", lm.config, weights, tokenizer)
    finally:
        os.umask(before)
    files = list((tmp_path / "export").iterdir())
    assert {"model.safetensors", "config.json", "tokenizer.json"} <= {path.name for path in files}
    assert {stat.S_IMODE(path.stat().st_mode) for path in files} == {0o666 & ~mask}
    assert stat.S_IMODE((tmp_path / "export").stat().st_mode) == 0o777 & ~mask


def test_the_longest_text_of_an_exported_tokenizer_is_the_models_context(exports):
    lm = AutoModelForCausalLM.from_pretrained(exports / "token")
    tokenizer = AutoTokenizer.from_pretrained(exports / "token")
    assert tokenizer.model_max_length == lm.config.max_position_embeddings == 2048


@pytest.mark.parametrize("kind", FFN_KINDS)
def test_the_card_says_what_the_model_is(exports, kind):
    text = (exports / kind / "README.md").read_text("utf-8")
    config = SteelConfig.from_pretrained(exports / kind)
    assert text == card(config)
    assert f"`ffn: {kind}`" in text
    assert f"{config.num_params():,}" in text
    assert ("saw the future" in text) == (kind in ("paper", "released"))
    assert "1,122,922,770" in card(SteelConfig())


@pytest.mark.slow
def test_lm_evaluation_harness_scores_as_we_do(exports):
    """The `hf` model type of lm-eval, on an export, by its own loader."""
    pytest.importorskip(
        "lm_eval", reason="lm-evaluation-harness (lm_eval) is an optional peer: make peers installs it"
    )
    from lm_eval.api.instance import Instance
    from lm_eval.models.huggingface import HFLM

    from model import scoring

    folder = exports / "token"
    theirs = HFLM(pretrained=str(folder), trust_remote_code=True, device="cpu", dtype="float32", batch_size=2)
    pairs = [("the cat", " sat"), ("one two", " three four"), ("hello", " world")]
    asked = [
        Instance(request_type="loglikelihood", doc={}, arguments=pair, idx=i) for i, pair in enumerate(pairs)
    ]
    got = [logp for logp, _ in theirs.loglikelihood(asked)]
    tokenizer = AutoTokenizer.from_pretrained(folder)
    prompts, options = ([tokenizer.encode(text) for text in column] for column in zip(*pairs, strict=True))
    ours = scoring.choice_logprobs(scoring.load(folder), prompts, [[option] for option in options])
    assert got == pytest.approx([row[0][0] for row in ours], abs=1e-4)
