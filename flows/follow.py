"""Follow a flow run in the terminal: a line per stage, then a table and the addresses.

The servers are looked after meanwhile: a worker that died is started again, and a run whose process
is gone is marked Crashed, so that following always ends.
"""

from __future__ import annotations

import contextlib
import json
import shutil
import sys
import time
from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, TextIO
from unicodedata import east_asian_width
from uuid import UUID

from prefect.exceptions import ObjectNotFound

from flows import runs, servers
from flows.reporter import AWAY
from flows.runs import Reader, Snapshot, TaskLine
from flows.settings import ROOT, Addresses
from flows.spec import PIPELINE, stages
from tasks.settings.errors import one_line
from tasks.stage.names import stage_of

SHOWN = stages()
"""Task runs that are stages, in the order they are shown."""
TRAININGS = ("pretrain", "sft", "dpo", "rl")
POLL_SECONDS = 1.0
CALM_SECONDS = 5.0
"""Between two looks while no node begins or ends: as often as a training tells its steps. A look costs the server a
twentieth of a second and more."""
CARE_SECONDS = 10.0
TRIES = 30
"""In a row that the server may leave unanswered."""
MANY = 6
"""Nodes at work of which each has a line."""
QUIET_SECONDS = 30.0
"""Without a terminal, progress inside a stage is a line only this often."""


class Terminal:
    """Lines, and where the output is a terminal, some at the bottom that change in place."""

    def __init__(self, out: TextIO | None = None):
        self.out = out or sys.stdout
        self.live = self.out.isatty()
        self._shown = 0
        self._quiet = time.monotonic()

    def line(self, text: str) -> None:
        self._clear()
        print(text, file=self.out, flush=True)
        self._quiet = time.monotonic()

    def passing(self, *lines: str) -> None:
        """What will have changed in a second."""
        if self.live:
            self._clear()
            width = shutil.get_terminal_size().columns - 1
            self.out.write("\n".join(_cut(line, width) for line in lines))
            self.out.flush()
            self._shown = len(lines)
        elif lines and time.monotonic() - self._quiet > QUIET_SECONDS:
            for line in lines:
                self.line(line)

    def _clear(self) -> None:
        if self._shown:
            self.out.write("\r\x1b[2K" + "\x1b[1A\x1b[2K" * (self._shown - 1))
            self._shown = 0


def follow(run: UUID, at: Addresses, folder: Path, report: Path, terminal: Terminal | None = None) -> bool:
    """Follow to the end; True if the run ended well. `folder` is where the flow leaves its run.json."""
    terminal = terminal or Terminal()
    page = f"{at.prefect}/runs/flow-run/{run}"
    with Reader(run) as reader:
        last = _watch(reader, terminal)
        name = str(run)
        with contextlib.suppress(*AWAY):
            name = reader.flow_run().name
        record = _record(folder / "run.json", run)
        if not last.good:
            _show_failure(reader, last, terminal)
    terminal.line("")
    for line in table(record, last):
        terminal.line(line)
    terminal.line("")
    why = f" ({_short(cause(last.message))})" if last.message and not last.good else ""
    terminal.line(f"flow run {name}: {last.state}{why}")
    terminal.line(f"  Prefect  {page}")
    terminal.line(f"  MLflow   {record.get('mlflow_url') or at.mlflow}")
    if last.good and report.exists():
        terminal.line(f"  report   {report}")
    # a study's folder lies below its profile's, and its models are no run's
    if last.good and report.name == PIPELINE.page and _trains(record):
        terminal.line(
            f"  talk     make chat PROFILE={folder.name}, or with a page: make chat-web PROFILE={folder.name}"
        )
    if not last.good:
        terminal.line("What is finished is kept: the same command goes on where this stopped,")
        terminal.line(f"and so does `prefect flow-run retry {run}`.")
    return last.good


