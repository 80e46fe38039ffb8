"""A small corpus in cleaned form and a tokenizer trained on it."""

from pathlib import Path

import pytest

from tasks.tokenize.encode import Encoder
from tasks.tokenize.tokenizer import train
from tests.support.tokenizing import SETTINGS, corpus, write_lines


@pytest.fixture(scope="session")
def cleaned(tmp_path_factory) -> dict[str, tuple[str, str]]:
    """{source: (records.jsonl, drops.jsonl)}"""
    folder = tmp_path_factory.mktemp("cleaned")
    records = write_lines(folder / "clean" / "records.jsonl", corpus())
    return {"wiki": (str(records), str(write_lines(folder / "drops" / "drops.jsonl", [])))}


@pytest.fixture(scope="session")
def tokenizer_folder(cleaned, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("tokenizer")
    train(cleaned, str(folder), SETTINGS)
    return folder


@pytest.fixture(scope="session")
def encoder(tokenizer_folder) -> Encoder:
    return Encoder(tokenizer_folder)
