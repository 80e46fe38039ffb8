"""The byte tokenizer, as transformers has it and as the tasks encode with it."""

import pytest

from tasks.tokenize.encode import Encoder
from tests.support.tiny import byte_tokenizer


@pytest.fixture(scope="session")
def tokenizer():
    return byte_tokenizer()


@pytest.fixture(scope="session")
def encoder(tokenizer, tmp_path_factory):
    folder = tmp_path_factory.mktemp("tokenizer")
    tokenizer.save_pretrained(folder)
    return Encoder(folder)
