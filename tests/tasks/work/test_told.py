"""A job's progress, from its process to the node."""

from __future__ import annotations

import threading
import time
from concurrent.futures import ThreadPoolExecutor

import pytest

from tasks.work import told
from tests.support.tiny import context


def test_what_a_job_says_is_the_progress_of_its_node(tmp_path, monkeypatch):
    monkeypatch.setattr(told, "POLL_SECONDS", 0.01)
    seen, heard = [], threading.Event()

    def progress(share, text):
        seen.append((share, text))
        heard.set()

    def job(tell):
        for share in (0.0, 0.5):
            heard.clear()
            tell(share, f"at {share}")
            assert heard.wait(30)
        time.sleep(0.05)  # said once, however often it is asked
        return "made"

    with told.teller() as tell, ThreadPoolExecutor(1) as pool:
        assert told.result(context(tmp_path, progress=progress), pool.submit(job, tell), tell) == "made"
    assert seen == [(0.0, "at 0.0"), (0.5, "at 0.5")]
    assert not tell.path.parent.exists()


def test_a_job_that_fails_fails_its_node(tmp_path):
    def job():
        raise TimeoutError("of the job itself")

    with told.teller() as tell, ThreadPoolExecutor(1) as pool, pytest.raises(TimeoutError, match="itself"):
        told.result(context(tmp_path), pool.submit(job), tell)
