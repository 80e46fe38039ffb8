"""make chaos: a few rounds (STEEL_CHAOS_ROUNDS, 10 of them else) end with the bytes of the undisturbed run."""

from __future__ import annotations

import json
import os
import subprocess
import sys

import pytest

from flows.settings import ROOT

pytestmark = [pytest.mark.e2e, pytest.mark.slow]


def test_a_disturbed_pipeline_ends_with_the_bytes_of_an_undisturbed_one(tmp_path):
    rounds = int(os.environ.get("STEEL_CHAOS_ROUNDS", "10"))
    command = [
        sys.executable,
        "-m",
        "tests.support.chaos",
        "--rounds",
        str(rounds),
        "--folder",
        str(tmp_path),
    ]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    print(done.stdout, done.stderr)
    assert done.returncode == 0
    report = json.loads((tmp_path / "chaos.json").read_text("utf-8"))
    assert report["verdict"] == "equal"
    assert report["rounds"] == rounds
    assert sum(row["missed"] for row in report["faults"].values()) < rounds
    assert subprocess.run(["pgrep", "-f", str(tmp_path)], capture_output=True).stdout == b""
