"""Work for the tests of partitions; worker processes import it from here."""

from __future__ import annotations

import sys
import time
from pathlib import Path

from tasks.work import partitions, pool
from tasks.work.told import Teller


def upper(out: Path, text: str, log: str) -> None:
    """Write a text in capitals; the log counts how often it was done."""
    with open(log, "a") as file:
        file.write(text + "\n")
    (out / "sub").mkdir()
    (out / "text.txt").write_text(text.upper())
    (out / "sub" / "length.txt").write_text(str(len(text)))


def upper_slowly(out: Path, text: str, log: str, seconds: float) -> None:
    """The same, with a long moment in which it is half done."""
    (out / "half").write_text(text)
    if text.startswith("slow"):
        time.sleep(seconds)
    (out / "half").unlink()
    upper(out, text, log)


def tell_half(out: Path, text: str, gate: str) -> None:
    """Say that half is done, and wait until somebody has heard it."""
    Teller(out / partitions.TOLD)(1, 2)
    while not Path(gate).exists():
        time.sleep(0.01)
    upper(out, text, gate)


def fail(out: Path, text: str) -> None:
    """Leave something half done."""
    (out / "half").write_text(text)
    raise ValueError(f"cannot do {text}")


def slow_jobs(log: str, seconds: float) -> list[partitions.Job]:
    """Two that are done at once, then two that take their time."""
    texts = ("a", "b", "slow c", "slow d")
    return [partitions.Job(partitions.key(upper_slowly, t), upper_slowly, (t, log, seconds)) for t in texts]


def main() -> None:
    """What the test kills: python -c "…main()" ROOT LOG."""
    pool.configure(2)
    partitions.run(Path(sys.argv[1]), slow_jobs(sys.argv[2], 600.0))


def where(out: Path, text: str) -> None:
    """Which process of which Ray node this is, after long enough that one alone cannot do it all."""
    import ray

    time.sleep(1.0)
    (out / "text.txt").write_text(text)
    (out / "where.txt").write_text(ray.get_runtime_context().get_node_id())
