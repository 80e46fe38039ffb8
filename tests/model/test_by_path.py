"""Models by path: their own tokenizer, BOS and chat template; what is no model is one line."""

import json

import pytest
import torch
from safetensors.torch import save_file
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, processors
from transformers import PreTrainedTokenizerFast

from model import place, scoring
from model.by_path import ModelError, open_model, open_tokenizer
from model.chat_template import SYSTEM, render_chat
from model.training.export import write_export
from tests.support import engine_helpers
from tests.support.architectures import random_model
from tests.support.tiny import byte_tokenizer, steel

LLAMA = (
    "{{ bos_token }}{% for m in messages %}{% if m['role'] == 'system' %}{{ raise_exception('no system') }}{% endif %}"
    "[{{ m['role'] }}]{{ m['content'] | trim }}[/]{% endfor %}{% if add_generation_prompt %}[assistant]{% endif %}"
)


def with_bos(folder, template=None):
    """A byte tokenizer that puts <s> before every text and has no ChatML."""
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    raw = Tokenizer(models.BPE(vocab={c: i for i, c in enumerate(letters)}, merges=[]))
    raw.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    raw.decoder = decoders.ByteLevel()
    raw.add_special_tokens([AddedToken("<s>", special=True), AddedToken("</s>", special=True)])
    raw.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 256)])
    made = PreTrainedTokenizerFast(tokenizer_object=raw, bos_token="<s>", eos_token="</s>")
    made.chat_template = template
    made.save_pretrained(folder)
    as_model(folder)
    return made


def as_model(folder):
    """What a folder needs to be taken for a model's; only its tokenizer is opened here."""
    for name, text in {"config.json": "{}", "model.safetensors": ""}.items():
        if not (folder / name).exists():
            (folder / name).write_text(text)


def test_a_tokenizer_that_wants_a_bos_gets_it_before_texts_alone(tmp_path):
    with_bos(tmp_path)
    tokenizer = open_tokenizer(tmp_path)
    assert tokenizer.prefix_ids == [256]
    assert tokenizer.template == "none"
    assert 256 not in tokenizer.encode("a <s> b"), "a text makes no special token"
    assert tokenizer.special_id("</s>") == 257
    turns = [{"role": "system", "content": SYSTEM}, {"role": "user", "content": "hi"}]
    assert tokenizer.chat_ids(turns) == [256, *tokenizer.encode("hi")]
    byte_tokenizer().save_pretrained(tmp_path / "plain")
    as_model(tmp_path / "plain")
    assert open_tokenizer(tmp_path / "plain").prefix_ids == []


def test_an_own_template_is_used_also_without_system_turns(tmp_path):
    theirs = with_bos(tmp_path, LLAMA)
    tokenizer = open_tokenizer(tmp_path)
    assert tokenizer.template == "own"
    user = [{"role": "user", "content": "which?"}]
    due = theirs.apply_chat_template(user, add_generation_prompt=True, return_dict=False)
    assert tokenizer.chat_ids(user) == due
    both = [{"role": "system", "content": "be short"}, *user]
    assert tokenizer.decode(tokenizer.chat_ids(both)) == "<s>[user]be short\n\nwhich?[/][assistant]"
    forged = tokenizer.chat_ids([{"role": "user", "content": "x</s>y"}])
    assert 257 not in forged
    assert tokenizer.decode(forged) == "<s>[user]x</s>y[/][assistant]"


def test_chatml_is_rendered_by_pieces_and_a_foreign_default_system_is_kept(tmp_path):
    engine_helpers.byte_tokenizer(tmp_path / "tokenizer")
    lm = steel(vocab_size=engine_helpers.VOCAB)
    write_export(
        tmp_path / "export",
        lm.config,
        {n: p.detach() for n, p in lm.named_parameters()},
        tmp_path / "tokenizer",
    )
    tokenizer = open_tokenizer(tmp_path / "export")
    user = [{"role": "user", "content": "hi <|im_end|>"}]
    assert tokenizer.template == "steel"
    assert tokenizer.chat_ids(user) == render_chat(tokenizer, user, generation_prompt=True)[0]
    theirs = byte_tokenizer()
    theirs.chat_template = (
        "{% if messages[0]['role'] != 'system' %}<|im_start|>system\nI am other.<|im_end|>\n{% endif %}"
        + theirs.chat_template
    )
    theirs.save_pretrained(tmp_path / "other")
    as_model(tmp_path / "other")
    other = open_tokenizer(tmp_path / "other")
    assert other.template == "own"
    assert "I am other." in other.decode(other.chat_ids(user[:1]))


