"""The convert nodes: declared for every source, wrong readers and options refused before anything runs."""

from __future__ import annotations

import logging

import pytest

from tasks.convert import node as convert
from tasks.convert.source import at_once
from tasks.settings.config import Runtime, SteelRun
from tasks.settings.errors import NodeError
from tasks.stage.fingerprint import canonical
from tasks.stage.node import Artifact, Context
from tasks.work import pool
from tests.support.convert import jsonl


def config(**source):
    fields = {"dataset": "s", "reader": "skypile", **source}
    return SteelRun(profile="t", sources={"s": fields})


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ({"reader": "magic"}, r"sources\.s: there is no reader 'magic'; choose one of: alpaca"),
        ({"reader": "_instruction"}, "there is no reader"),
        ({"reader": "ceval"}, "not for use: pretrain"),
        ({"reader": "skypile", "use": "benchmark"}, "not for use: benchmark"),
        ({"reader": "text", "use": "sft"}, "not for use: sft: it makes texts without a reply"),
        ({"reader": "starcoder", "use": "sft"}, "not for use: sft: it makes texts without a reply"),
        ({"reader": "pairs", "use": "sft"}, "not for use: sft$"),
        ({"reader": "alpaca", "use": "preference"}, "not for use: preference"),
        ({"reader": "zhihu", "options": {"min_vote": 1}}, "there is no setting 'sources.s.options.min_vote'"),
        ({"reader": "zhihu", "options": {"min_votes": "many"}}, r"options\.min_votes"),
    ],
)
def test_refused(source, message):
    with pytest.raises(NodeError, match=message):
        convert.nodes(config(**source))


def test_a_dialogue_source_may_be_tuned_on():
    (node,) = convert.nodes(config(reader="belle_2m", use="sft"))
    assert node.name == "convert:s"
    assert node.inputs == {"raw": "download:s"}


def test_the_slice_is_what_decides_the_output():
    (node,) = convert.nodes(config(licence="MIT", files=["a"]))
    assert canonical(node.config) == {
        "source": {"reader": "skypile", "language": "zh", "options": {}},
        "max_chars": 2_000_000,
        "max_quarantined_share": 0.2,
        "part_bytes": 64 << 20,
        "job_bytes": 256 << 20,
        "examples": 10,
    }


def test_the_body(tmp_path, monkeypatch):
    monkeypatch.setattr(pool, "submit", at_once)
    raw, out = tmp_path / "raw", tmp_path / "out"
    raw.mkdir()
    out.mkdir()
    (raw / "a.jsonl").write_bytes(
        jsonl({"text": "a"}, {"text": "b"}, {"text": "b"}, *({"text": str(i)} for i in range(9)), b"{")
    )
    (raw / "manifest.json").write_bytes(b"{}")
    artifact = Artifact("download:s", raw, "d", "f", {"files": [{"path": "a.jsonl", "sha256": "0"}]})
    (node,) = convert.nodes(config())
    outcome = node.body(
        Context(
            name=node.name,
            out=out,
            config=node.config,
            inputs={"raw": artifact},
            runtime=Runtime(),
            seed=0,
            log=logging.getLogger("test"),
            track=None,
        )
    )
    assert outcome.headline == "11 of 13 kept"
    assert outcome.counts["quarantined"] == 1
    assert outcome.counts["dropped"] == 1
    assert "| dropped: duplicate-id | 1 |" in outcome.summary
    assert (out / "records.jsonl").read_bytes().count(b"\n") == 11


@pytest.mark.parametrize(
    ("ignored", "barren", "expected"),
    [
        ([], [], ""),
        (["x.pdf"], [], "; 1 file not read: x.pdf"),
        (list("abcde"), ["e.txt"], "; 5 files not read: a, b, c, and 2 more; 1 file without a record: e.txt"),
    ],
)
def test_files_that_brought_nothing_are_named(ignored, barren, expected):
    account = {"files_ignored": len(ignored), "ignored": ignored}
    account |= {"files_without_records": len(barren), "without_records": barren}
    assert convert.idle_files(account) == expected
