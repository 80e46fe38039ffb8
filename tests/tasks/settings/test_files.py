"""Files appear whole or not at all; errors of pydantic become one line."""

from __future__ import annotations

import json
import os
import stat

import pytest
from pydantic import ValidationError

from tasks.settings import files
from tasks.settings.config import Optim, SteelRun
from tasks.settings.errors import NodeError, complaint


@pytest.mark.parametrize(
    ("write", "content"),
    [
        (lambda path: files.write_text(path, "新的"), "新的"),
        (
            lambda path: files.write_json(path, {"新": [1, None]}),
            json.dumps({"新": [1, None]}, ensure_ascii=False, indent=1),
        ),
    ],
)
def test_a_written_file_replaces_the_old_one_and_leaves_nothing_aside(tmp_path, write, content):
    path = tmp_path / "below" / "file"
    for _ in range(2):
        write(path)
        assert path.read_text("utf-8") == content
        assert os.listdir(path.parent) == ["file"]


def test_after_a_failure_the_old_file_is_there_and_nothing_else(tmp_path):
    path = tmp_path / "file"
    files.write_text(path, "old")
    with pytest.raises(TypeError):
        files.write_json(path, object())
    with pytest.raises(UnicodeEncodeError), files.replacing(path) as aside:
        aside.write_text("half \ud800", "utf-8")
    assert path.read_text() == "old"
    assert os.listdir(tmp_path) == ["file"]


def test_a_private_file_is_for_its_owner_only(tmp_path):
    path = tmp_path / "secret"
    path.write_text("seen by all")
    files.write_text(path, "word", private=True)
    assert stat.S_IMODE(path.stat().st_mode) == 0o600


@pytest.mark.parametrize(
    ("model", "value", "below", "line"),
    [
        (Optim, {"lr": "x"}, "", "lr: Input should be a valid number, unable to parse string as a number"),
        (Optim, {"rate": 1}, "pretrain.optim", "there is no setting 'pretrain.optim.rate'"),
        (SteelRun, [], "", "the whole: Input should be a valid dictionary or instance of SteelRun"),
        (SteelRun, {"seed": "x", "profile": 1}, "", "profile: Input should be a valid string (and 1 more)"),
        (
            SteelRun,
            {"profile": "p", "sources": {"a": {"urls": [1]}}},
            "",
            "sources.a.urls.0: Input should be a valid dictionary or instance of WebFile (and 1 more)",
        ),
    ],
)
def test_the_first_complaint_is_one_line(model, value, below, line):
    with pytest.raises(ValidationError) as error:
        model.model_validate(value)
    assert complaint(error.value, below) == line


def test_other_errors_give_their_first_line():
    assert complaint(NodeError("one\ntwo")) == "one"
    assert complaint(ValueError()) == "ValueError"


def test_files_are_linked_and_copied_where_that_fails(tmp_path, monkeypatch):
    source = tmp_path / "source"
    source.write_text("text")
    files.link_or_copy(source, tmp_path / "a" / "linked")
    assert (tmp_path / "a" / "linked").stat().st_ino == source.stat().st_ino

    def refuse(*args):
        raise OSError("no links here")

    monkeypatch.setattr(os, "link", refuse)
    files.link_or_copy(source, tmp_path / "b" / "copied")
    assert (tmp_path / "b" / "copied").read_text() == "text"
    assert (tmp_path / "b" / "copied").stat().st_ino != source.stat().st_ino
