"""What the stage contract costs, and whether it grows with the number of past runs.

    python -m bench.orchestration [--quick]

A graph of 45 nodes that do nothing is run once and then found done again and again, on an MLflow of its own (SQLite),
after 40 and after 10,000 (--quick: 2,000) past node runs. The past runs are copies of the first ones under other
fingerprints, written into the database directly: logging them one by one would take minutes.

Then the smoke pipeline through a Prefect server, an MLflow and a worker of its own (bench/through_worker.py): a rerun that finds
everything done, and the servers' share of a core. That part takes five to ten minutes, with --quick, too.
"""

from __future__ import annotations

import argparse
import json
import logging
import sqlite3
import statistics
import tempfile
import time
import uuid
from functools import partial
from pathlib import Path

from bench import through_worker
from tasks.settings.config import Runtime, SteelRun
from tasks.stage.node import Context, Node, Outcome
from tasks.stage.runner import Runner
from tasks.stage.store import Store
from tasks.stage.tracking import FINGERPRINT, RunTrack, Tracker

NODES, FEW, REPEATS, METRICS = 45, 40, 25, 10_000
log = logging.getLogger("bench")


def nothing(ctx: Context) -> Outcome:
    """A node's body."""
    (ctx.out / "file").write_text(ctx.name)
    return Outcome(headline="made")


def main() -> None:
    """Print a table and one line of JSON."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--quick", action="store_true", help="2,000 past runs instead of 10,000")
    many = 2_000 if parser.parse_args().quick else 10_000
    results: dict[str, float] = {}
    for part in (partial(measure, many=many), through_worker.measure):
        with tempfile.TemporaryDirectory() as folder:
            found = part(Path(folder))
        for name, value in found.items():  # the second part takes minutes
            print(f"{name:<28} {value:10,.3f}", flush=True)
        results |= found
    print(json.dumps({"bench": "orchestration", **results}))


def measure(folder: Path, many: int) -> dict[str, float]:
    """Seconds and rates by name."""
    database = folder / "mlflow.db"
    tracker = Tracker(f"sqlite:///{database}")
    store = Store(folder / "artifacts")
    begun = time.perf_counter()
    walk(store, tracker)
    first = time.perf_counter() - begun
    few = rerun(store, tracker)
    grow(database, many)
    grown = rerun(store, tracker)
    return {
        "nodes": NODES,
        "past_runs": many,
        "stage_overhead_seconds": first / NODES,
        "rerun_seconds_at_40": few,
        "rerun_seconds_grown": grown,
        "growth_at_10k" if many == 10_000 else f"growth_at_{many}": grown / few,
        "metrics_per_second": metrics(tracker),
    }


def walk(store: Store, tracker: Tracker) -> None:
    """One run over the graph, as a flow does it."""
    nodes = {name: Node(name, nothing, {"n": n}) for n in range(NODES) for name in [f"download:source{n}"]}
    config = SteelRun(profile="bench", runtime=Runtime(artifacts=store.root))
    runner = Runner(config, nodes, store, tracker, uuid.uuid4().hex)
    runner.begin()
    for node in nodes.values():
        resolution = runner.resolve(node)
        if resolution.artifact:
            runner.adopt(resolution)
        else:
            runner.run(resolution, log)
    runner.end("FINISHED")


def rerun(store: Store, tracker: Tracker) -> float:
    """Median seconds of a run that finds everything done."""
    seconds = []
    for _ in range(REPEATS):
        begun = time.perf_counter()
        walk(store, tracker)
        seconds.append(time.perf_counter() - begun)
    return statistics.median(seconds)


def grow(database: Path, many: int) -> None:
    """Copy node runs, with their tags, params and metrics, under new ids and fingerprints."""
    with sqlite3.connect(database) as connection:
        nodes = [
            row[0]
            for row in connection.execute(
                "SELECT run_uuid FROM tags WHERE key = 'steel.kind' AND value = 'node' ORDER BY run_uuid"
            )
        ]
        for table in ("runs", "tags", "params", "latest_metrics"):
            columns = [row[1] for row in connection.execute(f"PRAGMA table_info({table})")]
            for n in range(many):
                parent, child = nodes[n % len(nodes)], f"{n:032x}"
                chosen = ", ".join(f"'{child}'" if c == "run_uuid" else f'"{c}"' for c in columns)
                names = ", ".join(f'"{c}"' for c in columns)
                connection.execute(
                    f"INSERT INTO {table} ({names}) SELECT {chosen} FROM {table} WHERE run_uuid = ?",
                    (parent,),
                )
        connection.executemany(
            "UPDATE tags SET value = ? WHERE run_uuid = ? AND key = ?",
            ((f"{n:064x}", f"{n:032x}", FINGERPRINT) for n in range(many)),
        )


def metrics(tracker: Tracker) -> float:
    """Metrics a second through the backlog that trainings use."""
    run = tracker.start("node", "metrics", None, {})
    track = RunTrack(tracker, run)
    begun = time.perf_counter()
    for step in range(METRICS // 10):
        track.metrics({f"m{i}": float(i) for i in range(10)}, step=step)
    track.flush()
    return METRICS / (time.perf_counter() - begun)


if __name__ == "__main__":
    from bench import orchestration  # a node's body is known by its module's name, which is not __main__

    orchestration.main()
