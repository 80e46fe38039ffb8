"""Servers, artifacts and a small pipeline of their own, in a folder of their own: where faults are tried.

The pipeline is the profile `chaos` up to DPO. One of its sources comes from a hub of this process. What is compared is each node's content digest, counted anew from the bytes on the disk.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psutil

from flows import processes
from flows.settings import ROOT, Addresses, State, auth_string, clean_environment
from tasks import dag, world
from tasks.inspect.artifacts import newest
from tasks.settings import profiles
from tasks.settings.config import World
from tasks.stage.names import stage_of
from tasks.stage.store import Store, content_digest, list_files
from tests.support.chaos.hub import CutHub
from tests.support.house import House

PROFILE, UNTIL = "chaos", "dpo"
STAGES = ("download", "convert", "clean", "tokenize", "pretrain", "sft", "dpo")
DATA = STAGES[:4]
TRAININGS = STAGES[4:]
HUNG_SECONDS = 420
"""A command that follows a run for longer than this, and than five undisturbed runs, is taken for hung."""


@dataclass
class Ground(House):
    """A house for faults; `hub` must be open while it is used."""

    hub: CutHub = field(
        default_factory=lambda: CutHub("demo/skypile", world.files(World(size="small"), "skypile"))
    )
    clock: Path | None = None
    """File of libfaketime that the servers and all they start read their clock from."""
    runtime: dict[str, Any] = field(default_factory=dict)
    """More of `runtime` for the runs of this round."""
    undisturbed: float = 0.0
    """Seconds of the undisturbed run."""
    sessions: set[int] = field(default_factory=set)
    """Of the flow runs that were seen in this round."""
    log: Path = Path(os.devnull)
    """What the commands of this round say."""

    @property
    def state(self) -> State:
        return State(self.folder / "state")

    @property
    def reference(self) -> Path:
        return self.folder / "undisturbed"

    @property
    def environment(self) -> dict[str, str]:
        return {**super().environment, **faked(self.clock)}

    @property
    def overrides(self) -> dict[str, Any]:
        runtime = {
            "artifacts": str(self.artifacts),
            "watchdog_seconds": 25,
            "endpoints": {"huggingface": [self.hub.endpoint]},
            **self.runtime,
        }
        return {"sources": {"skypile": {"hub": "huggingface"}}, "runtime": runtime}

    def request(self, *arguments: str) -> list[str]:
        values = " ".join(f"{key}={json.dumps(value)}" for key, value in self.overrides.items())
        return ["--profile", PROFILE, "--until", UNTIL, "--set", values, *arguments]

    def say(self, command: list[str], **more: Any) -> int:
        """Run a command of the CLI; what it says goes to the log. Returns its exit code, -1 if it hung."""
        process = self.begin(command)
        return self.finish(process, **more)

    def begin(self, command: list[str]) -> subprocess.Popen[bytes]:
        """The same, without waiting for its end."""
        with open(self.log, "ab") as log:
            log.write(f"\n$ {' '.join(command)[:300]}\n".encode())
            log.flush()
            line = [sys.executable, "-m", "flows.cli", *command]
            return subprocess.Popen(
                line, cwd=ROOT, env=self.environment, stdin=subprocess.DEVNULL, stdout=log, stderr=log
            )

    def finish(self, process: subprocess.Popen[bytes], seconds: float = HUNG_SECONDS) -> int:
        try:
            return process.wait(max(seconds, 5 * self.undisturbed))
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
            return -1

    def run_id(self) -> str:
        """Of the flow run that the round's last `run` asked for; "" before it has."""
        found = re.findall(r"/runs/flow-run/([0-9a-f-]{36})", self.log.read_text("utf-8", "replace"))
        return found[-1] if found else ""

    # what is compared

    def digests(self) -> dict[str, str]:
        """Node -> content digest of its newest artifact, from the bytes on the disk."""
        config = profiles.load(PROFILE, self.overrides)
        wanted = {n: node for n, node in dag.build(config).items() if stage_of(n) in STAGES}
        found = newest(Store(self.artifacts), wanted)
        return {n: content_digest(list_files(found[n].path)) if n in found else "missing" for n in wanted}

    def latest(self, name: str) -> dict[str, Any]:
        return json.loads((self.artifacts / "latest" / PROFILE / name).read_text("utf-8"))

    def keep(self) -> None:
        """Take the artifacts as those of the undisturbed run."""
        shutil.rmtree(self.reference, ignore_errors=True)
        _copy(self.artifacts, self.reference)

    def seconds(self) -> dict[str, float]:
        """Stage -> seconds in the run that ended last."""
        return {name: stage["seconds"] for name, stage in self.stages().items()}

    def reset(self, without: tuple[str, ...]) -> None:
        """The undisturbed artifacts, but for those of some stages and the finished pieces of their work."""
        self.sessions.clear()
        for path in self.artifacts.iterdir() if self.artifacts.is_dir() else ():
            shutil.rmtree(path) if path.is_dir() else path.unlink()
        self.artifacts.mkdir(exist_ok=True)
        if len(without) == len(STAGES):
            return
        _copy(self.reference, self.artifacts)
        for stage in without:
            shutil.rmtree(self.artifacts / stage)

    # who is at work

    def mine(self) -> Iterator[psutil.Process]:
        """Processes that these servers or their flow runs have started, themselves included."""
        trainings = {process.pid for process in self.trainings()}
        for process in psutil.process_iter():
            if process.pid != os.getpid() and (process.pid in trainings or self._descends(process)):
                yield process

    def owns(self, process: psutil.Process) -> bool:
        return self._descends(process) or process.pid in {rank.pid for rank in self.trainings()}

    def _descends(self, process: psutil.Process) -> bool:
        """Whether it, or what is above it, has our state in its environment, or it is of a flow run's session. What
        trains sees little of the environment, and whoever started it may be gone."""
        with suppress(psutil.Error, ProcessLookupError):
            if os.getsid(process.pid) in self.sessions:
                return True
            for each in (process, *process.parents()):
                with suppress(psutil.AccessDenied):
                    if each.environ().get("STEEL_STATE") == str(self.state.folder):
                        return True
        return False

    def server(self, name: str) -> list[psutil.Process]:
        record = processes.load(self.state.processes).get(name)
        process = record.process() if record else None
        return [process] if process else []

    def flow(self) -> list[psutil.Process]:
        flows = list(processes.flow_runs(self.state.folder).values())
        for flow in flows:
            with suppress(ProcessLookupError, psutil.NoSuchProcess):
                self.sessions |= {os.getsid(each.pid) for each in (flow, *flow.children())}
        return flows

    def launchers(self) -> list[psutil.Process]:
        """torchrun, or the agent that forks ranks and the server above it; not the flow."""
        flow = {process.pid for process in self.flow()}
        found: dict[int, psutil.Process] = {}
        for rank in self.trainings():
            with suppress(psutil.NoSuchProcess):
                for above in rank.parents()[:2]:
                    if above.pid in flow:
                        break
                    if self.owns(above) and "prefect" not in " ".join(above.cmdline()):
                        found[above.pid] = above
        return list(found.values())

    def pool(self) -> list[psutil.Process]:
        """The flow's workers for data."""
        found = []
        for flow in self.flow():
            with suppress(psutil.NoSuchProcess):
                for child in flow.children(recursive=True):
                    if "multiprocessing.spawn" in " ".join(child.cmdline()) and self.owns(child):
                        found.append(child)
        return found

    def left_behind(self, seconds: float = 45) -> list[str]:
        """Processes of flow runs that outlive them, after some patience."""
        end = time.monotonic() + seconds
        while True:
            servers = [process for name in ("prefect", "mlflow", "worker") for process in self.server(name)]
            family = {
                process.pid for server in servers for process in [server, *server.children(recursive=True)]
            }
            left = [process for process in self.mine() if process.pid not in family]
            if not left and not self.flow():
                return []
            if time.monotonic() > end:
                return [
                    f"{process.pid} {' '.join(process.cmdline())[:80]}" for process in [*left, *self.flow()]
                ]
            time.sleep(1)

    def client_environment(self) -> dict[str, str]:
        """What a client of the servers needs."""
        ports = json.loads(self.state.ports.read_text("utf-8"))
        at = Addresses(ports["prefect"], ports["mlflow"])
        return clean_environment(self.state, at, auth_string(self.state))


