"""What the benches share: time, order of runs, tables, and the JSON line at the end.

Machines that run benches are often shared, so time is CPU time of a process and its children, runs
of the contenders are interleaved, and medians are compared.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from statistics import median
from typing import Any

ROOT = Path(__file__).resolve().parents[1]


def arguments(about: str) -> argparse.ArgumentParser:
    """The options every bench has."""
    parser = argparse.ArgumentParser(description=about)
    parser.add_argument("--quick", action="store_true", help="five minutes at most on two cores")
    parser.add_argument("--data", type=Path, help="folder of sources (default: the demo's world)")
    parser.add_argument(
        "--tokenizer", type=Path, help="tokenizer folder (default: one trained as in the demo)"
    )
    return parser


def cpu_seconds() -> float:
    """CPU time so far of this process, its threads, and its children that have ended."""
    times = os.times()  # in hundredths of a second
    return time.process_time() + times.children_user + times.children_system


def child(module: str, *args: Any) -> dict[str, Any]:
    """Run `python -m module args` afresh; its last line is a JSON object."""
    command = [sys.executable, "-m", module, *map(str, args)]
    environment = {
        **os.environ,
        "OMP_NUM_THREADS": "1",
        "HF_HUB_OFFLINE": "1",
        "TOKENIZERS_PARALLELISM": "false",
    }
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(f"{' '.join(command)} failed:\n{done.stderr[-2000:]}")
    return json.loads(done.stdout.strip().splitlines()[-1])


def emptied(out: Path, mark: str) -> Path:
    """The folder, empty: what an earlier run left, known by its file `mark`, is removed; what is another's is refused."""
    if out.is_dir() and any(out.iterdir()) and not (out / mark).is_file():
        sys.exit(f"error: {out} holds something else: name a new folder")
    shutil.rmtree(out, ignore_errors=True)
    out.mkdir(parents=True)
    return out


def without_servers() -> dict[str, str]:
    """The environment of a shell that knows of no servers, whatever the caller's knows."""
    return {k: v for k, v in os.environ.items() if not k.startswith(("PREFECT_", "MLFLOW_", "STEEL_"))}


def with_state(folder: Path) -> dict[str, str]:
    """The same of a shell whose servers have `folder` for their state."""
    return {**without_servers(), "STEEL_STATE": str(folder)}


def interleaved(contenders: Mapping[str, Callable[[], Any]], repeats: int) -> dict[str, list[Any]]:
    """The results of every contender, run in turns so that a busy minute hits all of them. On stderr, how far it is."""
    results: dict[str, list[Any]] = {name: [] for name in contenders}
    for turn in range(repeats):
        for name, run in contenders.items():
            begun = time.monotonic()
            results[name].append(run())
            took = time.monotonic() - begun
            print(f"  turn {turn + 1} of {repeats}: {name}, {took:.1f} s", file=sys.stderr, flush=True)
    return results


def spread(values: Sequence[float], digits: int = 1) -> str:
    """Median, and the range it comes from."""
    low, high = min(values), max(values)
    return f"{median(values):.{digits}f} ({low:.{digits}f} to {high:.{digits}f})"


def table(head: Sequence[str], rows: Iterable[Sequence[Any]]) -> str:
    """Columns of text, the first to the left, the others to the right."""
    cells = [[str(cell) for cell in row] for row in (head, *rows)]
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    lines = []
    for row in cells:
        first, *others = (
            cell.ljust(w) if i == 0 else cell.rjust(w)
            for i, (cell, w) in enumerate(zip(row, widths, strict=True))
        )
        lines.append("  ".join([first, *others]).rstrip())
    lines.insert(1, "  ".join("-" * w for w in widths))
    return "\n".join(lines)


def machine() -> str:
    """The processor, cores, load, Python."""
    model = platform.processor() or platform.machine()
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.exists():
        names = [
            line.partition(":")[2].strip()
            for line in cpuinfo.read_text().splitlines()
            if "model name" in line
        ]
        model = names[0] if names else model
    load = os.getloadavg()[0]
    return f"{model}, {os.cpu_count()} cores, load {load:.1f}, Python {platform.python_version()}"


def finish(result: Mapping[str, Any]) -> None:
    """Print the machine and, as the last line, the result."""
    print(f"\nmachine: {machine()}")
    print(json.dumps({**result, "machine": machine()}, ensure_ascii=False), flush=True)


def unified_records(data: Path | None, work: Path, worlds: int = 1) -> dict[str, Path]:
    """Source -> folder of its unified records: real samples in `data`, or the demo's world.

    With `worlds` the demo's sources are told that many times over, each time with another seed.
    """
    from tasks import world
    from tasks.convert.job import Reading, Settings
    from tasks.convert.source import convert_source
    from tasks.settings.profiles import load

    run = load("samples" if data else "demo")
    found: dict[str, Path] = {}

    def convert(name: str, source: Any, raw: Path) -> None:
        out = found[name] = work / "records" / name
        out.mkdir(parents=True)
        settings = Settings(source=Reading.of(source), **run.convert.model_dump())
        convert_source(str(raw), str(out), name, settings)

    for name, source in run.using("pretrain").items():
        if data and (data / source.dataset).is_dir():
            convert(name, source, data / source.dataset)
        for number in range(0 if data else worlds):
            raw = work / "raw" / f"{name}-{number}"
            told = run.world.model_copy(update={"seed": run.world.seed + number})
            for path, content in world.files(told, name).items():
                (raw / path).parent.mkdir(parents=True, exist_ok=True)
                (raw / path).write_bytes(content)
            convert(f"{name}-{number}" if number else name, source, raw)
    if not found:
        raise SystemExit(f"{data} holds none of the sources {', '.join(run.using('pretrain'))}")
    return found
