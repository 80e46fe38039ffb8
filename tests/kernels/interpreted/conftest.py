"""The tests of this folder run in a process of their own with TRITON_INTERPRET=1, one for all those selected of a file.

Triton reads the variable when it is imported and whenever a kernel is defined, so it cannot be switched on inside a
process that other tests share. Here the outcome of each test is that of its namesake in the child process.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

CHILD = os.environ.get("TRITON_INTERPRET") == "1"
REPORT = "STEEL_INTERPRETED_REPORT"
_outcomes: dict[str, tuple[str, str]] = {}


def pytest_pyfunc_call(pyfuncitem: pytest.Function) -> bool | None:
    if CHILD:
        return None
    if pyfuncitem.nodeid not in _outcomes:
        _outcomes.update(_run([i.nodeid for i in pyfuncitem.session.items if i.path == pyfuncitem.path]))
    outcome, why = _outcomes[pyfuncitem.nodeid]
    if outcome == "skipped":
        pytest.skip(why)
    if outcome != "passed":
        pytest.fail(why, pytrace=False)
    return True


def pytest_runtest_logreport(report: pytest.TestReport) -> None:
    """In the child: one line a test that has ended, or failed before it began."""
    if CHILD and REPORT in os.environ and (report.when == "call" or report.outcome != "passed"):
        with open(os.environ[REPORT], "a", encoding="utf-8") as file:
            file.write(json.dumps([report.nodeid, report.outcome, report.longreprtext]) + "\n")


def _run(tests: list[str]) -> dict[str, tuple[str, str]]:
    with tempfile.TemporaryDirectory() as folder:
        report = Path(folder) / "outcomes.jsonl"
        environment = {k: v for k, v in os.environ.items() if not k.startswith("PYTEST_XDIST")}
        environment |= {"TRITON_INTERPRET": "1", REPORT: str(report), "OMP_NUM_THREADS": "1"}
        command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-m", "", *tests]
        done = subprocess.run(
            command,
            cwd=Path(__file__).parents[3],
            env=environment,
            capture_output=True,
            text=True,
            check=False,
        )
        lines = report.read_text("utf-8").splitlines() if report.exists() else []
    outcomes = {test: (outcome, why) for test, outcome, why in map(json.loads, lines)}
    for test in tests:  # a crash takes the rest along: say what it printed
        outcomes.setdefault(
            test, ("failed", f"exit {done.returncode}\n{done.stdout[-2000:]}\n{done.stderr[-2000:]}")
        )
    return outcomes
