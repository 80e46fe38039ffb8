"""A training in processes of its own: logs, metrics, progress, cancellation, no orphans.

    flow process ── agent ── ranks (each in a session of its own)

The agent starts the ranks, and again after a fault. On CPUs of one Linux host it is a fork of a process that has loaded
the engine (tasks.training.forks); elsewhere it is torchrun.

Invariants, each learnt from a way to lose work:
- the trainer writes to a *file*: with a pipe, a dead reader would break the ranks before they save;
- the agent gets SIGTERM when this process dies, however it dies (PR_SET_PDEATHSIG; Linux), passes it
  on to the ranks, and they save a checkpoint at the next step boundary;
- the work folder stays locked until the agent has ended, also when this process is long gone: a new
  try cannot start while the old one still saves;
- ranks that outlive the agent are killed here, before anyone else may write to the folder;
- the agent has a session of its own: Prefect kills the flow's whole group 30 s after a cancellation, and without an
  agent nobody would end a rank that hangs.

A stop asked for while the training goes on (Prefect's cancellation in the main thread, or
`ctx.should_stop()` elsewhere) gives it `runtime.grace_seconds` to save. Prefect itself kills this process after 30 s:
the agent then has SIGTERM once more, and its ranks save all the same.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, BinaryIO, Protocol

import psutil

from model.training.config import TrainConfig, to_dict
from model.training.lines import describe, parse
from model.training.machine import Machine
from model.training.machine import look as look_here
from model.training.now import FILE as NOW
from model.training.now import read as read_now
from tasks.settings.errors import NodeError
from tasks.settings.files import write_json
from tasks.settings.paths import ROOT
from tasks.stage.node import Context
from tasks.training import forks, gpus
from tasks.training.stuck import Stuck
from tasks.training.usage import Usage
from tasks.work import pool

CONFIG, LOG, METRICS = "CONFIG.json", "train.log", "metrics.jsonl"
STOPPED = 75
"""Exit code of the engine after a checkpoint that it was asked for."""
SHOWN_ONLY = {"step", "steps", "eta_s"}
"""Of a line's numbers: no metrics."""
POLL_SECONDS = 0.25
CARE_SECONDS = 5.0
"""Between two readings of the metrics, and of whether to stop."""
LOOK_SECONDS = 1.0
"""Between two listings of the processes."""
LOCK_SECONDS = 60.0

# what a rank may see of our environment: enough to find programs, libraries and devices
_PASSED = (
    "PATH",
    "HOME",
    "USER",
    "LANG",
    "LC_ALL",
    "TMPDIR",
    "LD_LIBRARY_PATH",
    "VIRTUAL_ENV",
    "XDG_CACHE_HOME",
)
_PASSED_FAMILIES = ("CUDA_", "NVIDIA_", "NCCL_", "GLOO_", "TORCH", "PYTORCH_", "TRITON_")

_ASK = """
import ctypes, os, signal, sys
ctypes.CDLL(None).prctl(1, signal.SIGTERM)  # PR_SET_PDEATHSIG: it outlives the exec
if os.getppid() != int(sys.argv[1]):  # the parent died before we could ask
    sys.exit(1)
os.execvp(sys.argv[2], sys.argv[2:])
"""


class Stopped(NodeError):
    """The training stopped at a checkpoint because it was asked to; the next run goes on from there."""


class Child(Protocol):
    """The agent, as subprocess.Popen has it."""

    pid: int
    returncode: int | None

    def poll(self) -> int | None: ...

    def wait(self, timeout: float | None = None) -> int: ...

    def send_signal(self, sig: int) -> None: ...

    def kill(self) -> None: ...


Start = Callable[[BinaryIO, int], Child]
"""Starts the agent: its output goes to a file, and it keeps a lock (a file descriptor) open."""


