"""Partitions: made once, found again, verified, and what a killed run has left is all that is done."""

import fcntl
import logging
import os
import signal
import stat
import subprocess
import sys
import time
from concurrent.futures import Future, ThreadPoolExecutor
from concurrent.futures.process import BrokenProcessPool

import pytest

from tasks.settings.config import Runtime
from tasks.settings.errors import NodeError
from tasks.settings.paths import ROOT
from tasks.stage.node import Context
from tasks.work import partitions, pool
from tests.support import partition_jobs


def inline(function, *args):
    """An engine without processes."""
    future = Future()
    try:
        future.set_result(function(*args))
    except Exception as error:  # noqa: BLE001  (handed on, as a process pool does)
        future.set_exception(error)
    return future


def jobs_of(texts, log):
    function = partition_jobs.upper
    return [partitions.Job(partitions.key(function, text), function, (text, str(log))) for text in texts]


def done(log):
    return log.read_text().split("\n")[:-1] if log.exists() else []


def context(tmp_path, **more):
    (tmp_path / "node.partial").mkdir(exist_ok=True)
    runtime = Runtime(**more.pop("runtime", {}))
    log = logging.getLogger("test")
    return Context("clean:x", tmp_path / "node.partial", {}, {}, runtime, 1, log, None, **more)


def test_folders_come_in_order_and_each_piece_is_made_once(tmp_path):
    log = tmp_path / "log"
    folders = partitions.run(tmp_path / "p", jobs_of("abc", log), inline)
    assert [(f / "text.txt").read_text() for f in folders] == ["A", "B", "C"]
    again = partitions.run(tmp_path / "p", jobs_of("dcbab", log), inline)
    assert [(f / "text.txt").read_text() for f in again] == ["D", "C", "B", "A", "B"]
    assert done(log) == ["a", "b", "c", "d"]
    assert sorted(f.name for f in (tmp_path / "p").iterdir()) == sorted({f.name for f in again})


@pytest.mark.parametrize("mask", [0o022, 0o002, 0o027, 0o077])
def test_the_umask_decides_who_reads_a_piece(tmp_path, mask):
    before = os.umask(mask)
    try:
        (folder,) = partitions.run(tmp_path / "p", jobs_of("a", tmp_path / "log"), inline)
    finally:
        os.umask(before)
    assert stat.S_IMODE(folder.stat().st_mode) == 0o777 & ~mask
    assert {stat.S_IMODE(f.stat().st_mode) for f in folder.rglob("*") if f.is_file()} == {0o666 & ~mask}


def test_a_key_knows_the_function_its_code_and_what_it_is_made_from():
    function = partition_jobs.upper
    keys = [
        partitions.key(function, {"a": 1}, "x"),
        partitions.key(function, {"a": 2}, "x"),
        partitions.key(function, {"a": 1}, "x", code=("tasks.clean.near",)),
        partitions.key(partition_jobs.fail, {"a": 1}, "x"),
    ]
    assert len(set(keys)) == 4
    assert partitions.key(function, {"a": 1}, "x") == keys[0]
    with pytest.raises(TypeError):
        partitions.key(function, ROOT)


@pytest.mark.parametrize(
    ("alter", "wrong"),
    [
        (lambda folder: (folder / "text.txt").write_text("more"), "text.txt has changed size"),
        (lambda folder: (folder / "sub" / "length.txt").unlink(), "sub/length.txt is missing"),
        (lambda folder: (folder / "done.json").write_text("{"), "done.json is unreadable"),
    ],
)
def test_an_altered_piece_is_made_again_and_said(tmp_path, caplog, alter, wrong):
    log = tmp_path / "log"
    [folder, _] = partitions.run(tmp_path / "p", jobs_of("ab", log), inline)
    alter(folder)
    partitions.run(tmp_path / "p", jobs_of("ab", log), inline)
    assert (folder / "text.txt").read_text() == "A"
    assert done(log) == ["a", "b", "a"]
    assert wrong in caplog.text


def test_altered_content_of_the_same_size_is_never_linked_into_an_artifact(tmp_path):
    log = tmp_path / "log"
    [folder] = partitions.run(context(tmp_path), jobs_of("a", log), inline)
    assert folder.parent == tmp_path / ".partitions"
    (folder / "text.txt").write_text("B")
    partitions.run(context(tmp_path, runtime={"verify": "size"}), jobs_of("a", log), inline)
    assert (folder / "text.txt").read_text() == "A"


def test_a_forced_node_makes_its_pieces_again(tmp_path):
    log = tmp_path / "log"
    partitions.run(context(tmp_path), jobs_of("ab", log), inline)
    partitions.run(context(tmp_path, forced=True), jobs_of("b", log), inline)
    assert done(log) == ["a", "b", "b"]


def test_a_failure_is_raised_and_leaves_nothing_half_done(tmp_path):
    bad = partitions.Job(partitions.key(partition_jobs.fail, "x"), partition_jobs.fail, ("x",))
    good = jobs_of("ab", tmp_path / "log")
    with pytest.raises(ValueError, match="cannot do x"):
        partitions.run(tmp_path / "p", [good[0], bad, good[1]], inline)
    assert sorted(f.name for f in (tmp_path / "p").iterdir()) == sorted(job.key for job in good)


def test_a_cancelled_run_stops_between_pieces(tmp_path):
    waiting = []

    def submit(function, *args):
        waiting.append(Future())
        if len(waiting) == 1:
            waiting[0].set_running_or_notify_cancel()
            waiting[0].set_result(function(*args))
        return waiting[-1]

    ctx = context(tmp_path, should_stop=lambda: True)
    with pytest.raises(NodeError, match="stopped; 1 of 3 partitions are done"):
        partitions.run(ctx, jobs_of("abc", tmp_path / "log"), submit)
    assert all(future.cancelled() for future in waiting[1:])


