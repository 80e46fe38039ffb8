"""The parts of bench/gpu_check.sh, each a process with a time limit; one that fails does not stop the others.

    python -m bench.gpu_check [--dry-run] [--only PART ...] [--out FILE]

The last line is one JSON object: {"bench": "gpu_check", "device", "dry_run", "seconds", "parts": {part: {"ok", "seconds",
"limit", "error", "result"}}}. `result` is the last line of the part's own bench, or the counts of the tests. What a part
prints goes to the terminal while it runs.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import signal
import subprocess
import sys
import time
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from bench.common import ROOT, machine

GRACE = 10
"""Seconds between asking a part to end and ending it."""


@dataclass(frozen=True)
class Part:
    """One command and how long it may take, in seconds; `dry` are the arguments of the dry run."""

    name: str
    limit: float
    command: tuple[str, ...]
    dry: tuple[str, ...] = ("--quick",)


def _step(attention: str) -> tuple[str, ...]:
    return ("bench.train_step", "--attention", attention, "--kernels", "auto")


_TESTS = ("pytest", "-m", "gpu", "-q", "-p", "no:cacheprovider", "tests/kernels", "tests/model/steel")
_FLASH = ("--quick", "--attention", "auto")
"""No flash attention on a CPU."""
PARTS = (
    Part("tests", 80, _TESTS, ()),
    Part("kernels", 75, ("bench.kernels", "--no-compile")),
    Part("step", 110, ("bench.train_step", "--compile")),
    Part("step, sdpa", 35, _step("sdpa")),
    Part("step, flash_attention_2", 30, _step("flash_attention_2"), _FLASH),
    Part("step, flash_attention_4", 30, _step("flash_attention_4"), _FLASH),
    Part("table2", 100, ("bench.table2", "--model", "steel-1b")),
    Part("thirty steps", 140, ("bench.thirty_steps",)),
)
"""Ten minutes in all. The flash attentions end at once where they are not installed."""
DRY_LIMIT = 600
"""Seconds for every part of a dry run: the machine may be slow, and shared."""


def main() -> None:
    options = _options()
    begin = time.monotonic()
    chosen = [part for part in PARTS if part.name in options.only]
    if options.dry_run:
        chosen = [replace(part, limit=DRY_LIMIT) for part in chosen]
    results = {part.name: run(part, options.dry_run) for part in chosen}
    found = {
        "bench": "gpu_check",
        "device": device(),
        "dry_run": options.dry_run,
        "seconds": round(time.monotonic() - begin, 1),
        "parts": results,
        "machine": machine(),
    }
    for name, result in results.items():
        state = "ok" if result["ok"] else result["error"]
        print(f"{name:<26} {result['seconds']:7.1f} s  {state}", file=sys.stderr)
    line = json.dumps(found, ensure_ascii=False)
    if options.out:
        options.out.write_text(line + "\n", "utf-8")
    print(line, flush=True)


def run(part: Part, dry: bool) -> dict[str, Any]:
    """{"ok", "seconds", "limit", "error", "result"}; the process and all it started are gone afterwards."""
    command = [sys.executable, "-m", *part.command, *(part.dry if dry else ())]
    print(f"\n== {part.name}: {' '.join(command[1:])}", file=sys.stderr, flush=True)
    environment = {**os.environ, **({"CUDA_VISIBLE_DEVICES": ""} if dry else {})}
    begin = time.monotonic()
    process = subprocess.Popen(
        command, cwd=ROOT, env=environment, stdout=subprocess.PIPE, text=True, start_new_session=True
    )
    late = False
    try:
        output, _ = process.communicate(timeout=part.limit)
    except subprocess.TimeoutExpired:
        late = True
        output = _end(process)
    print(output, file=sys.stderr, flush=True)
    result = summary(part, output)
    error = ""
    if late:
        error = f"not ready after {part.limit:g} s"
    elif process.returncode and not (dry and part.name == "tests" and process.returncode == _NO_TESTS):
        error = f"exit code {process.returncode}"
    elif result is None:
        error = "no result"
    seconds = round(time.monotonic() - begin, 1)
    return {"ok": not error, "seconds": seconds, "limit": part.limit, "error": error, "result": result}


def summary(part: Part, output: str) -> dict[str, Any] | None:
    """A bench's last line; of pytest, how many tests passed, failed, were skipped. None where there is neither."""
    lines = output.strip().splitlines()
    if not lines:
        return None
    if part.command[0] == "pytest":
        counts = {name: int(number) for number, name in re.findall(r"(\d+) ([a-z]+)", lines[-1])}
        return {name: counts.get(name, 0) for name in ("passed", "failed", "skipped", "error")}
    try:
        result = json.loads(lines[-1])
    except json.JSONDecodeError:
        return None
    return result if isinstance(result, dict) else None


def device() -> str:
    """The GPU and the library, asked in a process of its own: this one holds no memory of it."""
    code = "from bench.device import where; print(where())"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False)
    return done.stdout.strip() or f"torch cannot be asked: {done.stderr.strip().splitlines()[-1:]}"


_NO_TESTS = 5
"""pytest's exit code where all tests were left out."""


def _end(process: subprocess.Popen) -> str:
    """End the part's whole session; what it had printed."""
    for number in (signal.SIGTERM, signal.SIGKILL):
        try:
            os.killpg(process.pid, number)
        except ProcessLookupError:
            break
        try:
            output, _ = process.communicate(timeout=GRACE)
            return output
        except subprocess.TimeoutExpired:
            continue
    output, _ = process.communicate()
    return output


def _options() -> argparse.Namespace:
    names = [part.name for part in PARTS]
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--dry-run", action="store_true", help="tiny sizes on the CPU")
    parser.add_argument(
        "--only", nargs="+", choices=names, default=names, metavar="PART", help=", ".join(names)
    )
    parser.add_argument("--out", type=Path, help="write the JSON here, too")
    return parser.parse_args()


if __name__ == "__main__":
    main()