def launch(ctx: Context, config: TrainConfig, *, nproc: int, machine: Machine) -> None:
    """Train with `nproc` ranks to the end; returns when the engine has finished well.

    Of the config only `work_dir` (where the metrics appear) and `steps` (of the progress) are used here. On GPUs each
    rank has one of its own, for which it may have to wait. Raises `Stopped` after a checkpoint that was asked for,
    NodeError with the end of the log after a failure, and re-raises whatever interrupts the wait once the training has
    stopped.
    """
    file = ctx.out / CONFIG
    write_json(file, to_dict(config))
    tail = Tail(ctx, Path(config.work_dir) / METRICS, config.steps)
    tail.began = f"{nproc} ranks start" if nproc > 1 else "one rank starts"
    runtime = ctx.runtime
    env = environment(runtime.threads_per_rank)
    if forked(runtime.launcher, machine.device):
        restarts, grace = runtime.max_restarts, runtime.grace_seconds
        supervise(
            ctx, lambda sink, lock: forks.fork(str(file), nproc, restarts, grace, env, sink, lock), tail
        )
    elif machine.gpus:
        with _own_gpus(ctx, nproc, machine.gpus) as seen:
            supervise(ctx, torchrun(ctx, file, nproc, {**env, "CUDA_VISIBLE_DEVICES": seen}), tail)
    else:
        supervise(ctx, torchrun(ctx, file, nproc, env), tail)


@contextlib.contextmanager
def _own_gpus(ctx: Context, ranks: int, count: int) -> Iterator[str]:
    """What the ranks are to see of `count` GPUs; waits for trainings beside this one."""

    def waits() -> None:
        ctx.progress(0.0, f"waits for {ranks} of {count} GPUs")
        ctx.log.info("other trainings have the GPUs: waiting for %d of %d", ranks, count)

    def check() -> None:
        if ctx.should_stop():
            raise Stopped("the flow run was cancelled before this training had its GPUs")

    with gpus.taken(ranks, count, waits, check) as mine:
        ctx.log.info("GPUs of this training: %s", ", ".join(mine))
        yield ",".join(mine)


def look(ctx: Context, precision: str) -> Machine:
    """What is here to train on, as a process with torch sees it: the one that trainings are forked from, if any may be."""
    runtime = ctx.runtime
    if runtime.device == "cuda" or not forked(runtime.launcher, "cpu"):
        return pool.submit(look_here, runtime.device, precision).result()
    with open(ctx.out / LOG, "ab") as sink:
        return forks.look(runtime.device, precision, environment(runtime.threads_per_rank), sink)


def forked(launcher: str, device: str) -> bool:
    """Whether a training is forked. What has loaded CUDA cannot be."""
    if launcher != "fork":
        return launcher == "auto" and device == "cpu" and sys.platform == "linux"
    if device != "cpu" or sys.platform != "linux":
        raise NodeError("runtime.launcher fork is for CPUs under Linux: choose auto or torchrun")
    return True


def torchrun(ctx: Context, file: Path, nproc: int, env: Mapping[str, str]) -> Start:
    """The ranks under torchrun, in this environment."""
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(nproc)]
    restarts = ["--max-restarts", str(ctx.runtime.max_restarts)]
    grace = {"TORCH_ELASTIC_SHUTDOWN_TIMEOUT": str(max(1, int(ctx.runtime.grace_seconds) - 1))}
    return program([*torchrun, *restarts, "-m", "model.training.run", str(file)], {**env, **grace})


def program(command: list[str], env: Mapping[str, str]) -> Start:
    """A command that trains."""
    return lambda sink, lock: subprocess.Popen(
        _ending_with(os.getpid(), command),
        stdin=subprocess.DEVNULL,
        stdout=sink,
        stderr=subprocess.STDOUT,
        env=dict(env),
        cwd=ROOT,
        pass_fds=[lock],
        start_new_session=True,
    )


def environment(threads: int) -> dict[str, str]:
    """The environment of the ranks."""
    passed = {k: v for k, v in os.environ.items() if k in _PASSED or k.startswith(_PASSED_FAMILIES)}
    return {
        # gloo looks its own host name up otherwise, and not every machine can
        **({"GLOO_SOCKET_IFNAME": "lo"} if sys.platform == "linux" else {}),
        **passed,
        "PYTHONPATH": str(ROOT),
        "PYTHONUNBUFFERED": "1",
        "OMP_NUM_THREADS": str(threads),
        "TOKENIZERS_PARALLELISM": "false",
        "HF_HUB_OFFLINE": "1",
    }


