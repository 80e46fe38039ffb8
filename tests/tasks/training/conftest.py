"""Shared by the post-training tests."""

import pytest

from tasks.tokenize.tokenizer import take_folder
from tests.support import foreign_tokenizers as foreign
from tests.support.tiny import byte_tokenizer


@pytest.fixture(scope="session")
def tokenizer(tmp_path_factory):
    folder = tmp_path_factory.mktemp("tokenizer")
    byte_tokenizer().save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def alternating(tmp_path_factory):
    """A tokenizer whose chat template wants the user and the assistant in turn."""
    folder = tmp_path_factory.mktemp("alternating")
    take_folder(foreign.save(tmp_path_factory.mktemp("theirs"), "llama2"), folder)
    return folder


@pytest.fixture
def turns():
    """Messages of these roles."""

    def make(*roles):
        return [{"role": role, "content": f"{role} {k}"} for k, role in enumerate(roles)]

    return make
