"""Recipes are typed, and every operator in them is a real one."""

import pytest

from tasks.clean import operators, recipe
from tasks.clean.recipe import ALLOWED, KINDS, Step, load, load_set
from tasks.settings.errors import NodeError

PAPER_TEXT = [
    "chinese_convert",
    "clean_email",
    "clean_html",
    "clean_ip",
    "clean_links",
    "clean_copyright",
    "expand_macro",
    "fix_unicode",
    "punctuation_normalization",
    "remove_repeat_sentences",
    "remove_specific_chars",
    "whitespace_normalization",
    "alphanumeric",
    "average_line_length",
    "character_repetition",
    "maximum_line_length",
    "perplexity",
    "special_characters",
    "text_length",
    "word_repetition",
]
PAPER_CODE = [
    "clean_copyright",
    "clean_email",
    "clean_links",
    "fix_unicode",
    "punctuation_normalization",
    "alphanumeric",
    "average_line_length",
    "character_repetition",
    "maximum_line_length",
    "text_length",
    "words_num",
    "word_repetition",
]


ORIGINAL_TEXT = [*PAPER_TEXT[:-1], "words_num", "word_repetition"]
ORIGINAL_CODE = [
    *PAPER_CODE[1:5],
    "whitespace_normalization",
    "clean_copyright",
    "alphanumeric",
    *PAPER_CODE[5:],
]


@pytest.mark.parametrize("name", ["steel", "paper", "original-yaml"])
def test_every_recipe_loads(name):
    recipes = load_set(name)
    assert set(recipes) == set(KINDS)
    assert all(r.steps for r in recipes.values())


def test_every_allowed_operator_is_registered_with_data_juicer():
    assert set(ALLOWED) <= operators.registered()


@pytest.mark.parametrize(
    ("recipe_set", "kind", "names"),
    [
        ("paper", "text", PAPER_TEXT),
        ("paper", "dialogue", PAPER_TEXT),
        ("paper", "code", PAPER_CODE),
        ("original-yaml", "text", ORIGINAL_TEXT),
        ("original-yaml", "dialogue", ORIGINAL_TEXT),
        ("original-yaml", "code", ORIGINAL_CODE),
    ],
)
def test_the_papers_recipes_are_its_tables_and_its_file_in_order(recipe_set, kind, names):
    steps = load_set(recipe_set)[kind].steps
    assert [s.operator.removesuffix("_mapper").removesuffix("_filter") for s in steps] == names


def test_every_step_of_every_recipe_can_be_constructed(models):
    for name in ("steel", "paper", "original-yaml"):
        for kind, parsed in load_set(name).items():
            for step in parsed.steps:
                needs = {"perplexity_filter": step.settings().get("lang"), "alphanumeric_filter": "tokenizer"}
                if needs.get(step.operator) == "en" or step.settings().get("tokenization"):
                    continue  # models that this test does not train
                assert operators.load(step.operator, step.settings(), models), (name, kind, step)


@pytest.mark.parametrize(
    ("step", "message"),
    [
        (
            {"operator": "python_lambda_mapper", "parameters": {"lambda_str": "lambda d: d"}},
            "not an allowed operator",
        ),
        ({"operator": "clean_html_mapper", "parameters": {"work_dir": "/"}}, "Extra inputs"),
        (
            {"operator": "remove_repeat_sentences_mapper", "parameters": {"tokenizer": "lambda t: [t]"}},
            "Extra inputs",
        ),
        ({"operator": "clean_links_mapper", "parameters": {"pattern": "("}}, "regular expression"),
        ({"operator": "perplexity_filter", "parameters": {"lang": "../zh", "max_ppl": 3}}, "Input should be"),
        ({"operator": "text_length_filter", "parameters": {"min_len": -1}}, "greater than or equal"),
    ],
)
def test_what_is_not_allowed_is_refused(step, message):
    with pytest.raises(ValueError, match=message):
        Step.model_validate(step)


def test_a_broken_recipe_is_one_clear_line(tmp_path):
    path = tmp_path / "mine-text.yaml"
    path.write_text("kind: text\nsteps: [{operator: nonsense}]\n", "utf-8")
    with pytest.raises(NodeError, match=r"recipe mine-text\.yaml: .*nonsense") as caught:
        load(path)
    assert "\n" not in str(caught.value)
    with pytest.raises(NodeError, match="there is no recipe absent-text.yaml"):
        load_set("absent")


def test_a_changed_parameter_changes_the_fingerprint_and_a_comment_does_not(tmp_path, monkeypatch):
    from tasks.clean.node import nodes
    from tasks.settings.config import Source, SteelRun
    from tasks.stage.fingerprint import digest

    config = SteelRun(profile="test", sources={"a": Source(dataset="a", reader="skypile")})

    def identities():
        return {n.name: digest(n.config) for n in nodes(config)}

    before = identities()
    for kind in KINDS:
        (tmp_path / f"steel-{kind}.yaml").write_text(
            (recipe.FOLDER / f"steel-{kind}.yaml").read_text("utf-8"), "utf-8"
        )
    monkeypatch.setattr(recipe, "FOLDER", tmp_path)
    text = tmp_path / "steel-text.yaml"
    text.write_text("# another comment\n" + text.read_text("utf-8"), "utf-8")
    assert identities() == before
    text.write_text(text.read_text("utf-8").replace("max_ppl: 1500", "max_ppl: 1400"), "utf-8")
    assert {name for name, value in identities().items() if value != before[name]} == {"clean:a"}