def supervise(ctx: Context, start_child: Start, tail: Tail) -> None:
    """Start what trains in `ctx.out`, and look after it until it has ended."""
    log = ctx.out / LOG
    with _locked(ctx.out, ctx) as lock, open(log, "ab") as sink:
        start = sink.tell()
        tail.folder.joinpath(NOW).unlink(missing_ok=True)  # of one that was killed
        child = start_child(sink, lock)
        ctx.log.info("training starts: process %s, log %s", child.pid, log)
        tail.read()
        family, grace = Family(child.pid), ctx.runtime.grace_seconds
        try:
            _wait(ctx, child, family, tail)
        except BaseException as reason:  # cancelled, timed out, Ctrl-C: save, then go
            ctx.log.warning("stopping the training (%r): it has %.0f s to save", reason, grace)
            _stop(child, family, grace)
            tail.read()
            ctx.log.warning("the training has stopped: %s", tail.position())
            raise
        finally:
            family.kill()
        tail.read()
    if child.returncode:
        raise _failure(child.returncode, log, start, tail)


# ----------------------------------------------------------------------------------- metrics
class Tail:
    """Reads metrics.jsonl as it grows, into `ctx.track` and `ctx.progress`.

    After a resume the engine cuts the file back to its checkpoint and trains the same steps again,
    with the same numbers: a step that was reported once is not reported twice.
    """

    def __init__(self, ctx: Context, path: Path, steps: int | None):
        self._ctx, self._path, self._steps = ctx, path, steps
        self.folder = path.parent
        self._offset = 0
        self._reported: dict[str, int] = {}
        """Metric -> the last step that was reported."""
        self._last: dict[str, Any] = {}
        self.began = "the training starts"
        """What is shown before the first line."""
        self._doing = ""
        """What the engine was at between two lines."""

    def read(self) -> None:
        """Take up what was written since the last call; a line without its end waits."""
        try:
            with open(self._path, "rb") as handle:
                if os.fstat(handle.fileno()).st_size < self._offset:
                    self._offset = 0  # cut back
                handle.seek(self._offset)
                new = handle.read()
        except FileNotFoundError:
            new = b""
        whole = new[: new.rfind(b"\n") + 1]
        self._offset += len(whole)
        for line in whole.split(b"\n"):
            entry = parse(line)
            if entry is not None:
                self._take(entry)
            elif line.strip():  # of a try that was killed
                self._ctx.log.warning("metrics.jsonl holds a torn line, which is skipped: %.80r", line)
        steps = self._steps or self._last.get("steps")
        doing = read_now(self.folder)
        if "step" not in self._last:
            self._ctx.progress(0.0, doing or self.began)
        elif steps and (whole or doing != self._doing):
            text = self.position()
            self._ctx.progress(min(self._last["step"] / steps, 1.0), f"{text}; {doing}" if doing else text)
        self._doing = doing

    def _take(self, entry: Mapping[str, Any]) -> None:
        step = entry["step"]
        new = {k: v for k, v in _numbers(entry) if k not in SHOWN_ONLY and self._reported.get(k, -1) < step}
        if new:
            self._ctx.track.metrics(new, step)
            self._reported.update(dict.fromkeys(new, step))
        self._last = {**self._last, **entry}

    @property
    def step(self) -> int:
        """The last one that was told; 0 before."""
        return self._last.get("step", 0)

    def position(self) -> str:
        """Where the training is, in words."""
        return describe(self._last, self._steps or self._last.get("steps"))


def _numbers(entry: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, float]]:
    """Flat (name, number): `{"val_loss_by_source": {"zhihu": 2}}` is `val_loss_by_source/zhihu`."""
    for key, value in entry.items():
        if isinstance(value, Mapping):
            yield from _numbers(value, f"{prefix}{key}/")
        elif isinstance(value, int | float) and not isinstance(value, bool):
            yield f"{prefix}{key}", value


