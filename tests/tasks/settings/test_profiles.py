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
    assert config.using("pretrain") or name == "compare"  # that one trains nothing
    for variant in config.sft.variants.values():
        assert set(variant.sets) <= set(config.using("sft"))
    assert set(config.dpo.mixture) <= set(config.using("preference"))
    assert set(config.evaluate.benchmarks) <= set(config.using("benchmark"))


@pytest.mark.parametrize("name", ["demo", "steel-1b", "steel-100m"])
def test_the_papers_experiments_are_variants(name):
    sft = profiles.load(name).sft
    assert set(sft.variants) == {"exp1", "exp2", "exp3", "exp4", "exp5", "cot"}
    plain, explained = (set(sft.variants[each].sets) for each in ("exp5", "cot"))
    assert len(plain) == len(explained)
    assert [each.endswith("cot") for each in explained - plain] == [True]
    assert not any(each.endswith("cot") for each in plain)


@pytest.mark.parametrize("name", ["steel-1b", "steel-100m"])
def test_fine_tuning_has_the_papers_numbers(name):
    sft = profiles.load(name).sft
    assert (sft.train.optim.lr, sft.train.epochs, sft.max_tokens) == (2e-5, 4, 768)
    # its examples have some 265 tokens
    assert 230 < sft.train.batch_size * sft.packed_tokens / 265 < 280


def test_a_variant_can_go_from_shares_to_numbers():
    over = {"sft": {"variants": {"exp2": {"mixture": None, "counts": {"demo_qa_zh": 7}}}}}
    assert profiles.load("demo", over).sft.variants["exp2"].sets == {"demo_qa_zh": 7}


def test_overrides_are_merged_deep():
    plain = profiles.load("demo")
    changed = profiles.load("demo", {"pretrain": {"optim": {"lr": 0.5}}})
    assert changed.pretrain.optim.lr == 0.5
    assert changed.pretrain.optim.betas == plain.pretrain.optim.betas
    assert changed.sft == plain.sft


def test_null_takes_an_entry_away():
    assert "exp5" not in profiles.load("demo", {"sft": {"variants": {"exp5": None}}}).sft.variants
    given = {"sources": {"baidu_qa": None}, "rl": {"mixture": {"demo_rl": None}}}
    assert profiles.Overrides(**given).model_dump(mode="json") == given, "the form and the API take it, too"
    assert "baidu_qa" not in profiles.load("demo", given).sources
    with pytest.raises(ValueError, match="sources"):
        profiles.Overrides(sources=None)


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
    with pytest.raises(NodeError, match="choose one of: chaos, compare, demo"):
        profiles.load("dmeo")


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("extends: smoke\nonly_sources: [skypile, nope]\n", "only_sources names no source: nope"),
        ("extends: smoke\nonly_sources: skypile\n", "only_sources is a list"),
        ("extends: mine\n", "extends itself: mine → mine"),
        ("extends: nope\n", "there is no profile 'nope'"),
        ("a: [\n", "cannot be read"),
        ("a:\n\tb: 1\n", "cannot be read"),
        ("- a\n", "no mapping"),
        ("words\n", "no mapping"),
        ("extends: smoke\nsources: [a]\n", "sources: "),
        ("extends: smoke\nmodel: [a]\n", "model: "),
        ("extends: smoke\nsources: {123: {dataset: d, reader: text}}\n", "sources.123"),
        ("extends: smoke\npretrain: {steps: 1}\npretrain: {batch_size: 2}\n", "'pretrain' is given twice"),
        (
            "extends: smoke\nsources: {a: {reader: text, dataset: d, reader: alpaca}}\n",
            "'reader' is given twice",
        ),
    ],
)
def test_what_is_wrong_with_a_profile_s_file_is_one_line(tmp_path, monkeypatch, text, words):
    (tmp_path / "smoke.yaml").write_bytes((profiles.FOLDER / "smoke.yaml").read_bytes())
    (tmp_path / "demo.yaml").write_bytes((profiles.FOLDER / "demo.yaml").read_bytes())
    monkeypatch.setattr(profiles, "FOLDER", tmp_path)
    (tmp_path / "mine.yaml").write_text(text, "utf-8")
    with pytest.raises(NodeError, match=words) as error:
        profiles.load("mine")
    assert "\n" not in str(error.value)
    (tmp_path / "mine.yaml").write_bytes("note: 中文".encode("gbk"))
    with pytest.raises(NodeError, match="cannot be read"):
        profiles.load("mine")


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
