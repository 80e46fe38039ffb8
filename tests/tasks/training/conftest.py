"""Shared by the post-training tests."""

from concurrent.futures import Future

import pytest

from tests.support.tiny import byte_tokenizer


@pytest.fixture(scope="session")
def tokenizer(tmp_path_factory):
    folder = tmp_path_factory.mktemp("tokenizer")
    byte_tokenizer().save_pretrained(folder)
    return folder


@pytest.fixture
def pool_here(monkeypatch):
    """The pool's work in this process."""

    def submit(function, *args):
        done = Future()
        done.set_result(function(*args))
        return done

    monkeypatch.setattr("tasks.work.pool.submit", submit)
