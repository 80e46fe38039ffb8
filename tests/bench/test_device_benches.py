"""The benches of kernels and training steps run on a CPU, and say what docs and readers rely on."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from model.training.parallel import compute_dtype

ROOT = Path(__file__).parents[2]
KEYS = {"ms", "peak_gb", "share_of_ceiling"}


def run(*arguments: str) -> dict:
    command = [sys.executable, "-m", *arguments, "--quick"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=True)
    return json.loads(done.stdout.splitlines()[-1])


@pytest.mark.slow
def test_kernels():
    result = run("bench.kernels", "--no-compile")
    assert "definitions" in result["steel_runs"]
    assert set(result["operators"]) == {
        "rms_norm_residual",
        "rotate",
        "combine_experts",
        "prefix_slots",
        "linear_cross_entropy",
        "attention",
    }
    for contenders in result["operators"].values():
        assert all(set(line) >= KEYS for line in contenders.values())
        assert all(line["ms"] > 0 for line in contenders.values())
    assert {"steel", "eager", "torch"} <= set(result["operators"]["linear_cross_entropy"])


@pytest.mark.slow
def test_train_step():
    steps = run("bench.train_step", "--ffn", "token", "dense")["steps"]
    assert list(steps) == ["token, kernels auto", "dense, kernels auto"]
    assert all(set(line) >= {*KEYS, "tokens_per_s", "mfu"} for line in steps.values())


@pytest.mark.slow
def test_table2():
    experiments = run("bench.table2")["experiments"]
    assert [e["experiment"] for e in experiments] == list(range(1, 9))
    assert all(set(e) >= {*KEYS, "tokens_per_s"} for e in experiments)
    switches = ("flash_attention", "fused_rope", "fused_rms_norm", "fused_loss", "parameters_dropped")
    assert len({tuple(e[s] for s in switches) for e in experiments}) == 8
    # keeping the gathered parameters costs their memory, on any device; one FP32 rank on a CPU is not sharded, gathers
    # nothing, and keeps nothing
    kept, dropped = experiments[3]["peak_gb"], experiments[0]["peak_gb"]
    if compute_dtype("auto", "cuda" if torch.cuda.is_available() else "cpu") == torch.float32:
        assert kept == dropped
    else:
        assert kept > dropped