def test_finished_pieces_are_checked_by_the_engine(tmp_path):
    log, told, asked = tmp_path / "log", [], []

    def submit(function, *args):
        asked.append(function)
        return inline(function, *args)

    partitions.run(context(tmp_path), jobs_of("ab", log), inline)
    ctx = context(tmp_path, progress=lambda share, text: told.append((share, text)))
    partitions.run(ctx, jobs_of("abcd", log), submit)
    assert asked == [partitions._wrong] * 2 + [partitions.make] * 2
    assert told == [
        (0.0, "0 of 2 finished partitions checked"),
        (0.5, "2 of 2 finished partitions checked"),
        (0.5, "2 of 4 partitions"),
        (1.0, "4 of 4 partitions"),
    ]


def test_a_cancelled_run_stops_between_checks_and_leaves_what_is_finished(tmp_path):
    log, waiting = tmp_path / "log", []
    folders = partitions.run(context(tmp_path), jobs_of("abc", log), inline)

    def submit(function, *args):
        waiting.append(Future())
        return inline(function, *args) if len(waiting) == 1 else waiting[-1]

    with pytest.raises(NodeError, match="stopped; 1 of 3 finished partitions were checked"):
        partitions.run(context(tmp_path, should_stop=lambda: True), jobs_of("abc", log), submit)
    assert [future.cancelled() for future in waiting[1:]] == [True, True]
    assert all((folder / "done.json").exists() for folder in folders)


def test_what_dead_makers_of_other_pieces_left_goes_when_it_is_old(tmp_path):
    root = tmp_path / "p"
    old, held, new = (root / f"{name}.x.partial" for name in ("old", "held", "new"))
    for folder in (old, held, new):
        folder.mkdir(parents=True)
        (folder / partitions.LOCK).touch()
        if folder != new:
            long_ago = time.time() - partitions.ABANDONED_SECONDS - 60
            os.utime(folder, (long_ago, long_ago))
    with open(held / partitions.LOCK, "wb") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        partitions.run(root, jobs_of("a", tmp_path / "log"), inline)
    assert (old.exists(), held.exists(), new.exists()) == (False, True, True)


def test_a_broken_pool_is_said_in_one_line(tmp_path):
    def submit(function, *args):
        future = Future()
        future.set_exception(BrokenProcessPool("a child died"))
        return future

    with pytest.raises(NodeError, match="a worker process was killed; 0 of 1 partitions are done and kept"):
        partitions.run(tmp_path / "p", jobs_of("a", tmp_path / "log"), submit)


def test_the_slower_of_two_runs_takes_the_piece_of_the_faster(tmp_path):
    [job] = jobs_of("a", tmp_path / "log")
    (tmp_path / "p").mkdir()
    for _ in range(2):
        partitions.make(tmp_path / "p", job.key, job.function, job.args)
    assert [f.name for f in (tmp_path / "p").iterdir()] == [job.key]


def test_a_killed_run_goes_on_with_the_pieces_left(tmp_path):
    root, log = tmp_path / "p", tmp_path / "log"
    command = [
        sys.executable,
        "-c",
        "from tests.support.partition_jobs import main; main()",
        str(root),
        str(log),
    ]
    process = subprocess.Popen(command, cwd=ROOT)
    try:
        _wait_for(lambda: sorted(done(log)) == ["a", "b"] and len(list(root.glob("*.partial/half"))) == 2)
    finally:
        process.send_signal(signal.SIGKILL)
        process.wait()
    half = set(root.glob("*.partial"))
    # workers see that their parent is gone and end; until then their pieces are theirs
    _wait_for(lambda: not any(_held(path) for path in half))
    jobs = partition_jobs.slow_jobs(str(log), 0.0)
    try:
        pool.shutdown()
        folders = partitions.run(root, jobs)
    finally:
        pool.shutdown()
    assert [(f / "text.txt").read_text() for f in folders] == ["A", "B", "SLOW C", "SLOW D"]
    assert sorted(done(log)) == ["a", "b", "slow c", "slow d"]
    assert sorted(f.name for f in root.iterdir()) == sorted(job.key for job in jobs)


def _held(folder):
    with open(folder / partitions.LOCK, "wb") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return True
    return False


def _wait_for(true, seconds=60):
    end = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < end
        time.sleep(0.05)


def test_a_piece_that_tells_moves_the_progress_before_it_is_done(tmp_path):
    gate, heard = tmp_path / "gate", []

    def progress(share, text):
        heard.append((share, text))
        if share == 0.25:
            gate.touch()

    job = partitions.Job(
        partitions.key(partition_jobs.tell_half, "x"), partition_jobs.tell_half, ("x", str(gate)), tells=True
    )
    [plain] = jobs_of("a", tmp_path / "log")
    with ThreadPoolExecutor(1) as threads:
        folders = partitions.run(context(tmp_path, progress=progress), [job, plain], threads.submit)
    shares = [share for share, _ in heard]
    assert shares == sorted(shares)
    assert shares[0] in (0.0, 0.25)
    assert shares[-1] == 1.0
    assert (0.25, "0 of 2 partitions") in heard
    assert sorted(path.name for path in folders[0].iterdir()) == ["done.json", "sub", "text.txt"]
    assert partitions._wrong(folders[0]) == ""
