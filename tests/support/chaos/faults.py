"""The faults: each is done to a run at a moment, and says what a user would do then.

A fault's `do` gets the Round; it waits for what it needs, acts, and returns what it did in a few words. Missed is raised
when the run ended before that could be. Only processes of the round's own servers and runs are signalled.
"""

from __future__ import annotations

import os
import random
import re
import shutil
import signal
import subprocess
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path

import psutil

from flows import processes
from tests.support.chaos.ground import STAGES, TRAININGS, Ground, no_clock


class Missed(Exception):
    """The run had ended before the fault could be done."""


@dataclass
class Round:
    """What a fault may look at and touch."""

    ground: Ground
    chance: random.Random
    follower: subprocess.Popen[bytes]
    """`make run`, which follows the run."""
    delay: float
    """Seconds after the flow's start at which the fault is wanted."""
    place: str = ""
    """What was being made when the fault began."""
    at: float = 0.0
    """When it began, by the monotonic clock."""

    def mark(self) -> None:
        """The fault begins now, if it has not."""
        if not self.at:
            making = {
                f"{path.parent.name}:{path.name[:-25]}" for path in self.ground.artifacts.glob("*/*.partial")
            }
            self.at, self.place = time.monotonic(), ", ".join(sorted(making)[:3])

    def wait(self, seconds: float | None = None) -> None:
        """Until the wanted moment after the flow process has begun; the run may have ended by then."""
        self.until(self.ground.flow)
        self.sleep(self.delay if seconds is None else seconds)
        self.mark()

    def sleep(self, seconds: float) -> None:
        end = time.monotonic() + seconds
        while time.monotonic() < end and self.follower.poll() is None:
            time.sleep(0.05)

    def until(self, found: Callable[[], Iterable]) -> list:
        """What `found` gives as soon as it gives anything. Raises Missed."""
        while True:
            over = self.follower.poll() is not None
            if seen := list(found()):
                return seen
            if over:
                raise Missed
            time.sleep(0.1)

    def kill(self, target: psutil.Process, number: int = signal.SIGKILL) -> str:
        if not self.ground.owns(target):
            raise Missed
        self.mark()
        try:
            target.send_signal(number)  # psutil refuses a pid that is another's by now
        except psutil.NoSuchProcess as error:
            raise Missed from error
        return f"{signal.Signals(number).name} to process {target.pid}"

    def over(self) -> None:
        """Until no process of the flow is left."""
        processes.wait_until(
            lambda: not self.ground.flow() and not self.ground.trainings(),
            lambda: True,
            timeout=180,
            poll=0.5,
        )


@dataclass(frozen=True)
class Fault:
    """A kind of fault."""

    do: Callable[[Round], str]
    stages: tuple[str, ...] = STAGES
    """One of these has work to do in the round."""
    verify: bool = False
    """Bytes on the disk are altered: who wants to be sure reruns with runtime.verify=full."""
    rerun: bool = False
    """A run that ended well may still lack something: it is run once more."""
    prepare: Callable[[Ground], None] | None = None
    """Before the run begins."""
    restore: Callable[[Ground], None] | None = None
    """After the round, whatever became of it."""
    refuse: Callable[[], str] = lambda: ""
    """Why it cannot be done on this machine; "" if it can."""


# kills


def _server(name: str) -> Callable[[Round], str]:
    def do(it: Round) -> str:
        it.wait()
        (server,) = it.until(lambda: it.ground.server(name))
        return it.kill(server)

    return do


def _process(find: Callable[[Ground], list[psutil.Process]]) -> Callable[[Round], str]:
    """Kill one of those that `find` finds, some time after the first one was seen."""

    def do(it: Round) -> str:
        it.until(lambda: find(it.ground))
        it.sleep(it.chance.uniform(0, 4))
        return it.kill(it.chance.choice(it.until(lambda: find(it.ground))))

    return do


def _flow(it: Round) -> str:
    it.wait()
    (flow, *_) = it.until(it.ground.flow)
    return it.kill(flow)


