"""Long-lived child processes that outlive the command that started them.

A process is remembered by its pid and its birth: a pid alone may belong to someone else later. The
birth is not a time of day, which moves when the clock is set or a laptop wakes up: on Linux it is the
boot's id and the clock ticks from the boot to the start. A server also holds a lock on its database
while it lives, so that a second one is not started over it, whatever became of the record.
Children get their own session (Ctrl-C in the terminal is not for them), output to a file, and the
default SIGINT handler: a shell's background job inherits SIGINT ignored, and Prefect, which turns
SIGTERM into SIGINT, would then not stop.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import signal
import subprocess
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import psutil

from tasks.settings.files import write_json

_BOOT = Path("/proc/sys/kernel/random/boot_id")


class Held(RuntimeError):
    """Another process holds the lock; the message says which."""


@dataclass(frozen=True)
class Record:
    """A process that we started: enough to know it again."""

    pid: int
    birth: str
    command: list[str]

    def process(self) -> psutil.Process | None:
        """The living process, or None if it is gone or the pid is another's now."""
        try:
            process = psutil.Process(self.pid)
            same = birth(process) == self.birth
            return process if same and process.status() != psutil.STATUS_ZOMBIE else None
        except psutil.NoSuchProcess:
            return None


def birth(process: psutil.Process) -> str:
    """What tells a process from every other that has, had or will have its pid.

    Raises psutil.NoSuchProcess.
    """
    if not _BOOT.exists():  # not Linux: there the system keeps the time that was the start's
        return f"time {process.create_time()}"
    try:
        status = Path(f"/proc/{process.pid}/stat").read_text("utf-8", "surrogateescape")
    except (FileNotFoundError, ProcessLookupError) as error:
        raise psutil.NoSuchProcess(process.pid) from error
    # the second field is the name, in brackets, and may hold any character; the start is the 22nd
    ticks = status.rpartition(")")[2].split()[19]
    return f"boot {_BOOT.read_text('ascii').strip()} tick {ticks}"


def start(
    command: Sequence[str],
    *,
    env: Mapping[str, str],
    cwd: Path,
    log: Path,
    lock: Path | None = None,
    handles: Sequence[int] = (),
) -> Record:
    """Start a process in its own session; what it says goes to `log` (the last start only).

    It inherits the open files `handles` and holds `lock` until it ends. Raises Held if another process does; nothing was started then.
    """
    with _locked(lock) as held:
        log.parent.mkdir(parents=True, exist_ok=True)
        if log.exists():
            log.replace(log.with_suffix(".previous.log"))
        with open(log, "wb") as sink:
            child = subprocess.Popen(
                list(command),
                env=dict(env),
                cwd=cwd,
                stdin=subprocess.DEVNULL,
                stdout=sink,
                stderr=subprocess.STDOUT,
                start_new_session=True,
                preexec_fn=_default_signals,
                pass_fds=[*handles, *held],
            )
    return Record(child.pid, birth(psutil.Process(child.pid)), list(command))


@contextlib.contextmanager
def _locked(path: Path | None) -> Iterator[list[int]]:
    """The open, locked file as a list to hand down; closed here at the end, and so kept by the child alone."""
    if path is None:
        yield []
        return
    with open(path, "a") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise Held(f"{path} is held by {_holders(path)}") from error
        yield [file.fileno()]


def _holders(path: Path) -> str:
    pids = []
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.NoSuchProcess, psutil.AccessDenied):
            if any(file.path == str(path.resolve()) for file in process.open_files()):
                pids.append(str(process.pid))
    others = [pid for pid in pids if pid != str(os.getpid())]
    return f"process {', '.join(others)}" if others else "another process"


def _default_signals() -> None:
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_DFL)


