"""Thirty real steps of the engine, and the last fifteen of them once more from the checkpoint.

    python -m bench.thirty_steps [--quick]

A shard on disk, the engine's own loop, a checkpoint, an export. Started again in the same folder, the engine resumes from
the checkpoint of step 15 and makes the other fifteen as if it had been killed. On a GPU Steel-1B with 8 x 2,048 tokens a step; on a CPU
a small model. Reported: tokens per second and the share of a matrix product's measured speed in the last ten steps,
whether the resumed run has the same loss at every step and the same weights, the peak of memory beside what
model.training.memory expects, and the seconds of a start.
"""

from __future__ import annotations

import gc
import json
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import safe_open

from bench.common import arguments, child, finish
from bench.device import ceilings, where
from bench.train_step import SMALL
from model.training.config import from_dict, to_dict
from model.training.parallel import compute_dtype
from model.training.run import run
from model.training.shards import Row, write_shard
from model.training.stop import StopFlag

STEPS, HALF = 30, 15


def shard(path: Path, rows: int, length: int, classes: int) -> None:
    """Rows of four documents whose tokens count upwards: there is something to learn."""
    rng = np.random.default_rng(0)
    made = []
    for number in range(rows):
        starts = np.concatenate([[0], np.sort(rng.choice(np.arange(1, length), 3, replace=False))])
        parts = [
            (rng.integers(classes) + np.arange(n)) % classes for n in np.diff(np.append(starts, length + 1))
        ]
        ids = [number.to_bytes(15, "big") + bytes([k]) for k in range(4)]
        made.append(
            Row(np.concatenate(parts).astype(np.uint32), starts.astype(np.int32), ids, length + 1, None)
        )
    write_shard(path, made, length)


def train(config: dict[str, Any]) -> tuple[int, float]:
    """(exit code, seconds) of the engine in this process; the device's memory is free afterwards."""
    begin = time.perf_counter()
    code = run(from_dict(config), StopFlag())
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
    return code, time.perf_counter() - begin


def lines(work: Path) -> list[dict[str, Any]]:
    found = [json.loads(line) for line in (work / "metrics.jsonl").read_text("utf-8").splitlines()]
    return [line for line in found if "loss" in line]


def same_weights(one: Path, other: Path) -> bool:
    """Whether two exports hold the same bytes, tensor by tensor."""
    for file in sorted(one.glob("*.safetensors")):
        with safe_open(file, "pt") as a, safe_open(other / file.name, "pt") as b:
            if any(not torch.equal(a.get_tensor(k), b.get_tensor(k)) for k in a.keys()):  # noqa: SIM118
                return False
    return True


def expected(config: dict[str, Any], rows: int, length: int) -> float | None:
    """GB that model.training.memory expects of the step."""
    question = {
        "train": {**to_dict(from_dict(config)), "device": "auto"},
        "ranks": 1,
        "rows": [rows],
        "micro": rows,
        "length": length,
        "limit": 1e15,
    }
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "questions.json"
        file.write_text(json.dumps([question]), "utf-8")
        (answer,) = child("model.training.memory", file)
    return round(answer["peaks"][str(rows)]["total"] / 1e9, 3)


def main() -> None:
    options = arguments(__doc__).parse_args()
    on_gpu = torch.cuda.is_available()
    model = {"vocab_size": 151_936} if on_gpu else dict(SMALL)
    rows, length = (8, 2048) if on_gpu else (2, 64 if options.quick else 256)
    _, ceiling = ceilings(compute_dtype("auto", "cuda" if on_gpu else "cpu"))
    with tempfile.TemporaryDirectory() as folder:
        at = Path(folder)
        shard(at / "shard.arrow", STEPS * rows, length, model["vocab_size"])
        config = {
            "objective": "pretrain",
            "work_dir": str(at / "work"),
            "model": model,
            "data": {"files": [{"path": str(at / "shard.arrow")}]},
            "batch_size": rows,
            "steps": STEPS,
            "optim": {"lr": 3e-4, "warmup_steps": 5},
            "log_every": 1,
            "save_every": HALF,
            "eval_every": 0,
            "export_dtype": "bfloat16",
        }
        if on_gpu:
            torch.cuda.reset_peak_memory_stats()
        code, seconds = train(config)
        peak = torch.cuda.max_memory_allocated() / 1e9 if on_gpu else None
        first = lines(at / "work")
        (at / "work" / "export").rename(at / "export")
        resumed, resume_seconds = train(config)
        second = lines(at / "work")
        last = first[-10:]
        differences = [abs(a["loss"] - b["loss"]) for a, b in zip(first, second, strict=True)]
        result = {
            "bench": "thirty_steps",
            "device": where(),
            "exit_codes": [code, resumed],
            "steps_resumed": STEPS - HALF,
            "losses": [round(first[0]["loss"], 4), round(first[-1]["loss"], 4)],
            "resumed_same_losses": not any(differences),
            "largest_difference": max(differences),
            "resumed_same_weights": same_weights(at / "export", at / "work" / "export"),
            "tokens_per_s": round(sum(x["tokens_per_s"] for x in last) / len(last), 1),
            "share_of_ceiling": round(1e12 * sum(x["tflops"] for x in last) / len(last) / ceiling, 4),
            "mfu": last[-1].get("mfu"),
            "seconds": round(seconds, 1),
            "resume_seconds": round(resume_seconds, 1),
            "peak_gb": peak and round(peak, 3),
            "expected_gb": expected(config, rows, length),
        }
    finish(result)
    if any(result["exit_codes"]):
        sys.exit(1)


if __name__ == "__main__":
    main()
