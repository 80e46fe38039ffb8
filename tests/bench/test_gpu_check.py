"""bench/gpu_check.sh: parts with limits, one JSON, and no part that stops the others."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest

from bench import gpu_check
from bench.gpu_check import PARTS, Part

ROOT = Path(__file__).parents[2]
KEYS = {"bench", "device", "dry_run", "seconds", "parts", "machine"}
PART_KEYS = {"ok", "seconds", "limit", "error", "result"}


def script(*arguments: str) -> dict:
    command = [str(ROOT / "bench" / "gpu_check.sh"), *arguments]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHON": sys.executable}
    done = subprocess.run(command, cwd="/", env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads(done.stdout.splitlines()[-1])


def python(code: str, limit: float = 60) -> Part:
    """A part that runs some code, by the way that parts are run (-m)."""
    return Part("made", limit, ("timeit", "-n", "1", "-r", "1", code), ())


def test_all_parts_together_take_ten_minutes_at_most():
    assert sum(part.limit for part in PARTS) <= 600
    assert len({part.name for part in PARTS}) == len(PARTS)


def test_the_shortest_dry_run_prints_the_keys(tmp_path: Path):
    out = tmp_path / "result.json"
    result = script("--dry-run", "--only", "thirty steps", "--out", str(out))
    assert set(result) == KEYS
    assert json.loads(out.read_text()) == result
    assert result["dry_run"] is True
    assert all(set(part) == PART_KEYS for part in result["parts"].values())
    (thirty,) = result["parts"].values()
    assert thirty["ok"], thirty
    assert thirty["result"]["exit_codes"] == [0, 0]
    assert thirty["result"]["resumed_same_losses"]
    assert thirty["result"]["resumed_same_weights"]
    assert thirty["result"]["share_of_ceiling"] > 0
    assert thirty["result"]["expected_gb"] > 0


def test_a_part_that_fails_stops_no_other(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    last = python("print('{\"bench\": 1}', flush=True); import os; os._exit(0)")
    made = [
        replace(last, name="good"),
        replace(python("import os; os._exit(1)"), name="bad"),
        replace(last, name="last"),
    ]
    monkeypatch.setattr(gpu_check, "PARTS", made)
    monkeypatch.setattr(gpu_check, "device", lambda: "none")
    monkeypatch.setattr(sys, "argv", ["gpu_check", "--dry-run"])
    gpu_check.main()
    parts = json.loads(capsys.readouterr().out.splitlines()[-1])["parts"]
    assert {name: part["ok"] for name, part in parts.items()} == {"good": True, "bad": False, "last": True}


@pytest.mark.slow
def test_a_whole_dry_run():
    result = script("--dry-run")
    assert list(result["parts"]) == [part.name for part in PARTS]
    assert not {name: part["error"] for name, part in result["parts"].items() if not part["ok"]}
    assert result["parts"]["tests"]["result"]["skipped"] > 0


@pytest.mark.parametrize(
    ("code", "error"),
    [
        ("print('{\"bench\": 1}', flush=True); import os; os._exit(0)", ""),
        ("import os; os._exit(3)", "exit code 3"),
        ("print('nothing', flush=True); import os; os._exit(0)", "no result"),
        ("import os; os._exit(0)", "no result"),
        ("import os; os.kill(os.getpid(), 9)", "exit code -9"),
    ],
)
def test_a_part_ends_as_its_process_does(code: str, error: str):
    found = gpu_check.run(python(code), dry=True)
    assert found["error"] == error
    assert found["ok"] == (not error)


def test_a_part_that_takes_too_long_is_ended_with_all_that_it_started(tmp_path: Path):
    pid = tmp_path / "pid"
    code = (
        "import subprocess, sys; "
        "child = subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(600)']); "
        f"open({str(pid)!r}, 'w').write(str(child.pid)); child.wait()"
    )
    begin = time.monotonic()
    found = gpu_check.run(python(code, limit=5), dry=True)
    assert found["error"] == "not ready after 5 s"
    assert time.monotonic() - begin < 25
    state = Path(f"/proc/{pid.read_text()}/stat")
    for _ in range(100):  # the kernel takes a moment on a busy machine
        if not state.exists() or state.read_text().split()[2] == "Z":
            return
        time.sleep(0.1)
    raise AssertionError("its child runs on")
