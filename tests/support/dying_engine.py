"""The engine itself, whose ranks die on request: `torchrun … -m tests.support.dying_engine CONFIG`.

work_dir/deaths.json lists for every attempt {"rank", "step", "how"}; `how` is one of HOW, and happens when that rank
reads that step's batch.
"""

import json
import os
import signal
import sys
import time
from pathlib import Path

from model.training import loop, run
from model.training.loader import DataError


def refuse():
    raise DataError("a file that cannot be read")


def fail():
    raise RuntimeError("a fault")


HOW = {
    "kill": lambda: os.kill(os.getpid(), signal.SIGKILL),
    "terminate": lambda: os.kill(os.getpid(), signal.SIGTERM),
    "refuse": refuse,
    "fail": fail,
    "hang": lambda: time.sleep(600),
    "freeze": lambda: os.kill(os.getpid(), signal.SIGSTOP),
}


def dying(work: Path) -> None:
    """Have this process die as its attempt and rank are to."""
    deaths = json.loads((work / "deaths.json").read_text())
    attempt, rank = int(os.environ.get("TORCHELASTIC_RESTART_COUNT", "0")), int(os.environ["RANK"])
    death = deaths[attempt] if attempt < len(deaths) else {"rank": -1}
    read = loop.Prefetch.batch

    def batch(self, step):
        if rank == death["rank"] and step == death["step"]:
            HOW[death["how"]]()
        return read(self, step)

    loop.Prefetch.batch = batch


if __name__ == "__main__":
    dying(Path(json.loads(Path(sys.argv[1]).read_text())["work_dir"]))
    sys.exit(run.main(sys.argv[1:]))
