"""Digests of code that outlive a process."""

from __future__ import annotations

import json

import pytest

from tasks.settings.paths import ROOT
from tasks.stage import code_memo, fingerprint, reading


@pytest.fixture
def tree(tmp_path, monkeypatch):
    """A small tree of ours; `forget` stands for a new process."""
    monkeypatch.setattr(reading, "ROOT", tmp_path)
    (tmp_path / "tasks").mkdir()
    (tmp_path / "tasks" / "room.py").write_text("def body():\n    return 1\n")
    code_memo.forget()
    yield tmp_path
    code_memo.forget()


def asked(key: str, value: str) -> list[str]:
    """What a process gets for a key, and how often it had to make it."""
    made: list[str] = []

    def make() -> str:
        made.append(key)
        return value

    return [code_memo.remembered(key, make), *made]


def test_the_next_process_does_not_make_it_again(tree):
    assert asked("tasks.room:body", "one") == ["one", "tasks.room:body"]
    assert asked("tasks.room:body", "another") == ["one"]
    code_memo._save()
    code_memo.forget()
    assert asked("tasks.room:body", "another") == ["one"]


@pytest.mark.parametrize("name", ["tasks/room.py", "tasks/template.html", "model/new.py"])
def test_any_other_byte_begins_a_new_memo(tree, name):
    asked("tasks.room:body", "one")
    code_memo._save()
    code_memo.forget()
    (tree / name).parent.mkdir(exist_ok=True)
    (tree / name).write_text("def body():\n    return 2\n")
    assert asked("tasks.room:body", "two") == ["two", "tasks.room:body"]


def test_two_processes_add_up(tree):
    asked("first", "1")
    code_memo._save()
    kept = json.loads(code_memo.place().read_text())
    code_memo.forget()
    code_memo.place().unlink()
    asked("second", "2")  # begun before the first had saved
    code_memo.place().write_text(json.dumps(kept))
    code_memo._save()
    assert json.loads(code_memo.place().read_text())["digests"] == {"first": "1", "second": "2"}


def test_what_was_read_of_a_tree_in_motion_is_not_kept(tree):
    asked("first", "1")
    (tree / "tasks" / "room.py").write_text("changed = True\n")
    code_memo._save()
    assert not code_memo.place().exists()


def test_a_damaged_memo_is_made_anew(tree):
    code_memo.place().parent.mkdir()
    code_memo.place().write_text('{"state": "')
    assert asked("first", "1") == ["1", "first"]
    code_memo._save()
    assert json.loads(code_memo.place().read_text())["digests"] == {"first": "1"}


def test_the_memo_changes_no_digest():
    from tasks.report.body import report

    code_memo.forget()
    assert fingerprint.code_digest(report) == fingerprint._code_digest(report, ())
    assert code_memo.place().is_relative_to(ROOT)