def _watch(reader: Reader, terminal: Terminal) -> Snapshot:
    begun = time.monotonic()
    printed: dict[str, str] = {}
    cared, said, trouble = time.monotonic(), "", 0
    states, changed = {}, begun
    while True:
        try:
            snapshot = reader.snapshot()
            if time.monotonic() - cared > CARE_SECONDS:
                cared = time.monotonic()
                _care(terminal)
            trouble = 0
        except ObjectNotFound as error:
            raise runs.RunError(
                "the flow run was deleted in Prefect; what it was training is stopped behind a checkpoint"
            ) from error
        except AWAY:
            trouble += 1
            if trouble > TRIES:
                raise
            _restart(terminal)
            time.sleep(POLL_SECONDS)
            continue
        waits = _waiting(snapshot, reader)
        if waits and waits != said:
            terminal.line(f"{_clock(begun)}  flow run: {waits}")
        said = waits or said
        _print_news(snapshot, printed, begun, terminal)
        if snapshot.done:
            return snapshot
        lines = [waits] if waits else _inside(snapshot, reader)
        terminal.passing(*(f"{_clock(begun)}  {line}" for line in lines))
        now = {name: task.state for name, task in {**snapshot.tasks, **snapshot.nodes}.items()}
        if now != states or not now:
            states, changed = now, time.monotonic()
        time.sleep(POLL_SECONDS if time.monotonic() - changed < CALM_SECONDS else CALM_SECONDS)


def _print_news(snapshot: Snapshot, printed: dict[str, str], begun: float, terminal: Terminal) -> None:
    """A line for each stage that began or ended, and for each node that did not end well."""
    for task in sorted(snapshot.tasks.values(), key=_order):
        stage = task.name in SHOWN
        if printed.get(task.name) == task.state or (not task.done and (printed.get(task.name) or not stage)):
            continue
        printed[task.name] = task.state
        if task.done and (stage or not task.good):
            took = f"{task.seconds:7.1f} s" if task.state != "Cached" else " " * 9
            what = _short(cause(task.message)) if task.state != "Cached" else ""
            terminal.line(f"{_clock(begun)}  {task.name:<22} {task.state:<10} {took}  {what}".rstrip())
        elif stage and task.state == "Running":
            terminal.passing(f"{_clock(begun)}  {task.name} …")


def _inside(snapshot: Snapshot, reader: Reader) -> list[str]:
    """What goes on in the stage that runs: a line for each of its nodes at work, the last one that it reported."""
    stage = next((t for t in snapshot.tasks.values() if t.name in SHOWN and not t.done), None)
    if stage is None:
        return []
    # the only node of a stage has the stage's name, and then one of the two task runs is hidden behind the other
    nodes = [t for t in snapshot.nodes.values() if stage_of(t.name) == stage.name]
    running = sorted((t for t in nodes if not t.done), key=lambda t: t.name)
    ended = len(nodes) - len(running)
    done = f"{ended} node{'s' * (ended > 1)} done" if ended else ""
    if not running:
        return [" · ".join(part for part in (stage.name, done) if part)]
    said: dict[str, str] = {}
    # a passing line is not worth a failure; the next poll notices a server that is gone
    with contextlib.suppress(*AWAY):
        said = reader.progress(running)
    lines = [f"{said.get(t.name, t.name)}{_since(t)}" for t in running[:MANY]]
    more = f"{len(running) - MANY} more at work" if len(running) > MANY else ""
    if done or more:
        lines.insert(0, " · ".join(part for part in (stage.name, done, more) if part))
    return lines


def _since(task: TaskLine) -> str:
    """How long a node has been at work."""
    if task.start is None:
        return ""
    seconds = max(0, int((datetime.now(UTC) - task.start).total_seconds()))
    return f", {seconds // 60}:{seconds % 60:02d}"


def _cut(text: str, width: int) -> str:
    """What fits into so many columns: a Chinese character takes two."""
    room = width
    for at, character in enumerate(text):
        room -= 2 if east_asian_width(character) in "WF" else 1
        if room < 0:
            return text[:at]
    return text


def _restart(terminal: Terminal) -> None:
    """Start what died again. A server that is still slow is asked again later."""
    with contextlib.suppress(*AWAY):
        if any(not service.running for service in servers.status(memory=False)):
            servers.up(terminal.line)


def _care(terminal: Terminal) -> None:
    """Restart what died; mark runs whose process is gone."""
    _restart(terminal)
    for name in runs.reap():
        terminal.line(f"the process of flow run {name} is gone: marked as Crashed")


