"""What `make preview` shows: the first records before and after the reader, and what would be quarantined."""

from __future__ import annotations

import os

import pytest

from flows import cli
from tasks.inspect import preview
from tasks.settings.config import SteelRun
from tasks.settings.errors import NodeError
from tests.support.convert import convert, jsonl

FILES = {
    "a.jsonl": jsonl({"text": "一"}, {"content": "二"}, b"{bad", *({"text": str(i)} for i in range(50))),
    "novel.txt": "第一章\n山高。".encode(),
    "t.csv": b"text\nc\n",
    "w.json": b'{"data": [{"text": "w"}]}',
    "x.pdf": b"%PDF",
}


@pytest.fixture
def folder(tmp_path):
    base = tmp_path / "sources/mine"
    base.mkdir(parents=True)
    for name, body in FILES.items():
        (base / name).write_bytes(body)
    return base


def run(tmp_path, **source):
    return SteelRun(
        profile="t",
        sources={"mine": {"dataset": "mine", "reader": "text", **source}},
        runtime={"folders": {"sources": tmp_path / "sources"}, "artifacts": tmp_path / "artifacts"},
    )


def test_first_records_come_from_every_file(tmp_path, folder):
    source = run(tmp_path).sources["mine"]
    found = preview.first_records("mine", source, folder, 12)
    assert [first.at for first in found] == [
        "a.jsonl:1", "a.jsonl:2", "a.jsonl:3", "novel.txt:1", "t.csv:1", "w.json:1",
    ]  # fmt: skip
    bad = [(first.reason, first.detail) for first in found if first.record is None]
    assert bad == [("missing field", "text; there are: content"), ("broken JSON", "")]
    assert [first.record["text"] for first in found if first.record] == ["一", "第一章\n山高。", "c", "w"]


def test_it_agrees_with_the_stage(tmp_path, folder):
    source = run(tmp_path).sources["mine"]
    found = preview.first_records("mine", source, folder, 5000)
    done = convert(tmp_path / "stage", "text", FILES)
    assert [first.record["text"] for first in found if first.record] == [r["text"] for r in done.records]
    told = [(first.file, first.position, first.reason) for first in found if not first.record]
    assert told == [(q["file"], q["position"], q["reason"]) for q in done.quarantine]


def test_the_lines_for_a_terminal(tmp_path, folder):
    told = "\n".join(preview.lines(run(tmp_path), "mine", 8))
    assert "mine: 4 of 5 files are read, by the reader text" in told
    assert "not read: x.pdf" in told
    assert "  quarantined: missing field (text; there are: content)" in told
    assert "  text       第一章 ⏎ 山高。" in told


@pytest.mark.parametrize("file", ["网页.jsonl", "網頁.jsonl"])
def test_names_are_those_of_the_artifact(tmp_path, folder, file):
    os.rename(folder / "a.jsonl", os.fsencode(folder) + b"/" + file.encode("gbk"))
    source = run(tmp_path).sources["mine"]
    files = {first.file for first in preview.first_records("mine", source, folder, 5000)}
    assert files == {file, "novel.txt", "t.csv", "w.json"}


@pytest.mark.parametrize(
    ("source", "name", "message"),
    [
        ({}, "yours", "there is no source 'yours' in t; there are: mine"),
        ({"dataset": "gone"}, "mine", "no folder .*gone"),
        (
            {"reader": "starcoder"},
            "mine",
            r"none of the 5 files is one for its reader \(\.parquet\); there are: a.jsonl",
        ),
        (
            {"hub": "huggingface", "dataset": "a/b"},
            "mine",
            "not downloaded yet: make run PROFILE=t UNTIL=download",
        ),
    ],
)
def test_what_cannot_be_shown(tmp_path, folder, source, name, message):
    with pytest.raises(NodeError, match=message):
        preview.lines(run(tmp_path, **source), name, 5)


def test_the_command(tmp_path, folder, capsys):
    settings = 'sources={"mine": {"dataset": "mine", "reader": "text"}}'
    common = ["preview", "--profile", "smoke", "--sources", str(tmp_path / "sources"), "--set", settings]
    assert cli.main([*common, "--records", "1", "mine"]) == 0
    assert "a.jsonl:1\n  raw     " in capsys.readouterr().out
    assert cli.main([*common, "nobody"]) == 2
    assert "there is no source 'nobody'" in capsys.readouterr().err
