"""flows.processes: a process is known again by pid and birth, and ends when told to."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
import uuid
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


@pytest.mark.parametrize(
    "other",
    [
        lambda birth: birth.replace("tick ", "tick 1"),  # a later process, after the pids went round
        lambda birth: f"boot {uuid.uuid4()} {birth.partition(' ')[2].partition(' ')[2]}",  # after a reboot
        lambda birth: "",
    ],
)
def test_a_pid_that_went_to_another_process_is_left_alone(child, other):
    stranger = Record(child.pid, other(child.birth), child.command)
    assert stranger != child
    assert stranger.process() is None
    assert processes.stop({"child": stranger}, grace=1) == []
    assert child.process() is not None


@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere the start's time does not move")
@pytest.mark.parametrize("seconds", [3600, -3600, 2.5, 86400 * 365])
def test_a_clock_that_jumps_loses_no_process(child, tmp_path, monkeypatch, seconds):
    """psutil reckons the start from the time of the boot, which the kernel moves with the clock."""
    path = tmp_path / "processes.json"
    processes.save(path, {"child": child})
    before = psutil.Process(child.pid).create_time()
    boot = psutil._pslinux.boot_time()
    monkeypatch.setattr(psutil._pslinux, "boot_time", lambda: boot + seconds)
    clock = time.time
    monkeypatch.setattr(time, "time", lambda: clock() + seconds)
    assert abs(psutil.Process(child.pid).create_time() - before - seconds) < 1  # the jump is seen
    again = processes.load(path)
    assert again == {"child": child}
    assert again["child"].process().pid == child.pid
    assert processes.stop(again, grace=5) == ["child"]


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
@pytest.mark.parametrize("name", ["plain", "a) R 1 (b", ") ) )", "two words", "名字"])
def test_a_name_of_any_characters_hides_no_birth(tmp_path, name):
    plain = start(tmp_path, "import time; time.sleep(60)")
    named = start(
        tmp_path,
        f"import ctypes, time; ctypes.CDLL(None).prctl(15, {name.encode()!r}); print('set', flush=True); time.sleep(60)",
    )
    try:
        before = named.birth
        until(lambda: "set" in processes.tail(tmp_path / "logs" / "child.log"))
        assert name.encode() in Path(f"/proc/{named.pid}/comm").read_bytes()
        assert processes.birth(psutil.Process(named.pid)) == before
        assert named.process() is not None
        assert named.birth != plain.birth
    finally:
        processes.stop({"plain": plain, "named": named}, grace=5)


def test_a_lock_is_held_as_long_as_the_process_lives(tmp_path):
    lock, script = tmp_path / "lock", [sys.executable, "-c", "import time; time.sleep(60)"]

    def once() -> Record:
        return processes.start(script, env=dict(os.environ), cwd=tmp_path, log=tmp_path / "log", lock=lock)

    first = once()
    with pytest.raises(processes.Held, match=f"lock is held by process {first.pid}"):
        once()
    assert first.process() is not None
    assert not (tmp_path / "log.previous.log").exists()
    psutil.Process(first.pid).kill()
    until(lambda: first.process() is None)
    second = once()
    assert processes.stop({"second": second}, grace=5) == ["second"]


@pytest.mark.parametrize(("shift", "known"), [(0, True), (0.4, True), (-100, False)])
def test_a_record_of_before_is_still_read(tmp_path, child, shift, known):
    started = psutil.Process(child.pid).create_time() + shift
    old = {"pid": child.pid, "started": started, "command": child.command}
    path = tmp_path / "processes.json"
    path.write_text(json.dumps({"child": old, "gone": {**old, "pid": 2**22 + 1}}))
    assert processes.load(path) == ({"child": child} if known else {})


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
