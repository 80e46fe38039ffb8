"""How many GPUs one core feeds, and what an index of half a billion blocks costs: `python -m bench.loader`.

Blocks of 2,048 tokens, about two documents each, read in random order from a warm page cache; `--data` takes a folder
with shards of your own. Contenders run in turns in one process, in CPU seconds; every one makes batches of 8 rows of
the same tokens:

    loader              what training uses: int32 tokens, document starts, one copy (labels and positions: on the GPU)
    loader, expanded    the same, with labels, positions and document numbers computed on this core, too
    memmap              torch's DataLoader over np.memmap, int64 inputs and labels, no documents
    datasets            Hugging Face datasets, ds[[indices]] in torch format, tokens only
    copy                the rows copied by NumPy out of one array: what memory alone allows

An H100 is taken to train 144,000 tokens a second. Start-up is measured in a fresh process on a list of shards of 65,536
blocks each (links to one small-block shard: their number is what counts, not their width), resumed in mid-epoch after
an append, by one of eight ranks with 1,024 blocks a step; its first batch opens over a hundred shards. The cost per block is
that of a rank that has met every shard; it holds the page faults of pages that this process has not touched yet.
"""

from __future__ import annotations

import json
import os
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np

from bench import common

BLOCK, MICRO, BATCH = 2048, 8, 64
H100_TOKENS_PER_S = 144_000
SHARD_ROWS = 65_536
SIZES = (5_000_000, 50_000_000, 500_000_000)
NARROW = 64
"""Tokens of a block in the simulated index."""


def main(arguments: list[str]) -> None:
    options = common.arguments(__doc__.partition("\n")[0]).parse_args(arguments)
    with tempfile.TemporaryDirectory() as folder:
        work = Path(folder)
        rows = 24_576 if options.quick else 65_536
        result = throughput(work, rows, options.data, 3 if options.quick else 7)
        result |= index(work, 1 if options.quick else 3)
    common.finish(result)


