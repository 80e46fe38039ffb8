"""Jobs' progress, from their processes to the node."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor

import pytest

from tasks.work import pool, told
from tests.support.tiny import context


@pytest.fixture
def threads(monkeypatch):
    """The pool's jobs in threads, and no waiting between two words."""
    monkeypatch.setattr(told, "POLL_SECONDS", 0.01)
    with ThreadPoolExecutor(2) as executor:
        monkeypatch.setattr(pool, "submit", executor.submit)
        yield


def test_what_jobs_say_is_the_progress_of_their_node(tmp_path, threads):
    seen, heard = [], threading.Condition()

    def progress(share, text):
        with heard:
            seen.append((share, text))
            heard.notify_all()

    def reached(done):
        with heard:
            assert heard.wait_for(lambda: any(text.startswith(f"{done} of 100") for _, text in seen), 30)

    def first(name, tell):
        tell(3, 6)
        reached(30)
        return name

    def second(name, tell):
        reached(30)
        tell(1, 4)
        reached(70)
        return name

    jobs = told.Jobs()
    jobs.submit(60, first, "a")
    jobs.submit(40, second, "b")
    words = told.shown(context(tmp_path, progress=progress), lambda done: f"{done} prompts", 0.5)
    assert jobs.results(words) == ["a", "b"]
    shares = {text.partition(" ")[0]: share for share, text in seen}
    assert shares["30"] == 0.65
    assert shares["70"] == 0.85
    assert seen[-1] == (1.0, "100 of 100 prompts")
    assert len(seen) == len(set(seen))
    assert "left" in next(text for _, text in seen if text.startswith("70"))


def test_a_job_that_fails_fails_its_node_and_the_others_end_well(threads):
    failed, said = threading.Event(), []

    def bad(tell):
        raise TimeoutError("of the job itself")

    def slow(tell):
        assert failed.wait(30)
        tell(1, 2)  # nobody listens any more
        said.append(True)

    jobs = told.Jobs()
    jobs.submit(1, slow)
    jobs.submit(1, bad)
    with pytest.raises(TimeoutError, match="itself"):
        jobs.results()
    failed.set()
    pool.submit(len, ()).result()
    for _ in range(300):
        if said:
            break
        threading.Event().wait(0.01)
    assert said


def test_no_jobs_have_no_results_and_no_folder(threads, monkeypatch):
    monkeypatch.setattr(told.tempfile, "TemporaryDirectory", None)
    assert told.Jobs().results() == []


def test_a_full_disk_ends_no_job(tmp_path, monkeypatch, caplog):
    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(told.os, "replace", full)
    told.Teller(tmp_path / "0")(1, 2)
    assert "No space left" in caplog.text


def test_jobs_that_write_while_one_fails_do_not_hide_its_error(threads, monkeypatch):
    monkeypatch.setattr(told, "POLL_SECONDS", 0.0)

    def busy(over, tell):
        while not over.is_set():
            tell(1, 2)

    def bad(tell):
        tell(1, 2)
        raise ValueError("the job's own")

    for _ in range(10):
        over, jobs = threading.Event(), told.Jobs()
        jobs.submit(1, busy, over)
        jobs.submit(1, bad)
        try:
            with pytest.raises(ValueError, match="own"):
                jobs.results()
        finally:
            over.set()


def test_words_come_seldom_and_a_share_is_kept(tmp_path, monkeypatch):
    now = [100.0]
    monkeypatch.setattr(told.time, "monotonic", lambda: now[0])
    tell = told.Teller(tmp_path / "0")
    assert tell.share() == 0.0
    for done in range(4):
        tell(done, 4)
        now[0] += 1
    assert tell.share() == 0.5


def test_the_time_that_is_left():
    seen, now = [], [0.0]
    step = told.with_eta(lambda share, text: seen.append(text), lambda: now[0])
    for seconds, share in ((0, 0.0), (10, 0.25), (40, 0.5), (4000, 0.75), (4100, 1.0)):
        now[0] = seconds
        step(share, "n of m")
    assert seen == [
        "n of m",
        "n of m, about 30 s left",
        "n of m, about 40 s left",
        "n of m, about 22 min left",
        "n of m",
    ]
