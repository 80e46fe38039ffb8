"""bench.clean on less than fifty documents a size: both sides keep the same, and the keys that others read."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from bench import common
from tests.support.samples import real_text


@pytest.mark.slow
def test_the_bench_of_cleaning(tmp_path):
    (tmp_path / "skypile").mkdir()
    texts = sorted({f"{real_text(seed)}{real_text(seed + 1000)}" for seed in range(360)})
    lines = (json.dumps({"text": text}, ensure_ascii=False) + "\n" for text in texts)
    (tmp_path / "skypile" / "a.jsonl").write_text("".join(lines), "utf-8")
    done = subprocess.run(
        [sys.executable, "-m", "bench.clean", "--quick", "--data", str(tmp_path)],
        cwd=Path(common.__file__).parents[1],
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    result = json.loads(done.stdout.splitlines()[-1])
    assert result["identical_kept_set"]
    for name in ("ratio_vs_stock", "mb_per_s_core", "cost_growth", "convert_mb_per_s_core"):
        assert result[name] > 0
    assert len(result["megabytes"]) == len(result["ratios_by_size"]) == 3
    assert set(result["startup_seconds"]) == {"steel", "stock"}


def test_a_folder_of_something_else_is_not_emptied(tmp_path):
    (tmp_path / "thesis.txt").write_text("years of work")
    with pytest.raises(SystemExit, match="holds something else"):
        common.emptied(tmp_path, "few.jsonl")
    assert (tmp_path / "thesis.txt").is_file()
    (tmp_path / "few.jsonl").touch()  # of an earlier run
    assert not list(common.emptied(tmp_path, "few.jsonl").iterdir())