# --------------------------------------------------------------------------------- processes
class Family:
    """The agent and all that it started, remembered while it can still be seen."""

    def __init__(self, pid: int):
        self._root: psutil.Process | None = None
        with contextlib.suppress(
            psutil.NoSuchProcess
        ):  # a fork is waited for by its server: it may have gone
            self._root = psutil.Process(pid)
        self._seen: dict[int, psutil.Process] = {}

    def look(self) -> None:
        with contextlib.suppress(psutil.NoSuchProcess):
            if self._root is not None:
                self._seen.update({p.pid: p for p in self._root.children(recursive=True)})

    def alive(self) -> list[psutil.Process]:
        """Those seen that still run."""
        return [p for p in self._seen.values() if p.is_running()]

    def kill(self) -> None:
        """End what is left; a no-op after a regular end. (psutil never hits a pid's new owner.)"""
        left = self.alive()
        for process in left:
            with contextlib.suppress(psutil.NoSuchProcess):
                process.kill()
        psutil.wait_procs(left, timeout=10)


def _wait(ctx: Context, child: Child, family: Family, tail: Tail) -> None:
    cared = looked = time.monotonic()
    usage, stuck = Usage(family.alive), Stuck(child.pid, ctx.runtime.watchdog_seconds)
    while True:
        with contextlib.suppress(subprocess.TimeoutExpired):
            child.wait(POLL_SECONDS)
            return
        now = time.monotonic()
        if now - looked >= LOOK_SECONDS:
            looked = now
            family.look()
        if now - cared >= CARE_SECONDS:
            cared = now
            tail.read()
            ctx.track.metrics(usage.sample(), tail.step)
            for process in stuck.look(most=2 * CARE_SECONDS):
                ctx.log.warning(
                    "process %d of the training has used no CPU time for more than %g s (watchdog_seconds): it is killed",
                    process.pid,
                    ctx.runtime.watchdog_seconds,
                )
            if ctx.should_stop():
                raise Stopped("the flow run was cancelled; the training stopped at a checkpoint")


def _stop(child: Child, family: Family, grace: float) -> None:
    """Ask for a checkpoint; kill what does not come to an end in time."""
    family.look()
    if child.poll() is None:
        child.send_signal(signal.SIGTERM)
    try:
        child.wait(grace)
    except subprocess.TimeoutExpired:
        child.kill()
        child.wait()


def _ending_with(parent: int, command: list[str]) -> list[str]:
    """The command behind a few lines that ask for SIGTERM when the thread that started it ends (Linux).

    They run in a process of their own: code between fork and exec (`preexec_fn`) can lock up where the parent has
    other threads, and a flow has many.
    """
    if sys.platform != "linux":
        return command
    return [sys.executable, "-I", "-S", "-c", _ASK, str(parent), *command]


@contextlib.contextmanager
def _locked(folder: Path, ctx: Context) -> Iterator[int]:
    """A lock on the folder that the child inherits: held until both of us are gone."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        end, waiting = time.monotonic() + LOCK_SECONDS, False
        while True:
            try:
                fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                if time.monotonic() > end:
                    raise NodeError(
                        f"an earlier training still writes to {folder}; end its processes first"
                    ) from None
                if not waiting:
                    ctx.log.info("an earlier training still saves in %s: waiting for it", folder)
                waiting = True
                time.sleep(POLL_SECONDS)
        yield handle
    finally:
        os.close(handle)


def _failure(code: int, log: Path, start: int, tail: Tail) -> NodeError:
    with open(log, "rb") as handle:
        handle.seek(start)
        text = handle.read().decode("utf-8", "replace")
    # torchrun has an exit code of its own; it names the ranks' in its last words
    if code == STOPPED or re.search(rf"exitcode\s*:\s*{STOPPED}\b", text):
        return Stopped(f"the training stopped at a checkpoint ({tail.position()}); run again to go on")
    how = f"signal {signal.Signals(-code).name}" if code < 0 else f"exit code {code}"
    lines = "\n".join(_telling(text.splitlines())[-25:])
    return NodeError(f"the training failed ({how}; {tail.position()}); the end of {log}:\n{lines}")


def _telling(lines: list[str]) -> list[str]:
    """The log lines without torchrun's own traceback, which comes last and says nothing of the cause."""
    own = next((i for i, line in enumerate(lines) if "torch/distributed/run.py" in line), None)
    if own is None:
        return lines
    first = next((i for i in range(own, -1, -1) if lines[i].startswith("Traceback")), own)
    return lines[:first] or lines
