"""perplexity_filter on the demo's world: nothing of it is dropped, and the same texts in disorder are."""

import os
from pathlib import Path

import pytest

from tasks import world
from tasks.clean.chain import Chain
from tasks.clean.recipe import load_set
from tasks.settings.config import Assets, World
from tests.support.samples import record, shuffled


def trained(texts, folder):
    from tasks.clean.assets import train_language
    from tasks.clean.seeds import good_lines

    lines = sorted({line for text in texts for line in good_lines(text)})
    info = train_language("zh", lines, folder, Assets().vocab_size, Assets().order)
    assert info["usable"], info
    return folder


@pytest.fixture(scope="module")
def texts():
    """Chinese documents of the demo's world without any planted dirt."""
    made = [doc for name in ("skypile", "baidu_baike") for doc in world.documents(World(), name)]
    return [doc.text for doc in made if not doc.dirt and doc.language == "zh"]


@pytest.fixture(scope="module")
def world_models(texts, tmp_path_factory):
    return trained(texts, tmp_path_factory.mktemp("world-models"))


def dropped_shares(texts, models, max_ppl=None):
    """Shares of the texts, and of the texts with their characters shuffled, that the filter drops."""
    [step] = [
        step
        for step in load_set("steel")["text"].steps
        if step.operator == "perplexity_filter" and step.settings()["lang"] == "zh"
    ]
    if max_ppl:
        step = step.model_copy(update={"parameters": {**step.parameters, "max_ppl": max_ppl}})
    chain = Chain("text", [step], models, 1)
    shares = []
    for version in (texts, [shuffled(text, i) for i, text in enumerate(texts)]):
        rows = chain.run([record(text) for text in version])
        caught = [row for row in rows if row.dropped_by]
        assert all(row.why["perplexity"] > step.settings()["max_ppl"] for row in caught)
        shares.append(len(caught) / len(rows))
    return shares


def test_shuffled_characters_are_dropped(texts, world_models):
    assert len(texts) > 150
    assert dropped_shares(texts, world_models, max_ppl=750) == [0, 1]


def test_at_the_recipes_limit_many_of_them_even_in_so_small_a_world(texts, world_models):
    """The world knows some 1,500 characters, and no text of them can surprise much more than 1,500."""
    good, bad = dropped_shares(texts, world_models)
    assert good == 0
    assert bad > 0.25


@pytest.mark.slow
@pytest.mark.skipif(
    "STEEL_SAMPLES" not in os.environ,
    reason="needs real samples: set STEEL_SAMPLES=FOLDER, or make test-full SAMPLES=FOLDER (one with sources/)",
)
def test_on_real_pages_the_recipes_limit_tells_them_apart(tmp_path):
    import orjson

    files = (Path(os.environ["STEEL_SAMPLES"]) / "sources" / "skypile").glob("*.jsonl")
    real = [orjson.loads(line)["text"] for file in files for line in file.open("rb")]
    good, bad = dropped_shares(real[1::2], trained(real[::2], tmp_path))
    assert good < 0.05
    assert bad > 0.8
