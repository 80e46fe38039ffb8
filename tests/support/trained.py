"""A small run of the trained stages: its config, its nodes, and shards written on the spot."""

import numpy as np

from model.training.shards import Row, write_shard
from tasks.settings.config import SteelRun


def run_of(**more):
    sources = {
        "zhihu": {"dataset": "demo/zhihu", "reader": "zhihu"},
        "qa": {"dataset": "demo/qa", "reader": "alpaca", "use": "sft"},
        "code": {"dataset": "demo/code", "reader": "alpaca", "use": "sft"},
        "likes": {"dataset": "demo/likes", "reader": "dpo_sharegpt", "use": "preference"},
        "demo_exam": {"dataset": "demo/exam", "reader": "ceval", "use": "benchmark"},
    }
    base = {
        "profile": "test",
        "sources": sources,
        "sft": {
            "variants": {"exp1": {"mixture": {"qa": 1.0}}, "exp2": {"mixture": {"qa": 0.5, "code": 1.0}}},
            "max_tokens": 128,
            "packed_tokens": 128,
            "train": {"epochs": 2, "batch_size": 4},
        },
        "dpo": {"mixture": {"likes": 1.0}, "held_out": 10, "train": {"epochs": 1, "batch_size": 4}},
        "evaluate": {"benchmarks": ["demo_exam"]},
        "runtime": {"device": "cpu", "sft_nproc": 1},
    }
    return SteelRun.model_validate(base | more)


def no_drops(folder):
    """The folder, with a file that says that nothing was dropped."""
    (folder / "drops.jsonl").touch()
    return folder


def node_of(room, name, run=None):
    return next(n for n in room.nodes(run or run_of()) if n.name == name)


def shard(folder, name, rows, valid=None, metadata=None):
    folder.mkdir(parents=True, exist_ok=True)
    made = [
        Row(
            np.array(r, np.uint32),
            np.array(s, np.int32),
            [bytes([i]) * 16 for i in range(len(s))],
            valid or len(r),
        )
        for r, s in rows
    ]
    info = write_shard(folder / name, made, len(rows[0][0]) - 1, metadata)
    return {
        "file": name,
        "rows": info.rows,
        "tokens": info.tokens,
        "documents": info.documents,
        "digest": info.digest,
        "repeats": 1,
        "extra_rows": 0,
    }
