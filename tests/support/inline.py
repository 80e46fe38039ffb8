"""The pool without processes."""

from concurrent.futures import Future

import pytest

from tasks.work import pool


@pytest.fixture
def inline_pool(monkeypatch):
    """What is submitted runs here and now."""

    def submit(function, *args, **kwargs):
        future = Future()
        try:
            future.set_result(function(*args, **kwargs))
        except Exception as error:  # noqa: BLE001  (handed on, as a process pool does)
            future.set_exception(error)
        return future

    monkeypatch.setattr(pool, "submit", submit)
