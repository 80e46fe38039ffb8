"""bench.tokenize measures what it says: same shards, same ids, the keys that others read."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from bench import common


def test_a_table_and_a_spread():
    assert common.table(("a", "bb"), [("x", 1), ("long", 22)]).splitlines() == [
        "a     bb",
        "----  --",
        "x      1",
        "long  22",
    ]
    assert common.spread([3, 1, 2]) == "2.0 (1.0 to 3.0)"
    order = []
    runs = {name: (lambda name=name: order.append(name) or len(order)) for name in "ab"}
    assert common.interleaved(runs, 2) == {"a": [1, 3], "b": [2, 4]}
    assert order == [*"abab"]


@pytest.mark.slow
def test_the_bench_of_tokenization():
    done = subprocess.run(
        [sys.executable, "-m", "bench.tokenize", "--quick"],
        cwd=Path(common.__file__).parents[1],
        capture_output=True,
        text=True,
        check=True,
    )
    result = json.loads(done.stdout.splitlines()[-1])
    assert result["identical_ids"]
    assert result["ratio_vs_datasets_map"] > 4  # far below what is measured: the machine may be busy
    assert result["ratio_vs_tiktoken"] > 1.2
    assert result["end_to_end_mb_per_s_core"] > 0
    assert sum(result["steps"].values()) == pytest.approx(1, abs=0.01)