def _stop_rank(it: Round) -> str:
    """Stopped for good, until the watchdog ends the training; or for a while."""
    it.until(it.ground.trainings)
    it.sleep(it.chance.uniform(0, 4))
    rank = it.chance.choice(it.until(it.ground.trainings))
    done = it.kill(rank, signal.SIGSTOP)
    if it.chance.random() < 0.5:
        return f"{done}, for good"
    seconds = it.chance.uniform(3, 15)
    it.sleep(seconds)
    with_words = f"{done}, SIGCONT after {seconds:.0f} s"
    try:
        it.kill(rank, signal.SIGCONT)
    except Missed:
        return f"{done}; it was gone before SIGCONT"
    return with_words


# what people do in Prefect


def _suspend(it: Round) -> str:
    from tests.support.chaos import acts

    it.wait()
    run = _running(it)
    acts.suspend(run)
    it.over()
    pause = it.chance.uniform(0, 10)
    time.sleep(pause)
    before = acts.state(run)
    if before != "Suspended":
        if before == "Completed":
            raise Missed
        raise RuntimeError(f"a suspended run is {before}")
    acts.resume(run)
    return f"suspended, resumed {pause:.0f} s after its process had ended"


def _delete(it: Round) -> str:
    from tests.support.chaos import acts

    it.wait()
    acts.delete(_running(it))
    it.over()
    return "deleted"


def _cancel(it: Round) -> str:
    from tests.support.chaos import acts

    it.wait()
    run = _running(it)
    acts.cancel(run)
    it.over()
    end = time.monotonic() + 150
    while not acts.ended(run):
        if time.monotonic() > end:
            raise RuntimeError(f"a cancelled run is {acts.state(run)} after 150 s")
        time.sleep(1)
    if acts.state(run) == "Completed":
        raise Missed
    it.ground.finish(it.follower)
    acts.retry(run)
    it.follower = it.ground.begin(["watch", run])
    return "cancelled, retried"


def _running(it: Round) -> str:
    from tests.support.chaos import acts

    def running() -> list[str]:
        run = it.ground.run_id()
        return [run] if run and acts.state(run) == "Running" else []

    return it.until(running)[0]


# the disk


def _interrupt(it: Round) -> None:
    """End the flow in the way that leaves most behind."""
    try:
        _flow(it)
    except Missed:
        return
    it.over()


def _flip(path: Path, chance: random.Random) -> str:
    """Change one bit of one byte, in place, as a bad disk does."""
    size = path.stat().st_size
    at = chance.randrange(size)
    with open(path, "r+b") as file:
        file.seek(at)
        byte = file.read(1)[0]
        file.seek(at)
        file.write(bytes([byte ^ (1 << chance.randrange(8))]))
    return f"a bit of byte {at:,} of {size:,} in {path.parent.name}/{path.name}"


def _files(folders: Iterable[Path]) -> list[Path]:
    return sorted(
        path
        for folder in folders
        for path in folder.rglob("*")
        if path.is_file() and path.stat().st_size and path.name != ".lock"
    )


def _finished(artifacts: Path, stages: tuple[str, ...] = STAGES) -> list[Path]:
    return sorted(
        path
        for stage in stages
        for path in (artifacts / stage).glob("*")
        if path.is_dir() and re.fullmatch(r".+-[0-9a-f]{16}", path.name)
    )


def _flipped(stages: tuple[str, ...], only: str = "") -> Callable[[Round], str]:
    def do(it: Round) -> str:
        _interrupt(it)
        files = [f for f in _files(_finished(it.ground.artifacts, stages)) if f.name.endswith(only)]
        if not files:
            raise Missed
        return _flip(it.chance.choice(files), it.chance)

    return do


def _flip_checkpoint(it: Round) -> str:
    def saved() -> list[Path]:
        found = it.ground.artifacts.glob("*/*.partial/checkpoints/step-*")
        return sorted(p for p in found if re.fullmatch(r"step-\d+", p.name) and (p / "state.json").exists())

    it.until(saved)
    it.sleep(it.chance.uniform(0, 3))
    for process in it.until(it.ground.trainings):
        it.kill(process)
    it.over()
    folders = saved()
    if not folders:
        raise Missed
    return _flip(it.chance.choice(_files(folders)), it.chance)


def _flip_partition(it: Round) -> str:
    """And remove what was joined of it, so that it is wanted again."""
    _interrupt(it)
    stage = it.chance.choice(["convert", "clean", "tokenize"])
    files = _files((it.ground.artifacts / stage / ".partitions").glob("*"))
    if not files:
        raise Missed
    said = _flip(it.chance.choice(files), it.chance)
    for path in _finished(it.ground.artifacts, (stage,)):
        shutil.rmtree(path)
    return f"{said}, in {stage}; its artifacts removed"