def stop(
    records: Mapping[str, Record], *, grace: float, say: Callable[[str], None] = lambda text: None
) -> list[str]:
    """Terminate processes together, then what they left behind; kill what outlasts `grace` seconds.

    Returns the names of those that were running.
    """
    alive = {name: p for name, r in records.items() if (p := r.process()) is not None}
    family = [child for process in alive.values() for child in _children(process)]
    end(list(alive.values()), grace, say)
    end([child for child in family if child.is_running()], 5)
    return list(alive)


def end(targets: list[psutil.Process], grace: float, say: Callable[[str], None] = lambda text: None) -> None:
    """SIGTERM to all, SIGKILL to those that do not end within `grace` seconds."""
    for process in targets:
        _signal(process, signal.SIGTERM)
    _, left = psutil.wait_procs(targets, timeout=grace)
    for process in left:
        say(f"process {process.pid} did not stop in {grace:.0f} s: killing it")
        _signal(process, signal.SIGKILL)
    psutil.wait_procs(left, timeout=5)


def _signal(process: psutil.Process, number: int) -> None:
    with contextlib.suppress(psutil.NoSuchProcess):
        process.send_signal(number)  # psutil refuses a pid that was given to another process


def _children(process: psutil.Process) -> list[psutil.Process]:
    try:
        return process.children(recursive=True)
    except psutil.NoSuchProcess:
        return []


def memory(record: Record) -> int:
    """Bytes of a process and its children, shared pages counted once (proportional set size)."""
    process, total = record.process(), 0
    for each in [process, *_children(process)] if process else []:
        try:
            total += each.memory_full_info().pss if hasattr(each, "memory_full_info") else 0
        except (psutil.NoSuchProcess, psutil.AccessDenied):
            continue
    return total


def flow_runs(state: Path | None = None) -> dict[str, psutil.Process]:
    """Flow run id → process that executes it, on this machine; of one state folder's worker, or of all."""
    runs = {}
    for process in psutil.process_iter(["cmdline"]):
        try:
            if not any("prefect" in part for part in process.info["cmdline"] or []):
                continue
            environment = process.environ()
            run = environment.get("PREFECT__FLOW_RUN_ID")
            if run and (state is None or environment.get("STEEL_STATE") == str(state)):
                runs[run] = process
        except (psutil.NoSuchProcess, psutil.AccessDenied):
            continue
    return runs


def load(path: Path) -> dict[str, Record]:
    try:
        saved = json.loads(path.read_text("utf-8"))
        records = {name: _record(fields) for name, fields in saved.items()}
        return {name: record for name, record in records.items() if record}
    except FileNotFoundError:
        return {}
    except (OSError, ValueError, TypeError, AttributeError) as error:
        raise RuntimeError(
            f"{path} is unreadable ({error}): stop the servers by hand, then delete it"
        ) from error


def _record(fields: Mapping[str, Any]) -> Record | None:
    if "started" not in fields:
        return Record(**fields)
    try:  # written before 0.3.0: pid and time of day
        process = psutil.Process(fields["pid"])
        same = abs(process.create_time() - fields["started"]) < 1.0
        return Record(process.pid, birth(process), fields["command"]) if same else None
    except psutil.NoSuchProcess:
        return None


def save(path: Path, records: Mapping[str, Record]) -> None:
    write_json(path, {name: asdict(record) for name, record in records.items()})


def tail(path: Path, lines: int = 20) -> str:
    """The last lines of a log."""
    try:
        with open(path, "rb") as handle:
            handle.seek(0, os.SEEK_END)
            handle.seek(max(0, handle.tell() - 64 * 1024))
            text = handle.read().decode("utf-8", "replace")
    except FileNotFoundError:
        return ""
    return "\n".join(text.splitlines()[-lines:])


def wait_until(
    ready: Callable[[], bool], alive: Callable[[], bool], *, timeout: float, poll: float = 0.1
) -> str:
    """Poll until ready; "" when it is, else "ended" or "timeout"."""
    end = time.monotonic() + timeout
    while time.monotonic() < end:
        if ready():
            return ""
        if not alive():
            return "ended"
        time.sleep(poll)
    return "timeout"
