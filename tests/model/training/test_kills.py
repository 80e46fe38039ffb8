"""Killed anywhere, a run goes on to the same bytes: weights, AdamW's moments, curve and export."""

import json
import os
import subprocess
import sys

import pytest

from tests.support import engine_helpers as tiny

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="the ranks are forked under Linux")


def trials(folder, count, ranks, seed):
    data = {
        "files": [tiny.shard(folder / "a.arrow", 40)],
        "val_files": [tiny.shard(folder / "v.arrow", 5, seed=1)],
    }
    more = {"steps": 8, "save_every": 2, "eval_every": 4, "keep_final": True, "watchdog_seconds": 300}
    settings = tiny.settings(
        folder, data=data, tokenizer_dir=str(tiny.byte_tokenizer(folder / "tokenizer")), **more
    )
    plan = {
        "settings": settings,
        "folder": str(folder / "runs"),
        "count": count,
        "ranks": ranks,
        "seed": seed,
    }
    (folder / "plan.json").write_text(json.dumps(plan))
    subprocess.run(
        [sys.executable, "-m", "tests.support.kill_trials", str(folder / "plan.json")],
        cwd=tiny.ROOT,
        env={**os.environ, "OMP_NUM_THREADS": "1", "JE_ARROW_MALLOC_CONF": "background_thread:false"},
        check=True,
    )
    return json.loads((folder / "runs/trials.json").read_text())


def held(made, killed):
    assert [t for t in made if t["code"] or t["differs"]] == []
    assert sum(t["killed"] for t in made) >= killed


def test_ten_kills(tmp_path):
    held(trials(tmp_path, 10, [1, 1, 1, 1, 2], seed=1), 10)


@pytest.mark.slow
def test_a_hundred_and_twenty_kills(tmp_path):
    made = trials(tmp_path, 120, [1, 2], seed=2)
    held(made, 100)
    assert (
        len({t["where"].partition(":")[0] for t in made if ":" in t["where"]}) == 3
    )  # save, export, metrics
