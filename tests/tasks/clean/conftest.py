"""Fixtures of the clean tests: chains of real operators, a language model trained on the fly."""

from __future__ import annotations

from pathlib import Path

import pytest

from tasks.clean.chain import Chain
from tasks.clean.recipe import Step, load_set
from tests.support.samples import real_text


@pytest.fixture(scope="session")
def models(tmp_path_factory) -> Path:
    """A folder with a tiny Chinese model, as clean:assets makes it."""
    from tasks.clean.assets import train_language

    folder = tmp_path_factory.mktemp("models")
    lines = sorted({real_text(seed) for seed in range(900)})
    info = train_language("zh", lines, folder, vocab_size=400, order=3)
    assert info["usable"], info
    return folder


@pytest.fixture(scope="session")
def clean(models):
    """clean("steel", record) -> Row, through the recipe of the record's kind."""
    chains = {}

    def run(recipe_set: str, item: dict):
        key = recipe_set, item["kind"]
        if key not in chains:
            chains[key] = Chain(item["kind"], load_set(recipe_set)[item["kind"]].steps, models, examples=2)
        [row] = chains[key].run([item])
        return row

    return run


@pytest.fixture(scope="session")
def one_step(models):
    """one_step({"operator": …}, record) -> Row, through a single operator."""

    def run(step: dict, item: dict):
        [row] = Chain(item["kind"], [Step.model_validate(step)], models, examples=2).run([item])
        return row

    return run
