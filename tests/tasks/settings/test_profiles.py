"""Every shipped profile fills the tree; overrides merge deep; typos are refused."""

import jsonschema
import pytest
from pydantic import ValidationError

from tasks.settings import profiles
from tasks.settings.errors import NodeError


@pytest.mark.parametrize("name", profiles.names())
def test_every_profile_is_valid(name):
    config = profiles.load(name)
    assert config.profile == name
    assert config.using("pretrain")
    for variant in config.sft.variants.values():
        assert set(variant.mixture) <= set(config.using("sft"))
    assert set(config.dpo.mixture) <= set(config.using("preference"))
    assert set(config.evaluate.benchmarks) <= set(config.using("benchmark"))


def test_overrides_are_merged_deep():
    plain = profiles.load("demo")
    changed = profiles.load("demo", {"pretrain": {"optim": {"lr": 0.5}}})
    assert changed.pretrain.optim.lr == 0.5
    assert changed.pretrain.optim.betas == plain.pretrain.optim.betas
    assert changed.sft == plain.sft


def test_null_takes_an_entry_away():
    assert "exp5" not in profiles.load("demo", {"sft": {"variants": {"exp5": None}}}).sft.variants


@pytest.mark.parametrize(
    ("overrides", "words"),
    [
        ({"pretrain": {"stepz": 3}}, "pretrain.stepz"),
        ({"pretrain": {"epochs": 2}}, "Choose one"),
        ({"model": {"num_hidden_layers": "many"}}, "num_hidden_layers"),
    ],
)
def test_a_wrong_override_is_one_clear_line(overrides, words):
    with pytest.raises(NodeError, match=words) as error:
        profiles.load("demo", overrides)
    assert "\n" not in str(error.value)


def test_an_unknown_profile_names_the_known_ones():
    with pytest.raises(NodeError, match="choose one of: demo"):
        profiles.load("dmeo")


def test_overrides_are_typed_for_the_form():
    schema = profiles.Overrides.model_json_schema()
    good = {"pretrain": {"optim": {"lr": 0.1}}, "sources": {"zhihu": {"options": {"min_votes": 100}}}}
    jsonschema.validate(good, schema)
    assert profiles.Overrides.model_validate(good).model_dump(mode="json") == good
    assert profiles.Overrides().model_dump(mode="json") == {}
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate({"pretrain": {"stepz": 1}}, schema)
    with pytest.raises(ValidationError):
        profiles.Overrides.model_validate({"sources": {"zhihu": {"readr": "x"}}})
