"""What servers and worker cost: a rerun through them, and their share of a core while they idle or are looked at.

The smoke pipeline runs once, followed as `make run` follows it; then it is run again and finds everything done; then
nothing happens for a minute. The servers are a set of their own, in a folder that goes away.
"""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil

from bench.common import ROOT, with_state

IDLE_SECONDS = 60
SETTLE_SECONDS = 20
"""After a run, before the servers count as idle."""


def measure(folder: Path, idle_seconds: float = IDLE_SECONDS) -> dict[str, float]:
    """Seconds, and shares of one core, by name."""
    house = _House(folder)
    try:
        house.steel("up")
        before, begun = house.cpu_seconds(), time.monotonic()
        follower = house.run()
        followed = (house.cpu_seconds() - before + follower) / (time.monotonic() - begun)
        begun = time.monotonic()
        house.run()
        rerun = time.monotonic() - begun
        in_flow = house.seconds_in_flow()
        time.sleep(SETTLE_SECONDS)
        before, begun = house.cpu_seconds(), time.monotonic()
        time.sleep(idle_seconds)
        idle = (house.cpu_seconds() - before) / (time.monotonic() - begun)
    finally:
        house.steel("down")
    return {
        "rerun_seconds_in_flow": in_flow,
        "rerun_seconds_via_worker": rerun,
        "followed_core_share": followed,
        "idle_core_share": idle,
    }


class _House:
    """Servers and artifacts in a folder."""

    def __init__(self, folder: Path):
        self._state, self._artifacts = folder / "state", folder / "pipeline"
        self._environment = with_state(self._state)

    def steel(self, *arguments: str) -> float:
        """`python -m flows.cli …`; the CPU seconds that it took itself."""
        before = os.times()
        command = [sys.executable, "-m", "flows.cli", *arguments]
        done = subprocess.run(
            command, cwd=ROOT, env=self._environment, capture_output=True, text=True, check=False
        )
        if done.returncode:
            raise RuntimeError(f"{' '.join(command)} failed:\n{done.stdout[-2000:]}{done.stderr[-2000:]}")
        after = os.times()
        return after.children_user + after.children_system - before.children_user - before.children_system

    def run(self) -> float:
        return self.steel("run", "--profile", "smoke", "--set", f"runtime.artifacts={self._artifacts}")

    def seconds_in_flow(self) -> float:
        """Of the run that ended last."""
        run: dict[str, Any] = json.loads((self._artifacts / "latest/smoke/run.json").read_text("utf-8"))
        return float(sum(stage["seconds"] for stage in run["stages"]))

    def cpu_seconds(self) -> float:
        """So far, of Prefect's server, MLflow and the worker; runs that the worker started are not in it."""
        return sum(sum(p.cpu_times()[:2]) for p in self._servers())

    def _servers(self) -> Iterator[psutil.Process]:
        records = json.loads((self._state / "processes.json").read_text("utf-8"))
        for record in records.values():
            process = psutil.Process(record["pid"])
            yield process
            for child in process.children(recursive=True):
                with contextlib.suppress(psutil.NoSuchProcess):
                    if (
                        "flow_run" not in " ".join(child.cmdline())
                        and "prefect.engine" not in child.cmdline()
                    ):
                        yield child