def _remove_artifact(it: Round) -> str:
    """While the run goes on."""
    it.wait()
    (path,) = it.chance.sample(it.until(lambda: _finished(it.ground.artifacts)), 1)
    shutil.rmtree(path)
    return f"removed {path.parent.name}/{path.name}"


ROOM = "512m"


def _mount(ground: Ground) -> None:
    ground.artifacts.mkdir(exist_ok=True)
    subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={ROOM}", "tmpfs", str(ground.artifacts)], check=True)


def _unmount(ground: Ground) -> None:
    if os.path.ismount(ground.artifacts):
        subprocess.run(["umount", "--lazy", str(ground.artifacts)], check=True)


def _no_mount() -> str:
    return "" if os.geteuid() == 0 and shutil.which("mount") else "a disk of its own needs root"


def _full(it: Round) -> str:
    """No byte more for a while, then room again."""
    it.wait()
    it.until(it.ground.flow)
    filler = it.ground.artifacts / ".filler"
    with open(filler, "wb", buffering=0) as file:
        for size in (1 << 20, 1 << 12):
            try:
                while True:
                    file.write(b"\0" * size)
            except OSError:
                continue
    seconds = it.chance.uniform(5, 20)
    it.sleep(seconds)
    filler.unlink()
    return f"artifacts' disk full for {seconds:.0f} s"


# network and clock


def _slow_hub(ground: Ground) -> None:
    ground.hub.pause = 0.4


def _cut_hub(it: Round) -> str:
    """In the middle of a download."""
    hub = it.ground.hub
    seen = len(hub.requests)
    it.until(lambda: hub.requests[seen:])
    it.sleep(it.chance.uniform(0, 6))
    hub.down.set()
    it.mark()
    seconds = it.chance.uniform(2, 40)
    it.sleep(seconds)
    hub.down.clear()
    return f"the hub away for {seconds:.0f} s"


def _mend_hub(ground: Ground) -> None:
    ground.hub.down.clear()
    ground.hub.pause = 0.0


def _fake_clock(ground: Ground) -> None:
    """Servers, worker and all they start get a clock that can be moved."""
    ground.say(["down"])
    path = ground.folder / "clock"
    path.write_text("+0\n")
    ground.clock = path
    ground.say(["up"])


def _jump(it: Round) -> str:
    it.wait()
    jump = it.chance.choice(["+1h", "-1h", "+300s", "-30s", "+30h"])
    assert it.ground.clock
    it.ground.clock.write_text(f"{jump}\n")
    return f"clock {jump}"


def _real_clock(ground: Ground) -> None:
    ground.clock = None  # first: whatever the jump did, the next round has a clock like the machine's
    ground.say(["down"])
    ground.say(["up"])


FAULTS: dict[str, Fault] = {
    "kill-worker": Fault(_server("worker")),
    "kill-flow": Fault(_flow),
    "kill-prefect": Fault(_server("prefect")),
    "kill-mlflow": Fault(_server("mlflow")),
    "kill-rank": Fault(_process(Ground.trainings), TRAININGS),
    "kill-launcher": Fault(_process(Ground.launchers), TRAININGS),
    "kill-pool": Fault(_process(Ground.pool), ("convert", "clean", "tokenize")),
    "stop-rank": Fault(_stop_rank, TRAININGS),
    "suspend": Fault(_suspend),
    "delete": Fault(_delete),
    "cancel": Fault(_cancel),
    "disk-full": Fault(_full, prepare=_mount, restore=_unmount, refuse=_no_mount),
    "flip-artifact": Fault(_flipped(STAGES), verify=True),
    "flip-shard": Fault(_flipped(("tokenize",), ".arrow"), TRAININGS, verify=True),
    "flip-checkpoint": Fault(_flip_checkpoint, TRAININGS),
    "flip-partition": Fault(_flip_partition, ("convert", "clean", "tokenize"), verify=True),
    "remove-artifact": Fault(_remove_artifact, rerun=True),
    "cut-hub": Fault(_cut_hub, ("download",), prepare=_slow_hub, restore=_mend_hub),
    "clock": Fault(
        _jump,
        prepare=_fake_clock,
        restore=_real_clock,
        refuse=no_clock,
    ),
}
