"""The demo's world through convert and clean: every piece of planted dirt is dealt with, and nothing else is lost."""

import json
from collections import Counter

import pytest

from tasks import world
from tasks.clean import assets, decontaminate, dedup, signatures
from tasks.clean.job import clean_part
from tasks.clean.overlap import Index
from tasks.clean.recipe import load_set
from tasks.convert.job import Reading, Settings
from tasks.convert.source import convert_source
from tasks.records import record
from tasks.settings.config import World

WORLD = World(size="small")
SOURCES = ("skypile", "wikipedia_cn", "baidu_qa", "starcoder")
BAD = ("broken_json", "null_fields")


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """Paths, accounts and drops of the small world."""
    folder = tmp_path_factory.mktemp("world")

    def convert(name, reader, language="zh"):
        for path, content in world.files(WORLD, name).items():
            file = folder / "raw" / name / path
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_bytes(content)
        out = folder / "converted" / name
        out.mkdir(parents=True)
        settings = Settings(source=Reading(reader=reader, language=language))
        convert_source(str(folder / "raw" / name), str(out), name, settings)
        return out

    converted = {n: convert(n, n, "code" if n == "starcoder" else "zh") / "records.jsonl" for n in SOURCES}
    converted["demo_qa_zh"] = convert("demo_qa_zh", "alpaca") / "records.jsonl"
    questions = convert("demo_exam", "ceval") / "questions.jsonl"

    (folder / "assets").mkdir()
    training = assets.Training(vocab_size=2000, order=3, max_chars=300_000)
    settings = assets.Settings(assets=training, code_tokenizer=False)
    models = assets.train({n: converted[n] for n in SOURCES}, folder / "assets", settings)
    recipes = load_set("steel")
    steps = {kind: recipe.steps for kind, recipe in recipes.items()}
    near = {kind: recipe.near_duplicates for kind, recipe in recipes.items()}
    accounts, cleaned = {}, {}
    for name in SOURCES:
        out = folder / "cleaned" / name
        out.mkdir(parents=True)
        accounts[name] = clean_part(out, converted[name], folder / "assets", steps, 3, name)
        cleaned[name] = out / "records.jsonl"
    hashed = []
    for name, path in cleaned.items():
        signed = folder / "signed" / name
        signed.mkdir(parents=True)
        signatures.hash_part(signed, path, near, 100)
        hashed.append((name, path, signed / signatures.FILE))
    _, report = dedup.decide(SOURCES, hashed, near, folder / "dedup")
    drops = {n: list(record.read(folder / "dedup" / n / "drops.jsonl")) for n in SOURCES}
    searched = {**cleaned, "demo_qa_zh": converted["demo_qa_zh"]}
    index = Index(13)
    for line in questions.read_text("utf-8").splitlines():
        index.add("demo_exam", json.loads(line))
    found = {}
    for name, path in searched.items():
        part = decontaminate.Searched(path, folder / "searched" / name)
        part.folder.mkdir(parents=True)
        decontaminate.search_part(part.folder, path, {"demo_exam": str(questions)}, 13)
        found[name] = [part]
    hits, _ = decontaminate.decide(index, found, {})
    return {"accounts": accounts, "models": models, "drops": drops, "report": report, "hits": hits}


def test_models_are_trained_for_both_languages(run):
    assert run["models"]["zh"]["usable"]
    assert run["models"]["en"]["usable"]


@pytest.mark.parametrize("name", SOURCES)
def test_only_gibberish_is_dropped_by_operators(run, name):
    account = run["accounts"][name]
    assert sum(account["dropped"].values()) == world.expected(WORLD, name)["gibberish"]


@pytest.mark.parametrize("name", SOURCES)
def test_each_kind_of_dirt_is_removed_by_its_operator_and_by_no_other(run, name):
    expected = world.expected(WORLD, name)
    removers = {
        "steel_chinese_convert_mapper": "traditional",
        "steel_clean_html_mapper": "html",
        "clean_email_mapper": "email",
        "steel_clean_links_mapper": "link",
        "steel_clean_ip_mapper": "ip",
    }
    wanted = {operator: expected[dirt] for operator, dirt in removers.items() if expected[dirt]}
    assert run["accounts"][name]["changed"] == wanted


@pytest.mark.parametrize("name", SOURCES)
def test_the_planted_copies_are_found_and_nothing_else(run, name):
    expected = world.expected(WORLD, name)
    found = Counter(drop["method"] for drop in run["drops"][name])
    planted = expected["near_duplicate"] + (expected["cross_duplicate"] if name == "wikipedia_cn" else 0)
    assert found.total() == planted  # exact copies never come so far: they have one id
    assert all(group["size"] <= 3 for group in run["report"]["largest_groups"])


@pytest.mark.parametrize("name", [*SOURCES, "demo_qa_zh"])
def test_the_leaked_questions_are_found_and_nothing_else(run, name):
    assert len(run["hits"][name]) == world.expected(WORLD, name)["contaminated"]
