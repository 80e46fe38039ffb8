"""Trainings that are killed, resumed, and held against one that was not: `python -m tests.support.kill_trials PLAN.json`.

The engine is loaded once and its ranks are forked (model.training.agent), so that a trial costs a second or two. PLAN:

    settings   of the engine, without work_dir
    folder     for the trials
    count      trials; of those every second kills at a line, the others at a moment
    ranks      numbers of ranks, taken in turn
    seed       of which rank is killed, where and when

A line is one that the undisturbed run has executed in the modules of WHERE, by any of its threads. A moment is a number
of CPU seconds of the rank: the kernel ends it there (SIGPROF with its default action), in whatever it is doing, however
busy the machine is. The result is folder/trials.json, a list of Trial.
"""

from __future__ import annotations

import collections
import dataclasses
import json
import os
import random
import shutil
import signal
import sys
import threading
import time
from pathlib import Path
from typing import Any

from model.training import agent, checkpoint, export, metrics, run
from model.training.forkserver import refuse_threads

WHERE = {module.__file__: module.__name__.rpartition(".")[2] for module in (checkpoint, export, metrics)}


@dataclasses.dataclass
class Trial:
    """One kill and what came of it."""

    ranks: int
    rank: int
    """The one that is killed."""
    where: str
    """`module:line, n`: when it is about to run that line for the n-th time; or CPU seconds."""
    in_job: bool
    """Started again by its agent, not by a later call."""
    killed: bool = False
    code: int = -1
    """Of the run that was to end well."""
    differs: str = ""
    """What is not as in the undisturbed run."""


def main(arguments: list[str]) -> int:
    plan = json.loads(Path(arguments[0]).read_text())
    folder = Path(plan["folder"])
    undisturbed = {
        ranks: _undisturbed(folder / f"plain-{ranks}", plan["settings"], ranks)
        for ranks in sorted(set(plan["ranks"]))
    }
    chance, trials = random.Random(plan["seed"]), []
    for number in range(plan["count"]):
        ranks = plan["ranks"][number % len(plan["ranks"])]
        rank = chance.randrange(ranks)
        lines, seconds = undisturbed[ranks][rank]
        where, nth = chance.choice(sorted(lines.items()))
        text = f"{where}, {chance.randint(1, min(nth, 3))}"
        if number // len(plan["ranks"]) % 2:
            text = f"{chance.uniform(0.0, seconds):.3f}"
        trial = Trial(ranks, rank, text, in_job=chance.random() < 0.5)
        _try(trial, folder / f"trial-{number}", folder / f"plain-{ranks}", plan["settings"])
        trials.append(dataclasses.asdict(trial))
        (folder / "trials.json").write_text(json.dumps(trials, indent=1))
    return 0


def _try(trial: Trial, work: Path, plain: Path, settings: dict[str, Any]) -> None:
    config = _config(work, settings)
    marker = work / "killed"

    def dying(rank: int) -> int:
        if rank == trial.rank and not marker.exists():
            _kill_at(trial.where, marker)
        return run.main([str(config)])

    trial.code = _run(dying, trial.ranks, work, restarts=int(trial.in_job))
    trial.killed = marker.exists()
    if trial.code:
        trial.code = _run(lambda rank: run.main([str(config)]), trial.ranks, work)
    trial.differs = _difference(work, plain)
    if not trial.differs:
        shutil.rmtree(work)


def _kill_at(where: str, marker: Path) -> None:
    """Have this process end there, and `marker` say that it did."""
    if ":" not in where:
        marker.touch()  # nothing can be written at that moment
        signal.signal(signal.SIGPROF, signal.SIG_DFL)
        signal.setitimer(signal.ITIMER_PROF, max(0.001, float(where)))
        return
    line, nth = where.split(", ")
    left = [int(nth)]

    def tracer(file: str, number: int) -> None:
        if f"{WHERE[file]}:{number}" == line:
            left[0] -= 1
            if not left[0]:
                marker.touch()
                os.kill(os.getpid(), signal.SIGKILL)

    _trace(tracer)


def _trace(seen: Any) -> None:
    """Call `seen(file, line)` before each line of the modules of WHERE, in every thread."""

    def local(frame: Any, event: str, _: Any) -> Any:
        if event == "line":
            seen(frame.f_code.co_filename, frame.f_lineno)
        return local

    def calls(frame: Any, event: str, _: Any) -> Any:
        return local if frame.f_code.co_filename in WHERE else None

    threading.settrace(calls)
    sys.settrace(calls)


def _undisturbed(work: Path, settings: dict[str, Any], ranks: int) -> list[tuple[dict[str, int], float]]:
    """For each rank: line -> how often it ran, and CPU seconds."""
    config = _config(work, settings)

    def recorded(rank: int) -> int:
        begin, lines = time.process_time(), collections.Counter[str]()
        _trace(lambda file, number: lines.update([f"{WHERE[file]}:{number}"]))
        code = run.main([str(config)])
        (work / f"lines-{rank}.json").write_text(json.dumps([lines, time.process_time() - begin]))
        return code

    code = _run(recorded, ranks, work)
    if code:
        raise RuntimeError((work / "log").read_text())
    return [json.loads((work / f"lines-{rank}.json").read_text()) for rank in range(ranks)]


def _run(entry: Any, ranks: int, work: Path, restarts: int = 0) -> int:
    """The ranks write to work/log."""

    def logged(rank: int) -> int:
        with open(work / "log", "ab") as log:
            for stream in (1, 2):
                os.dup2(log.fileno(), stream)
        return entry(rank)

    refuse_threads()
    return agent.run(logged, ranks, restarts, grace=60)


def _config(work: Path, settings: dict[str, Any]) -> Path:
    work.mkdir(parents=True)
    (work / "config.json").write_text(json.dumps({**settings, "work_dir": str(work)}))
    return work / "config.json"


def _difference(work: Path, plain: Path) -> str:
    """What differs in the export, the metrics, or the last checkpoint; empty where nothing does."""
    ours, theirs = (
        {path.name: path.read_bytes() for path in (w / "export").glob("*")} for w in (work, plain)
    )
    names = [f"export/{name}" for name in sorted({*ours, *theirs}) if ours.get(name) != theirs.get(name)]
    if _lines(work) != _lines(plain):
        names.append("metrics.jsonl")
    if _last(work) != _last(plain):
        names.append("the last checkpoint")
    return ", ".join(names)


def _lines(work: Path) -> list[dict[str, Any]]:
    path = work / "metrics.jsonl"
    text = path.read_text() if path.exists() else ""
    return [
        {k: v for k, v in json.loads(line).items() if k not in metrics.OF_THE_CLOCK}
        for line in text.splitlines()
    ]


def _last(work: Path) -> dict[str, Any] | None:
    """Weights, moments (by the hashes of their files) and numbers of the newest checkpoint."""
    paths = sorted((work / "checkpoints").glob("step-*/state.json"))
    if not paths:
        return None
    state = json.loads(paths[-1].read_text())
    state.pop("digest")
    state["config"] = {k: v for k, v in state["config"].items() if k != "work_dir"}
    state["files"] = {k: v for k, v in state["files"].items() if k != ".metadata"}  # lists in no order
    return state


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
