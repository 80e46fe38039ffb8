"""A tiny run of the engine: shards whose tokens can be predicted, a byte tokenizer, a two-layer model."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.numpy import load_file

from model.training.config import from_dict
from model.training.metrics import OF_THE_CLOCK
from model.training.pairs import Pair, write_pairs
from model.training.run import run
from model.training.shards import Row, write_shard
from model.training.stop import StopFlag

ROOT = Path(__file__).parents[2]
VOCAB, BLOCK = 272, 24
MODEL = {
    "vocab_size": VOCAB,
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_experts": 3,
    "initializer_range": 0.15,
}


def shard(path: Path, rows: int, *, seed: int = 0, masked: bool = False) -> dict[str, str]:
    """Rows of three documents that count upwards from a random token; every second token masked, if asked."""
    rng = np.random.default_rng(seed)
    made = []
    for r in range(rows):
        starts = np.sort(rng.choice(np.arange(4, BLOCK), 2, replace=False))
        tokens = np.concatenate(
            [rng.integers(0, 200) + np.arange(len(part)) for part in np.split(np.zeros(BLOCK + 1), starts)]
        )
        mask = (np.arange(BLOCK + 1) % 2).astype(np.uint8) if masked else None
        ids = [r.to_bytes(15, "big") + bytes([k]) for k in range(3)]
        valid = BLOCK + 1 if r else BLOCK - 3
        starts = np.concatenate([[0], starts[starts < valid]]).astype(np.int32)
        made.append(Row(tokens.astype(np.uint32), starts, ids[: len(starts)], valid, mask))
    write_shard(path, made, BLOCK, loss_mask=masked)
    return {"path": str(path), "source": path.stem}


def pairs(path: Path, count: int, seed: int = 0) -> dict[str, str]:
    """Prompts of any tokens; the better reply is made of even tokens, the worse one of odd ones."""
    rng = np.random.default_rng(seed)
    made = []
    for i in range(count):
        prompt = rng.integers(0, 200, rng.integers(1, 9)).tolist()
        chosen, rejected = ((rng.integers(0, 100, rng.integers(1, 12)) * 2 + odd).tolist() for odd in (0, 1))
        made.append(Pair(f"{seed}-{i}", prompt, chosen, rejected))
    write_pairs(path, made)
    return {"path": str(path)}


def settings(work: Path, **more: Any) -> dict[str, Any]:
    """A run of 6 steps of 4 blocks in FP32."""
    base = {
        "objective": "pretrain",
        "work_dir": str(work),
        "batch_size": 4,
        "steps": 6,
        "optim": {"lr": 3e-3, "warmup_steps": 2},
        "precision": "fp32",
        "device": "cpu",
        "log_every": 2,
        "save_every": 2,
    }
    if "init_from" not in more:
        base["model"] = MODEL
    return {**base, **more}


class StopAt(StopFlag):
    """A signal that arrives before the step with this index."""

    def __init__(self, step: int):
        self.asked, self.step = 0, step

    @property
    def requested(self) -> bool:
        self.asked += 1
        return self.asked > self.step


def engine(values: dict[str, Any], stop: StopFlag | None = None) -> int:
    """Run the engine in this process, alone."""
    return run(from_dict(values), stop or StopFlag())


def metrics(work: Path) -> list[dict[str, Any]]:
    """The lines, without what depends on the clock."""
    lines = [json.loads(line) for line in (work / "metrics.jsonl").read_text().splitlines()]
    return [{k: v for k, v in line.items() if k not in OF_THE_CLOCK} for line in lines]


def steps(work: Path) -> list[dict[str, Any]]:
    """The lines of steps; others say how the validation went, or look into the model."""
    return [line for line in metrics(work) if "loss" in line]


def weights(work: Path) -> dict[str, np.ndarray]:
    return load_file(work / "export" / "model.safetensors")


def wait_for(work: Path, step: int, saved: int | None = None) -> None:
    """Return when a training that runs elsewhere has written the metrics of a step, and the checkpoint of the step `saved`,
    which is written beside the steps; fails with its log after 120 s."""
    for _ in range(2400):
        path = work / "metrics.jsonl"
        there = saved is None or (work / f"checkpoints/step-{saved:06d}").exists()
        if there and path.exists() and any(line.get("step", 0) >= step for line in metrics(work)):
            return
        time.sleep(0.05)
    raise AssertionError((work / "log").read_text()[-3000:])


def byte_tokenizer(folder: Path) -> Path:
    """A folder with bench.byte_tokenizer."""
    from bench.byte_tokenizer import byte_tokenizer

    byte_tokenizer().save_pretrained(folder)
    return folder


def start(
    values: dict[str, Any], ranks: int, module: str = "model.training.run", restarts: int = 0
) -> subprocess.Popen:
    """The engine under torchrun, in the background; what it prints goes to <work_dir>/log."""
    work = Path(values["work_dir"])
    work.mkdir(parents=True, exist_ok=True)
    (work / "config.json").write_text(json.dumps(values))
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={ranks}"]
    launcher.append(f"--max-restarts={restarts}")
    with (work / "log").open("a") as log:
        return subprocess.Popen(
            [*launcher, "-m", module, str(work / "config.json")],
            cwd=ROOT, env={**os.environ, "OMP_NUM_THREADS": "1"}, stdout=log, stderr=log,
        )  # fmt: skip
