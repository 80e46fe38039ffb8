"""flows.follow: what a person reads while a run goes on, and at its end."""

from __future__ import annotations

import io
import json
import os
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from types import SimpleNamespace
from uuid import uuid4

import pytest

from flows import follow
from flows.follow import Terminal, condensed, table
from flows.runs import Snapshot, TaskLine
from flows.settings import ROOT
from tests.support.prefect_server import AWAY


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


class Bars:
    """A reader whose tasks have said something."""

    def __init__(self, **said: str):
        self.said, self.asked = said, []

    def progress(self, tasks):
        self.asked = [task.name for task in tasks]
        return {name: text for name, text in self.said.items() if name in self.asked}


def at_work(*nodes: TaskLine, stage: str) -> Snapshot:
    tasks = {task.name: task for task in nodes}
    return Snapshot("Running", False, False, "", {**tasks, stage: line(stage, "Running")}, tasks)


def test_every_node_at_work_has_a_line_of_its_own():
    now = datetime.now(UTC)
    nodes = [replace(line(f"sft:exp{i}", "Running"), start=now - timedelta(seconds=65 * i)) for i in (2, 1)]
    seen = at_work(*nodes, line("sft:exp0", "Completed"), stage="sft")
    reader = Bars(**{"sft:exp1": "sft:exp1: step 5 of 20, loss 3.1, 900 tokens/s, ETA 0:00:20 (25 %)"})
    first, one, two = follow._inside(seen, reader)
    assert first == "sft · 1 node done"
    assert one.startswith("sft:exp1: step 5 of 20, loss 3.1, 900 tokens/s, ETA 0:00:20 (25 %), 1:0")
    assert two.startswith("sft:exp2, 2:1")


def test_the_only_node_of_a_stage_is_asked_for_by_its_own_task():
    reader = Bars(pretrain="pretrain: step 1 of 9 (11 %)")
    assert follow._inside(at_work(line("pretrain", "Running"), stage="pretrain"), reader) == [
        "pretrain: step 1 of 9 (11 %)"
    ]


def test_many_nodes_are_cut_short_and_counted():
    nodes = [line(f"clean:s{i}", "Running") for i in range(9)]
    lines = follow._inside(at_work(*nodes, stage="clean"), Bars())
    assert lines[0] == "clean · 3 more at work"
    assert len(lines) == 1 + follow.MANY


def test_lines_at_the_bottom_of_a_terminal_change_in_place(monkeypatch):
    out = io.StringIO()
    out.isatty = lambda: True
    monkeypatch.setattr("shutil.get_terminal_size", lambda: os.terminal_size((9, 24)))
    terminal = Terminal(out)
    terminal.passing("one", "知乎知乎知乎")
    assert out.getvalue() == "one\n知乎知乎"  # eight columns
    terminal.passing()
    assert out.getvalue().endswith("\r\x1b[2K\x1b[1A\x1b[2K")


def test_the_bars_of_the_tasks_at_work_are_read_the_newest_first(monkeypatch):
    from flows.runs import Reader

    asked = {}
    task = replace(line("pretrain", "Running"), id=uuid4())

    class Client:
        def read_artifacts(self, **request):
            asked.update(request)
            bar = {"task_run_id": task.id, "data": 17.2, "description": "pretrain: step 2"}
            return [SimpleNamespace(**bar), SimpleNamespace(**{**bar, "description": "an earlier try"})]

    reader = Reader.__new__(Reader)
    reader._client = Client()
    assert reader.progress([task]) == {"pretrain": "pretrain: step 2 (17 %)"}
    assert asked["sort"] == "UPDATED_DESC"
    assert asked["artifact_filter"].task_run_id.any_ == [task.id]
    assert reader.progress([line("no id", "Running")]) == {}


def test_a_stage_and_its_only_node_are_told_apart():
    from flows.runs import Reader

    now = datetime.now(UTC)
    run = SimpleNamespace(run_count=1, state_type="RUNNING", state=None)

    def task(name: str, second: int) -> SimpleNamespace:
        return SimpleNamespace(
            name=name, id=uuid4(), created=now + timedelta(seconds=second), start_time=now, state=None,
            flow_run_run_count=1, total_run_time=None,
        )  # fmt: skip

    tasks = [task("pretrain", 9), task("pretrain", 3), *(task(f"clean:{i}", 0) for i in range(450))]

    class Client:
        def read_task_runs(self, *, offset, limit, **_):
            return tasks[offset : offset + limit]

    reader = Reader.__new__(Reader)
    reader._client, reader.run, reader.flow_run = Client(), uuid4(), lambda: run
    seen = reader.snapshot()
    assert seen.tasks["pretrain"].id == tasks[1].id
    assert seen.nodes["pretrain"].id == tasks[0].id
    assert len(seen.nodes) == 451


@pytest.mark.parametrize("where", ["snapshot", "reap", "restart"])
@pytest.mark.parametrize("trouble", AWAY.values(), ids=AWAY)
def test_a_server_that_is_slow_for_a_while_does_not_end_the_following(where, trouble, monkeypatch):
    calls = {"snapshot": 0, "reap": 0, "restart": 0}

    def called(name, answer=None):
        calls[name] += 1
        if name == where and calls[name] <= 3:
            raise trouble
        return answer

    class Reader:
        def snapshot(self):
            done = calls[where] > 5
            return called("snapshot", Snapshot("Completed" if done else "Running", done, True, "", {}))

    for name in ("POLL_SECONDS", "CALM_SECONDS", "CARE_SECONDS"):
        monkeypatch.setattr(follow, name, 0.0)
    monkeypatch.setattr(follow.runs, "reap", lambda: called("reap", []))
    monkeypatch.setattr(follow.servers, "status", lambda **more: called("restart", []))
    last = follow._watch(Reader(), Terminal(io.StringIO()))
    assert last.done
    assert calls[where] > 5
