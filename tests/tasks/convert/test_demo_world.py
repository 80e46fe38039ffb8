"""The demo's data sets, from their hub to records: what was planted is what is counted."""

from __future__ import annotations

import logging
from functools import cache

import pytest

from tasks import world
from tasks.convert.job import Reading, Settings
from tasks.convert.source import convert_source
from tasks.download import node as download
from tasks.settings import profiles
from tasks.settings.config import SteelRun, World
from tasks.stage.node import Context
from tests.support.convert import Converted

SMALL = World(size="small")


@cache
def demo() -> SteelRun:
    return profiles.load("demo", {"world": {"size": "small"}})


def fetch_and_convert(tmp_path, name: str, **options) -> Converted:
    config = demo()
    (node,) = (n for n in download.nodes(config) if n.name == f"download:{name}")
    raw, out = tmp_path / "raw", tmp_path / "out"
    raw.mkdir()
    out.mkdir()
    node.body(
        Context(
            name=node.name,
            out=raw,
            config=node.config,
            inputs={},
            runtime=config.runtime,
            seed=0,
            log=logging.getLogger("test"),
            track=None,
        )
    )
    source = config.sources[name].model_copy(update={"options": options})
    return Converted(out, convert_source(str(raw), str(out), name, Settings(source=Reading.of(source))))


@pytest.mark.parametrize("name", [name for name, s in demo().sources.items() if s.use == "pretrain"])
def test_sources(tmp_path, name):
    planted = world.expected(SMALL, name)
    account = fetch_and_convert(tmp_path, name, **({"min_votes": 100} if name == "zhihu" else {})).account
    quarantined, dropped = account["quarantined"], account["dropped"]
    # an entry of baidu_baike without its fields has no text at all
    null = "empty text" if name == "baidu_baike" else "null field"
    expected = {"broken JSON": planted["broken_json"], null: planted["null_fields"]}
    assert account["records_in"] == planted["records"]
    assert quarantined == {reason: n for reason, n in expected.items() if n}
    assert dropped.get("min-votes", 0) == planted["low_votes"]
    assert dropped.get("duplicate-id", 0) == planted["exact_duplicate"]


@pytest.mark.parametrize(
    "name", [name for name, s in demo().sources.items() if s.use in ("sft", "preference")]
)
def test_posttrain_sets(tmp_path, name):
    done = fetch_and_convert(tmp_path, name)
    assert done.account["records_in"] == world.expected(SMALL, name)["records"]
    assert not done.quarantine


def test_exam(tmp_path):
    done = fetch_and_convert(tmp_path, "demo_exam")
    expected = world.expected(SMALL, "demo_exam")
    counts = {
        split: sum(q["split"] == split for q in done.records) for split in ("dev", "val", "test", "select")
    }
    assert counts == {split: expected[split] for split in counts}
    val = [q for q in done.records if q["split"] == "val"]
    assert sum(q["meta"]["held_out_fact"] is True for q in val) == expected["val_held_out_fact"]
    assert {q["language"] for q in val} == {"zh", "en"}
    assert {q["meta"]["half"] for q in val} == {"known-words", "new-words"}
    assert all((q["answer"] is None) == (q["split"] == "test") for q in done.records)
