"""A clone's servers and artifacts in a folder of their own, driven as a user drives them."""

from __future__ import annotations

import contextlib
import json
import re
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil

from bench.common import with_state
from flows.settings import ROOT

FORKED = "model.training.forkserver"


@dataclass
class House:
    """A clone's servers and artifacts, as seen from a shell."""

    folder: Path

    @property
    def artifacts(self) -> Path:
        return self.folder / "artifacts"

    @property
    def environment(self) -> dict[str, str]:
        return with_state(self.folder / "state")

    @property
    def overrides(self) -> dict[str, Any]:
        return {"runtime": {"artifacts": str(self.artifacts)}}

    def steel(self, *arguments: str, **more: Any) -> subprocess.CompletedProcess[str]:
        """`python -m flows.cli …`, which is what the Makefile calls."""
        command = [sys.executable, "-m", "flows.cli", *arguments]
        return subprocess.run(command, cwd=ROOT, env=self.environment, capture_output=True, text=True, **more)

    def run(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        """`make run PROFILE=smoke …`"""
        done = self.steel("run", *self.request(*arguments), timeout=900)
        print(done.stdout, done.stderr)
        return done

    def request(self, *arguments: str) -> list[str]:
        return ["--profile", "smoke", "--set", f"runtime.artifacts={self.artifacts}", *arguments]

    def shell(self, command: str) -> subprocess.CompletedProcess[str]:
        """A line typed into a new shell with .venv activated."""
        programs = Path(sys.executable).parent
        line = f'. "$STEEL_STATE/env"; export PATH={programs}:$PATH; {command}'
        environment = {**self.environment, "COLUMNS": "400"}
        done = subprocess.run(
            ["bash", "-c", line], cwd=ROOT, env=environment, capture_output=True, text=True, timeout=600
        )
        print(done.stdout, done.stderr)
        return done

    def latest(self, name: str) -> dict[str, Any]:
        return json.loads((self.artifacts / "latest" / "smoke" / name).read_text("utf-8"))

    def stages(self) -> dict[str, dict[str, Any]]:
        """The stages of the run that ended last."""
        return {stage["name"]: stage for stage in self.latest("run.json")["stages"]}

    def states(self) -> dict[str, str]:
        return {name: stage["state"] for name, stage in self.stages().items()}

    def nodes(self, stage: str) -> dict[str, dict[str, Any]]:
        return {node["name"]: node for node in self.stages()[stage]["nodes"]}

    def folder_of(self, stage: str, unit: str) -> Path:
        """The newest finished artifact of a node."""
        found = [
            p for p in (self.artifacts / stage).glob(f"{unit}-*") if re.fullmatch(r".*-[0-9a-f]{16}", p.name)
        ]
        return max(found, key=lambda p: p.stat().st_mtime)

    def ranks(self) -> list[psutil.Process]:
        """The training processes that write into this house; at least one."""
        found = self.trainings()
        assert found
        return found

    def trainings(self) -> list[psutil.Process]:
        """The same; none is fine. Under torchrun a rank's command names its folder; a forked one has it open, and is
        the child of an agent, which is the fork server's."""
        found = []
        for process in psutil.process_iter(["cmdline"]):
            line = " ".join(process.info["cmdline"] or [])
            with contextlib.suppress(psutil.NoSuchProcess, psutil.AccessDenied):
                if FORKED in line:
                    above = process.parents()[:2]
                    forked = len(above) == 2 and all(FORKED in " ".join(each.cmdline()) for each in above)
                    mine = forked and any(str(self.artifacts) in file.path for file in process.open_files())
                else:
                    started = "model.training.run" in line and "distributed.run" not in line
                    mine = started and str(self.artifacts) in line
                if mine:
                    found.append(process)
        return found


def until(condition: Any, seconds: float) -> None:
    """Wait for something to become true."""
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "it did not happen in time"
        time.sleep(0.1)