def test_any_folder_opens_and_scores_as_its_own_forward(tmp_path):
    made = random_model("granite", vocab_size=320)
    made.save_pretrained(tmp_path)
    with_bos(tmp_path)
    opened = open_model(tmp_path)
    assert opened.tokenizer.stop_ids == [2, 257]
    [[(value, _)]] = scoring.choice_logprobs(opened.model, [[256, 5, 6]], [[[7]]])
    with torch.inference_mode():
        due = made(torch.tensor([[256, 5, 6]])).logits[0, -1].log_softmax(-1)[7]
    assert value == pytest.approx(float(due), abs=1e-5)
    assert isinstance(scoring.generate(opened.model, opened.tokenizer, ["hi"], 5, chat=False)[0], str)


def test_a_trainings_artifact_is_a_path_too(tmp_path):
    steel().save_pretrained(tmp_path / "export")
    byte_tokenizer().save_pretrained(tmp_path / "export")
    assert open_model(tmp_path).model.config.model_type == "steel"
    assert {"config.json", "model.safetensors", "tokenizer.json"} <= {f.name for f in place.files(tmp_path)}


def test_what_is_no_model_is_one_line(tmp_path):
    def refused(path, match):
        with pytest.raises(ModelError, match=match) as caught:
            open_model(path)
        assert "\n" not in str(caught.value)

    refused(tmp_path / "nothing", "neither a folder")
    refused(tmp_path, "no config.json")
    (tmp_path / "config.json").write_text("{}")
    (tmp_path / "pytorch_model.bin").write_bytes(b"")
    refused(tmp_path, "pickled weights")
    (tmp_path / "model.safetensors").write_bytes(b"")
    refused(tmp_path, "its tokenizer cannot be read")
    byte_tokenizer().save_pretrained(tmp_path)
    refused(tmp_path, str(tmp_path))
    (tmp_path / "config.json").write_text(
        json.dumps({"model_type": "nobody", "auto_map": {"AutoConfig": "x.Y"}})
    )
    refused(tmp_path, "custom code")
    small = tmp_path / "small"
    random_model("llama").save_pretrained(small)
    byte_tokenizer().save_pretrained(small)
    refused(small, "259 tokens, the model 101")
    for name in ("a.gguf", "b.gguf"):
        (tmp_path / "two").mkdir(exist_ok=True)
        (tmp_path / "two" / name).write_bytes(b"")
    refused(tmp_path / "two", "2 .gguf files")


def test_only_the_files_that_are_the_model_are_read(tmp_path):
    """Of a folder in which other weights lie, too: an adapter, an older copy, half a download."""

    def weights(name, value):
        save_file({"a": torch.full((2,), float(value))}, tmp_path / name)

    def read():
        return place.open_weights(tmp_path)["a"].get_tensor("a").tolist()

    def index(**places):
        (tmp_path / place.INDEX).write_text(json.dumps({"weight_map": places}))

    with pytest.raises(ModelError, match=r"has no \*\.safetensors"):
        read()
    weights("other.safetensors", 1)
    assert read() == [1, 1]
    weights("zz_adapter.safetensors", 2)
    with pytest.raises(ModelError, match="2 files"):
        read()
    weights("model.safetensors", 3)
    assert read() == [3, 3]
    index(a="other.safetensors")
    with pytest.raises(ModelError, match="remove one of them"):
        read()
    (tmp_path / "model.safetensors").unlink()
    assert read() == [1, 1]
    index(a="other.safetensors", b="lost.safetensors")
    with pytest.raises(ModelError, match=r"has no lost\.safetensors"):
        read()
    for broken in ("", "[]", "{}", '{"weight_map": 3}', '{"weight_map": {"a": 3}}'):
        (tmp_path / place.INDEX).write_text(broken)
        with pytest.raises(ModelError, match="no index of weights"):
            read()


@pytest.mark.parametrize("kept", [0, 7, -3])
def test_weights_that_were_cut_off_are_named(tmp_path, kept):
    save_file({"a": torch.ones(2)}, tmp_path / "model.safetensors")
    (tmp_path / "model.safetensors").write_bytes((tmp_path / "model.safetensors").read_bytes()[:kept])
    with pytest.raises(ModelError, match=r"model\.safetensors cannot be read"):
        place.open_weights(tmp_path)
