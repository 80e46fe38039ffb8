"""Shared by the tests of the rooms."""

from concurrent.futures import Future

import pytest


@pytest.fixture
def pool_here(monkeypatch):
    """The pool's work in this process."""

    def submit(function, *args, **kwargs):
        done = Future()
        done.set_result(function(*args, **kwargs))
        return done

    monkeypatch.setattr("tasks.work.pool.submit", submit)
