"""Memory is bounded by a job's pieces in flight, not by the size of a file: measured in a process of its own."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tasks.settings.paths import ROOT

MEASURE = """
import resource, sys
from pathlib import Path
from tasks.convert.job import convert_file
import pyarrow.parquet
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
tally = convert_file(sys.argv[1], sys.argv[2], sys.argv[3])
print(tally["kept"], (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) // 1024)
"""
TEXT = "第一行，讲的是山和水。" * 90


def write(path: Path, megabytes: int) -> int:
    """A file of about that size; returns its number of records."""
    n = megabytes * 1_000_000 // 3000
    if path.suffix == ".parquet":  # one row group
        row = {
            "INSTRUCTION": pa.array([f"{i}" for i in range(n)]),
            "RESPONSE": pa.array([f"{i} {TEXT}" for i in range(n)]),
        }
        pq.write_table(pa.table(row), path, row_group_size=n, use_dictionary=False, compression="none")
        return n
    key = "completion" if path.suffix == ".json" else "text"
    with path.open("wb") as file:
        for i in range(n):
            file.write(b"[" if path.suffix == ".json" and not i else b"")
            file.write(json.dumps({key: f"{i} {TEXT}"}, ensure_ascii=False).encode())
            file.write(b"\n" if path.suffix == ".jsonl" else b"," if i + 1 < n else b"]")
    return n


def grown(tmp_path: Path, name: str, reader: str, megabytes: int) -> int:
    """MB by which converting a file of this size makes a process grow."""
    n = write(tmp_path / name, megabytes)
    out = tmp_path / f"{megabytes}"
    out.mkdir()
    command = [sys.executable, "-c", MEASURE, tmp_path / name, out, reader]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    kept, growth = map(int, done.stdout.split())
    assert kept == n
    return growth


def test_json_lines(tmp_path):
    assert grown(tmp_path, "a.jsonl", "skypile", 60) < 40


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "reader"), [("a.jsonl", "skypile"), ("w.json", "wikipedia_cn"), ("z.parquet", "zhihu")]
)
def test_ten_times_the_file_is_the_same_memory(tmp_path, name, reader):
    small, large = (grown(tmp_path, name, reader, size) for size in (40, 400))
    assert large < max(small, 20) + 60
