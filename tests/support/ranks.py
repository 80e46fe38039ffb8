"""Several trainings, one after the other, on ranks that are forked from one process: torch is loaded once.

    python -m tests.support.ranks PLAN.json         {"ranks": 2, "runs": [{"values": {…}, "stop": 3}]}

`values`: the engine's configuration; `stop`: the step before which a signal comes. A run that ends leaves ranks.json in
its work folder: the seconds are not in it, the number of collectives is.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from collections import Counter
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch.utils._python_dispatch import TorchDispatchMode

from model.training.config import from_dict
from model.training.loop import train
from model.training.now import Now
from model.training.parallel import start
from model.training.stop import StopFlag
from model.training.watch import Watch
from tests.support.engine_helpers import ROOT, StopAt

COUNTS = "ranks.json"


def trained(folder: Path, ranks: int, runs: list[dict[str, Any]]) -> None:
    """Run them all; fails with the log of the ranks."""
    folder.mkdir(parents=True, exist_ok=True)
    plan, log = folder / "plan.json", folder / "log"
    plan.write_text(json.dumps({"ranks": ranks, "runs": runs}))
    with log.open("w") as sink:
        done = subprocess.run(
            [sys.executable, "-m", "tests.support.ranks", str(plan)],
            cwd=ROOT, env={**os.environ, "OMP_NUM_THREADS": "1"}, stdout=sink, stderr=sink, check=False, timeout=600,
        )  # fmt: skip
    assert done.returncode == 0, log.read_text()[-3000:]


class Collectives(TorchDispatchMode):
    """Counts what the ranks send each other."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: Counter[str] = Counter()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        if func.namespace == "c10d":
            self.seen[func.name().removeprefix("c10d::")] += 1
        return func(*args, **(kwargs or {}))


def main() -> int:
    plan = json.loads(Path(sys.argv[1]).read_text())
    children = []
    with tempfile.TemporaryDirectory() as folder:
        for rank in range(plan["ranks"]):
            if not (pid := os.fork()):
                code = 1
                try:
                    _rank(rank, plan, Path(folder) / "store")
                    code = 0
                finally:
                    sys.stderr.flush()
                    os._exit(code)
            children.append(pid)
        codes = [os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) for pid in children]
    return max(map(abs, codes))


def _rank(rank: int, plan: dict[str, Any], store: Path) -> None:
    import traceback

    try:
        dist.init_process_group("gloo", init_method=f"file://{store}", rank=rank, world_size=plan["ranks"])
        torch.use_deterministic_algorithms(True, warn_only=True)
        for each in plan["runs"]:
            config = from_dict(each["values"])
            Path(config.work_dir).mkdir(parents=True, exist_ok=True)
            stop = StopAt(each["stop"]) if "stop" in each else StopFlag()
            with Collectives() as counted, Now(Path(config.work_dir), active=rank == 0) as now:
                finished = train(config, start(config), stop, Watch(), now)
            if rank == 0 and finished:
                (Path(config.work_dir) / COUNTS).write_text(json.dumps(counted.seen))
    except BaseException:
        traceback.print_exc()
        raise


if __name__ == "__main__":
    sys.exit(main())
