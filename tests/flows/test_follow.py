"""flows.follow: what a person reads while a run goes on, and at its end."""

from __future__ import annotations

import io
import json
from uuid import uuid4

from flows import follow
from flows.follow import Terminal, condensed, table
from flows.runs import Snapshot, TaskLine
from flows.settings import ROOT


def line(name: str, state: str, seconds: float = 1.0, message: str = "") -> TaskLine:
    done = state not in ("Running", "Pending")
    return TaskLine(name, state, done, state in ("Completed", "Cached"), seconds, message)


def printed(*snapshots: Snapshot) -> list[str]:
    out, seen = io.StringIO(), {}
    for snapshot in snapshots:
        follow._print_news(snapshot, seen, 0.0, Terminal(out))
    return [text.split(maxsplit=1)[1] for text in out.getvalue().splitlines()]


def snapshot(*tasks: TaskLine) -> Snapshot:
    return Snapshot("Running", False, False, "", {task.name: task for task in tasks})


def test_a_line_for_each_stage_that_ended_and_each_node_that_failed_once():
    lines = printed(
        snapshot(line("download", "Running")),
        snapshot(line("download", "Cached"), line("convert", "Running"), line("convert:zhihu", "Completed")),
        snapshot(
            line("download", "Cached"),
            line("convert", "Failed", 2, "bad"),
            line("convert:moss", "Failed", 1, "oh"),
        ),
        snapshot(
            line("download", "Cached"),
            line("convert", "Failed", 2, "bad"),
            line("convert:moss", "Failed", 1, "oh"),
        ),
    )
    assert [text.split()[:2] for text in lines] == [
        ["download", "Cached"],
        ["convert", "Failed"],
        ["convert:moss", "Failed"],
    ]
    assert lines[1].endswith("bad")


def test_the_table_is_of_run_json_and_of_prefect_without_it():
    record = {"stages": [{"name": "clean", "state": "Completed", "seconds": 61.25, "headline": "9,512 kept"}]}
    rows = table(record, snapshot())
    assert rows[1].split() == ["clean", "Completed", "61.2", "9,512", "kept"]
    fallback = table({}, snapshot(line("clean", "Failed", 3.0, "no"), line("download", "Cached", 0.1)))
    assert [row.split()[0] for row in fallback[1:3]] == ["download", "clean"]  # in the pipeline's order
    assert table({}, snapshot()) == []


def test_a_run_json_of_another_run_is_not_shown(tmp_path):
    run, path = uuid4(), tmp_path / "run.json"
    path.write_text(json.dumps({"flow_run_id": str(run), "stages": []}))
    assert follow._record(path, run)
    assert follow._record(path, uuid4()) == {}
    assert follow._record(tmp_path / "none", run) == {}


def test_a_traceback_keeps_our_frames_and_the_error():
    text = f"""Encountered an exception
Traceback (most recent call last):
  File "/x/site-packages/prefect/engine.py", line 1, in run
    theirs()
  File "{ROOT}/tasks/clean/chain.py", line 3, in clean
    ours()
    ^^^^^^
ValueError: it broke
after"""
    kept = condensed(text).splitlines()
    assert "    ours()" in kept
    assert "    theirs()" not in kept
    assert kept[0] == "Encountered an exception"
    assert kept[-2:] == ["ValueError: it broke", "after"]


def test_the_cause_is_what_the_stage_said():
    assert (
        follow.cause("Task run encountered an exception NodeError: too much\nis unreadable")
        == "too much\nis unreadable"
    )
    assert follow.cause("Flow run encountered an exception: ValueError: no") == "ValueError: no"
    assert follow.cause("Its process is gone.") == "Its process is gone."


def test_without_a_terminal_passing_news_is_rare(monkeypatch):
    out = io.StringIO()
    terminal = Terminal(out)
    terminal.passing("step 1")
    assert out.getvalue() == ""
    monkeypatch.setattr(follow, "QUIET_SECONDS", -1)
    terminal.passing("step 2")
    assert out.getvalue() == "step 2\n"