def faked(clock: Path | None) -> dict[str, str]:
    """Variables of a program whose clock is read from this file."""
    if clock is None:
        return {}
    sleep = clock.with_name("sleep.so")
    if not sleep.exists():
        subprocess.run(
            [_compiler(), "-shared", "-fPIC", "-o", sleep, Path(__file__).with_name("sleep.c")], check=True
        )
    return {
        "LD_PRELOAD": f"{sleep}:{libfaketime()}",
        "FAKETIME_TIMESTAMP_FILE": str(clock),
        "FAKETIME_CACHE_DURATION": "1",
        "FAKETIME_DONT_FAKE_MONOTONIC": "1",
    }


def no_clock() -> str:
    """What is missing for a clock that can be moved, or ""."""
    if not libfaketime():
        return "libfaketime is not installed"
    return "" if _compiler() else "there is no C compiler"


def libfaketime() -> str:
    """Path of the library; "" where it is not installed (Debian: libfaketime)."""
    found = sorted(Path("/usr/lib").glob("*/faketime/libfaketimeMT.so.1"))
    return str(found[0]) if found else ""


def _compiler() -> str:
    return shutil.which("cc") or ""


def _copy(source: Path, target: Path) -> None:
    """With hard links between the files as they are."""
    target.mkdir(exist_ok=True)
    subprocess.run(["cp", "-a", f"{source}/.", str(target)], check=True)
