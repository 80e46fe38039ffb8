"""The section `model` with another model than Steel's."""

import json

import pytest

from tasks.settings import profiles
from tasks.settings.errors import NodeError
from tasks.training import pretrain, pretrained
from tests.support.tiny import byte_tokenizer

QWEN = {"model_type": "qwen2", "hidden_size": 32}


def test_the_profile_holds_nothing_of_the_model_it_extends():
    model = profiles.load("qwen-tiny").model
    assert set(model.model_dump()) == {"transformers"}
    assert pretrain.beginning(model, 128)["model"] == {**model.transformers, "vocab_size": 128}
    assert (model.context, model.vocabulary) == (1024, None)


@pytest.mark.parametrize("profile", ["demo", "smoke", "steel-1b"])
@pytest.mark.parametrize("chosen", [{"transformers": QWEN}, {"pretrained": "/models/qwen"}])
def test_an_override_takes_the_place_of_the_inherited_model(profile, chosen):
    assert profiles.load(profile, {"model": chosen}).model.model_dump(mode="json") == chosen


def test_a_field_of_the_other_model_is_changed_alone():
    changed = profiles.load("qwen-tiny", {"model": {"transformers": {"num_hidden_layers": 3}}}).model
    plain = profiles.load("qwen-tiny").model
    assert changed.transformers == {**plain.transformers, "num_hidden_layers": 3}


@pytest.mark.parametrize(
    ("profile", "model", "words"),
    [
        (
            "demo",
            {"transformers": QWEN, "hidden_size": 64},
            "transformers takes another model .* hidden_size",
        ),
        ("demo", {"pretrained": "/x", "ffn": "dense"}, "pretrained takes another model .* ffn"),
        ("qwen-tiny", {"num_experts": 3}, "transformers takes another model .* num_experts"),
        ("demo", {"transformers": QWEN, "pretrained": "/x"}, "Choose one"),
        ("demo", {"transformers": {"hidden_size": 3}}, "needs model_type"),
    ],
)
def test_two_models_are_refused_in_one_line(profile, model, words):
    with pytest.raises(NodeError, match=words) as error:
        profiles.load(profile, {"model": model})
    assert "\n" not in str(error.value)


def test_steels_own_recipe_reads_as_ever():
    values = profiles.load("demo").model.model_dump(mode="json")
    assert "transformers" not in values
    assert "pretrained" not in values
    assert pretrain.beginning(profiles.load("demo").model, 64) == {"model": {**values, "vocab_size": 64}}


def test_the_folder_is_in_the_fingerprint_and_its_vocabulary_is_known(tmp_path):
    (tmp_path / "config.json").write_text(json.dumps({"vocab_size": 300, "max_position_embeddings": 77}))
    with pytest.raises(NodeError, match="holds no model"):
        pretrained.identity(tmp_path)
    (tmp_path / "model.safetensors").write_bytes(b"one")
    before = pretrained.identity(tmp_path)
    assert set(before) == {"pretrained/config.json", "pretrained/model.safetensors"}
    (tmp_path / "model.safetensors").write_bytes(b"other")
    assert pretrained.identity(tmp_path) != before
    model = profiles.load("demo", {"model": {"pretrained": str(tmp_path)}}).model
    assert (model.context, model.vocabulary) == (77, 300)
    assert pretrain.beginning(model, 300) == {"init_from": str(tmp_path)}


def test_a_tokenizer_with_other_ids_is_refused(tmp_path):
    own, other = tmp_path / "own", tmp_path / "other"
    byte_tokenizer().save_pretrained(own)
    byte_tokenizer().save_pretrained(other)
    pretrained.hold(own, other)
    tree = json.loads((other / "tokenizer.json").read_text("utf-8"))
    vocab = tree["model"]["vocab"]
    vocab["a"], vocab["b"] = vocab["b"], vocab["a"]
    (other / "tokenizer.json").write_text(json.dumps(tree), "utf-8")
    with pytest.raises(NodeError, match=r"the token '[ab]' is \d+ to the model"):
        pretrained.hold(own, other)