def _show_failure(reader: Reader, last: Snapshot, terminal: Terminal) -> None:
    failed = [t for t in last.tasks.values() if t.done and not t.good]
    nodes = [t for t in failed if ":" in t.name] or failed
    terminal.line("")
    for task in nodes:
        terminal.line(f"--- {task.name}: {task.state}")
        for line in cause(task.message).splitlines()[:40]:
            terminal.line(f"    {line}")
    try:
        lines = [line for text in reader.logs(30) for line in condensed(text).splitlines()]
    except AWAY as error:
        lines = [f"Prefect's server does not give it: {one_line(error)}"]
    if lines:
        terminal.line("--- the end of the run's log")
        for line in lines[-40:]:
            terminal.line(f"    {line}")


def cause(message: str) -> str:
    """A state's message without the words that Prefect puts before the error's own."""
    for words in ("Task run encountered an exception ", "Flow run encountered an exception: "):
        message = message.removeprefix(words)
    return message.removeprefix("NodeError: ")


def condensed(message: str) -> str:
    """A log message with the frames of its traceback that lie outside this project left out."""
    kept, inside, ours = [], False, True
    for line in message.splitlines():
        if line.startswith("Traceback (most recent call last)"):
            inside = True
        elif inside and line.startswith("  File "):
            ours = f'"{ROOT}/' in line and "site-packages" not in line
        elif inside and not line.startswith(" "):
            inside, ours = False, True
        if not inside or (ours and line.startswith(" ")):
            kept.append(line)
    return "\n".join(kept)


def table(record: dict[str, Any], last: Snapshot) -> list[str]:
    """Stage, state, seconds, headline; from run.json, or from Prefect if the run left none."""
    rows = [
        (s["name"], s["state"], float(s.get("seconds") or 0.0), s.get("headline") or "")
        for s in record.get("stages", [])
    ]
    if not rows:
        tasks = [t for t in sorted(last.tasks.values(), key=_order) if t.name in SHOWN]
        rows = [
            (t.name, t.state, t.seconds, "" if t.state == "Cached" else _short(cause(t.message)))
            for t in tasks
        ]
    if not rows:
        return []
    total = sum(row[2] for row in rows)
    lines = [f"{'stage':<10} {'state':<10} {'seconds':>8}  headline"]
    lines += [f"{n:<10} {s:<10} {sec:>8.1f}  {_short(h)}".rstrip() for n, s, sec, h in rows]
    return [*lines, f"{'':<10} {'':<10} {total:>8.1f}"]


def _trains(record: Mapping[str, Any]) -> bool:
    return any(stage["name"] in TRAININGS for stage in record.get("stages", []))


def _record(path: Path, run: UUID) -> dict[str, Any]:
    """What the flow left of itself, if it is of this run."""
    try:
        record = json.loads(path.read_text("utf-8"))
    except (OSError, ValueError):
        return {}
    return record if record.get("flow_run_id") == str(run) else {}


def _order(task: TaskLine) -> tuple[int, str]:
    stage = stage_of(task.name)
    return (SHOWN.index(stage) if stage in SHOWN else len(SHOWN), "" if task.name in SHOWN else task.name)


def _waiting(snapshot: Snapshot, reader: Reader) -> str:
    """What a run waits for that has not begun, or was stopped for a while; "" for one that runs or has ended."""
    if snapshot.done or (snapshot.tasks and snapshot.state == "Running"):
        return ""
    words = {
        "Submitting": "its process starts",
        "Pending": "its process starts",
        "Running": "running",
        "Suspended": "suspended; Resume in Prefect goes on where it stopped",
        "Cancelling": "is being cancelled; a training saves a checkpoint first",
    }
    if snapshot.state not in ("Scheduled", "Late", "Resuming"):
        return words.get(snapshot.state, snapshot.state)
    # a passing line is not worth a failure; the next poll notices a server that is gone
    with contextlib.suppress(*AWAY):
        if ahead := reader.ahead():
            return f"waits until flow run {ahead} has ended"
    return "waiting for the worker"


def _short(text: str, width: int = 110) -> str:
    flat = " ".join(text.split())
    return flat if len(flat) <= width else flat[: width - 1] + "…"


def _clock(begun: float) -> str:
    seconds = int(time.monotonic() - begun)
    return f"{seconds // 60:3d}:{seconds % 60:02d}"
