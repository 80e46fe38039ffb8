"""The engine itself, which also writes down what each rank reads: `torchrun … -m tests.support.recording_engine CONFIG`.

One line a step in work_dir/consumed-<rank>.jsonl: {"start": which torchrun, "step", "rows": [digest of a row, …]}.
"""

import contextlib
import hashlib
import json
import os
import sys
from pathlib import Path

import numpy as np

from model.training import loop, run
from model.training.plan import Plan
from model.training.shards import ShardFile


@contextlib.contextmanager
def recording(work: Path):
    """Record what is read from the loader in this process."""
    read = loop.Prefetch.batch

    def batch(self, step):
        batches = read(self, step)
        rows = [_digest(row.numpy()) for b in batches for row in b.tokens]
        with (Path(work) / f"consumed-{os.environ.get('RANK', '0')}.jsonl").open("a") as log:
            start = os.environ.get("TORCHELASTIC_RUN_ID", "")
            log.write(json.dumps({"start": start, "step": step, "rows": rows}) + "\n")
        return batches

    loop.Prefetch.batch = batch
    try:
        yield
    finally:
        loop.Prefetch.batch = read


def consumed(*works: Path) -> dict[int, list[str]]:
    """Step -> rows of all ranks, as last trained; a work folder's lines replace those of the ones before it."""
    steps: dict[int, list[str]] = {}
    for work in works:
        starts: dict[
            str, dict[int, dict[int, list[str]]]
        ] = {}  # rank 0's file comes first and tells their order
        for path in sorted(Path(work).glob("consumed-*.jsonl")):
            for line in map(json.loads, path.read_text().splitlines()):
                by_rank = starts.setdefault(line["start"], {}).setdefault(line["step"], {})
                by_rank[int(path.stem.partition("-")[2])] = line["rows"]
        for found in starts.values():
            for step, by_rank in found.items():
                steps[step] = [row for rank in sorted(by_rank) for row in by_rank[rank]]
    return steps


def planned(eras: list[tuple[int, list[dict]]], seed: int, positions: range) -> list[str]:
    """The stream by definition: `eras` are (position, all files from there on), rows read one by one."""
    rows = [
        [
            _digest(np.asarray(shard.read(r).input_ids))
            for _ in range(f.get("repeats", 1))
            for r in range(shard.rows)
        ]
        for f in eras[-1][1]
        for shard in [ShardFile(f["path"])]
    ]
    sizes = np.cumsum([0, *map(len, rows)])
    plan = Plan(seed, int(sizes[len(eras[0][1])]))
    for position, files in eras[1:]:
        plan.append(int(sizes[len(files)]) - plan.blocks, position)
    flat = [row for file in rows for row in file]
    return [flat[block] for block in plan.block(np.arange(positions.start, positions.stop))]


def _digest(tokens: np.ndarray) -> str:
    return hashlib.sha256(tokens.astype("<u4").tobytes()).hexdigest()[:16]


if __name__ == "__main__":
    with recording(json.loads(Path(sys.argv[1]).read_text())["work_dir"]):
        sys.exit(run.main(sys.argv[1:]))
