"""flows.processes: a process is known again by pid and start time, and ends when told to."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

from flows import processes
from flows.processes import Record


def start(tmp_path: Path, script: str) -> Record:
    return processes.start(
        [sys.executable, "-c", script],
        env=dict(os.environ),
        cwd=tmp_path,
        log=tmp_path / "logs" / "child.log",
    )


def until(condition, seconds=10):
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.02)


@pytest.fixture
def child(tmp_path):
    record = start(tmp_path, "import time; print('ready', flush=True); time.sleep(60)")
    until(lambda: "ready" in processes.tail(tmp_path / "logs" / "child.log"))
    yield record
    if process := record.process():
        process.kill()


def test_it_lives_in_a_session_of_its_own_and_stops_when_told(child):
    assert os.getsid(child.pid) == child.pid
    assert processes.memory(child) > 1_000_000
    assert processes.stop({"child": child}, grace=5) == ["child"]
    assert child.process() is None
    assert processes.stop({"child": child}, grace=5) == []


def test_a_pid_that_went_to_another_process_is_left_alone(child):
    stranger = Record(child.pid, child.started - 100, child.command)
    assert stranger.process() is None
    assert processes.stop({"child": stranger}, grace=1) == []
    assert child.process() is not None


def test_ctrl_c_works_although_the_shell_ignores_it_for_background_jobs(tmp_path):
    """bash gives background jobs SIGINT ignored; Prefect turns SIGTERM into SIGINT and would not stop."""
    script = (
        "import os, sys; sys.path.insert(0, sys.argv[1]); from pathlib import Path; from flows import processes;"
        "r = processes.start([sys.executable, '-c', 'import time; time.sleep(60)'], env=dict(os.environ),"
        " cwd=Path('.'), log=Path(sys.argv[2]))\nprint(r.pid)"
    )
    root = str(Path(processes.__file__).parents[1])
    shell = f"trap '' INT; exec {sys.executable} -c \"$0\" {root} {tmp_path}/log"
    pid = int(
        subprocess.run(["bash", "-c", shell, script], capture_output=True, text=True, check=True).stdout
    )
    process = psutil.Process(pid)
    process.send_signal(signal.SIGINT)
    psutil.wait_procs([process], timeout=5)
    assert not process.is_running() or process.status() == psutil.STATUS_ZOMBIE


def test_one_that_does_not_listen_is_killed_with_its_children(tmp_path):
    record = start(
        tmp_path,
        "import signal, subprocess, sys, time\n"
        "signal.signal(signal.SIGTERM, signal.SIG_IGN)\n"
        "c = subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(60)'])\n"
        "print(c.pid, flush=True)\ntime.sleep(60)",
    )
    log = tmp_path / "logs" / "child.log"
    until(lambda: processes.tail(log).strip().isdigit())
    said = []
    processes.stop({"child": record}, grace=0.3, say=said.append)
    assert record.process() is None
    assert not psutil.pid_exists(int(processes.tail(log)))
    assert "killing it" in said[0]


def test_records_survive_on_disk_and_a_broken_file_is_not_taken_for_an_empty_one(tmp_path, child):
    path = tmp_path / "processes.json"
    assert processes.load(path) == {}
    processes.save(path, {"child": child})
    assert processes.load(path) == {"child": child}
    path.write_text("{")
    with pytest.raises(RuntimeError, match="unreadable"):
        processes.load(path)


def test_the_log_of_the_start_before_is_kept(tmp_path, child):
    until(lambda: (tmp_path / "logs" / "child.log").exists())
    again = start(tmp_path, "print('second')")
    until(lambda: "second" in processes.tail(tmp_path / "logs" / "child.log"))
    assert "ready" in processes.tail(tmp_path / "logs" / "child.previous.log")
    until(lambda: again.process() is None)