# ------------------------------------------------------------------------------- throughput
def throughput(work: Path, rows: int, data: Path | None, repeats: int) -> dict[str, Any]:
    """Blocks per CPU second of every contender."""
    shards = sorted(data.rglob("train-*.arrow")) if data else []
    shards = shards or [write(work / f"train-{n}.arrow", rows // 8, BLOCK, n) for n in range(8)]
    tokens = np.concatenate(list(matrices(shards)))
    contenders = {
        "loader": ours(shards, expanded=False),
        "loader, expanded": ours(shards, expanded=True),
        "memmap": memmap(tokens, work / "tokens.bin"),
        "datasets": datasets(tokens, work / "tokens.arrow"),
        "copy": copies(tokens),
    }
    for run in contenders.values():
        run()  # pages, imports
    found = common.interleaved({name: timed(run) for name, run in contenders.items()}, repeats)
    best = {name: median(speeds) for name, speeds in found.items()}
    h100s = {name: speed * tokens.shape[1] / H100_TOKENS_PER_S for name, speed in best.items()}
    print(f"{len(tokens):,} blocks of {tokens.shape[1] - 1:,} tokens, batches of {MICRO}\n")
    print(
        common.table(
            ["", "blocks/s a core", "GB/s", "H100s fed", "loader is × as fast"],
            [
                [name, common.spread(speeds, 0), f"{best[name] * tokens.shape[1] * 4 / 1e9:.2f}",
                 f"{h100s[name]:,.0f}", f"{best['loader'] / best[name]:.1f}"]
                for name, speeds in found.items()
            ],
        )
    )  # fmt: skip
    return {
        "h100s_fed_per_core": round(h100s["loader"]),
        "h100s_fed_per_core_expanded": round(h100s["loader, expanded"]),
        "blocks_per_s_core": round(best["loader"]),
        "share_of_copy": round(best["loader"] / best["copy"], 3),
        "ratio_vs_memmap": round(best["loader"] / best["memmap"], 2),
        "ratio_vs_datasets": round(best["loader"] / best["datasets"], 2),
    }


def timed(run: Callable[[], int]) -> Callable[[], float]:
    def blocks_per_second() -> float:
        begin = time.process_time()
        return run() / (time.process_time() - begin)

    return blocks_per_second


def ours(shards: list[Path], *, expanded: bool) -> Callable[[], int]:
    from model.training.loader import BlockLoader

    files = [{"path": path, "digest": str(path)} for path in shards]
    loader = BlockLoader(files, seed=1, batch_size=BATCH, micro_batch_size=MICRO)
    steps = min(loader.blocks_per_epoch, 24_576) // BATCH
    turn = iter(range(10**9))

    def run() -> int:
        first = next(turn) * steps
        for step in range(first, first + steps):
            for batch in loader.batch(step):
                if expanded:
                    _ = batch.input_ids, batch.labels, batch.position_ids, batch.doc_index
        return steps * BATCH

    return run


def memmap(tokens: np.ndarray, path: Path) -> Callable[[], int]:
    import torch
    from torch.utils.data import DataLoader, Dataset, RandomSampler

    tokens.tofile(path)

    class Rows(Dataset):
        def __init__(self) -> None:
            self.rows = np.memmap(path, np.uint32, "r").reshape(tokens.shape)

        def __len__(self) -> int:
            return len(self.rows)

        def __getitem__(self, i: int) -> tuple[torch.Tensor, torch.Tensor]:
            row = torch.from_numpy(self.rows[i].astype(np.int64))
            return row[:-1], row[1:]

    sampler = RandomSampler(Rows(), num_samples=4096, generator=torch.Generator().manual_seed(1))
    loader = DataLoader(Rows(), batch_size=MICRO, sampler=sampler)
    return lambda: sum(len(inputs) for inputs, _ in loader)


def datasets(tokens: np.ndarray, path: Path) -> Callable[[], int]:
    import pyarrow as pa
    from datasets import Dataset

    schema = pa.schema([("input_ids", pa.list_(pa.uint32()))])
    with pa.OSFile(str(path), "wb") as sink, pa.ipc.new_stream(sink, schema) as writer:
        for part in np.array_split(tokens, max(1, len(tokens) // 1024)):
            offsets = np.arange(len(part) + 1, dtype=np.int32) * tokens.shape[1]
            column = pa.ListArray.from_arrays(pa.array(offsets), pa.array(part.reshape(-1)))
            writer.write_batch(pa.record_batch([column], schema=schema))
    rows = Dataset.from_file(str(path)).with_format("torch")
    random = np.random.default_rng(1)

    def run() -> int:
        for _ in range(64):
            _ = rows[random.integers(0, len(tokens), MICRO).tolist()]["input_ids"]
        return 64 * MICRO

    return run


def copies(tokens: np.ndarray) -> Callable[[], int]:
    random = np.random.default_rng(1)

    def run() -> int:
        for _ in range(2048):
            _ = tokens.take(random.integers(0, len(tokens), MICRO), axis=0)
        return 2048 * MICRO

    return run


# ------------------------------------------------------------------------------------- index
def index(work: Path, repeats: int) -> dict[str, Any]:
    """Start-up, memory and cost per block, at three sizes of the corpus."""
    narrow = write(work / "narrow.arrow", SHARD_ROWS, NARROW, 0)
    for n in range(-(-SIZES[-1] // SHARD_ROWS)):
        (work / f"link-{n:05d}.arrow").symlink_to(narrow)
    found = common.interleaved(
        {
            blocks: lambda blocks=blocks: common.child("bench.loader", "probe", blocks, work)
            for blocks in SIZES
        },
        repeats,
    )
    middle = {
        blocks: {key: median(run[key] for run in runs) for key in runs[0]} for blocks, runs in found.items()
    }
    head = [
        "blocks",
        "shards",
        "resume s",
        "first batch s",
        "index MB",
        "… all shards open",
        "plan µs a block",
        "µs a block",
    ]
    keys = ["resume_s", "first_batch_s", "index_mb", "open_mb", "plan_us", "block_us"]
    print()
    print(
        common.table(
            head,
            [
                [f"{blocks:,}", f"{-(-blocks // SHARD_ROWS):,}", *(f"{m[key]:.3g}" for key in keys)]
                for blocks, m in middle.items()
            ],
        )
    )
    largest = middle[SIZES[-1]]
    return {
        "resume_seconds_500m_blocks": round(largest["resume_s"] + largest["first_batch_s"], 3),
        "index_mb_500m_blocks": round(largest["open_mb"], 1),
        "cost_growth": round(largest["block_us"] / middle[SIZES[0]]["block_us"], 2),
        "plan_cost_growth": round(largest["plan_us"] / middle[SIZES[0]]["plan_us"], 2),
    }


def probe(blocks: int, work: Path) -> dict[str, float]:
    """In a fresh process: resume on so many blocks, and read until every shard is open."""
    from model.training.loader import BlockLoader
    from model.training.plan import Plan
    from model.training.shards import ROWS_PER_BATCH

    shards = -(-blocks // SHARD_ROWS)
    files = [
        {"path": str(work / f"link-{n:05d}.arrow"), "rows": SHARD_ROWS, "digest": f"xxh3:{n:032x}"}
        for n in range(shards)
    ]
    settings = {"seed": 1, "batch_size": 1024, "world_size": 8}
    old = BlockLoader(files[: shards * 9 // 10], **settings)
    step = old.blocks_per_epoch // 4 // 1024
    state = json.dumps(BlockLoader(files, state=old.state(step), append=True, **settings).state(step))
    del old
    before, begin = anonymous_mb(), time.perf_counter()
    loader = BlockLoader(files, state=json.loads(state), **settings)
    resumed, index_mb = time.perf_counter(), anonymous_mb() - before
    loader.batch(step)
    first = time.perf_counter()
    for number in range(shards):  # as after the first million blocks
        shard = loader._rows.shard(number)
        for batch in range(SHARD_ROWS // ROWS_PER_BATCH):
            shard.places(batch)
    open_mb = anonymous_mb() - before
    begun, steps = time.process_time(), 192
    for one in range(step + 8, step + 8 + steps):
        loader.batch(one)
    read = time.process_time()
    plan = Plan(1, blocks)
    for n in range(16):
        plan.block(np.arange(8192) + n * 8192)
    return {
        "resume_s": resumed - begin,
        "first_batch_s": first - resumed,
        "index_mb": index_mb,
        "open_mb": open_mb,
        "block_us": (read - begun) / steps / 128 * 1e6,
        "plan_us": (time.process_time() - read) / 16 / 8192 * 1e6,
    }


def anonymous_mb() -> float:
    """Memory that is really this process's: pages of mapped files are the page cache's."""
    with open("/proc/self/smaps_rollup") as file:
        found = next(line for line in file if line.startswith("Anonymous:"))
    return int(found.split()[1]) / 1024


# -------------------------------------------------------------------------------------- data
def write(path: Path, rows: int, block: int, seed: int) -> Path:
    """A shard of random tokens, two documents a row on average."""
    from model.training.shards import Row, write_shard

    random = np.random.default_rng(seed)

    def made() -> Iterator[Row]:
        for _ in range(rows):
            starts = np.unique([0, *random.integers(1, block, random.poisson(1.0))]).astype(np.int32)
            ids = [os.urandom(16) for _ in starts]
            yield Row(random.integers(0, 151_646, block + 1, np.uint32), starts, ids, block + 1)

    write_shard(path, made(), block)
    return path


def matrices(shards: list[Path]) -> Iterator[np.ndarray]:
    from model.training.shards import ShardFile

    for path in shards:
        shard, row = ShardFile(path), 0
        while row < shard.rows:
            columns, _ = shard.locate(row)
            yield columns.input_ids
            row += len(columns.input_ids)


if __name__ == "__main__":
    if sys.argv[1:2] == ["probe"]:
        print(json.dumps(probe(int(sys.argv[2]), Path(sys.argv[3]))))
    else:
        main(sys.argv[1:])
