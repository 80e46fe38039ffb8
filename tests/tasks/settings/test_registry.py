"""The registry holds what the paper used; profiles take from it; `make sources` says what is here."""

from __future__ import annotations

import json

import pytest

from flows import cli
from tasks.convert import readers
from tasks.download.node import nodes
from tasks.inspect import catalogue
from tasks.settings import profiles, registry
from tasks.settings.config import SteelRun
from tasks.settings.errors import NodeError

PAPER = """skypile wanjuan wikipedia_cn baidu_baike baidu_qa zhihu belle_2m belle_3_5m moss firefly starcoder
infinity_zh wanjuan_exam wanjuan_exam_cot ruozhiba self_cognition code_feedback web_instruct openhermes
openbookqa arc logiqa ultrafeedback_zh ultrafeedback_en ceval cmmlu mmlu"""


def test_the_papers_data_sets_are_in_it():
    entries = registry.entries()
    assert set(PAPER.split()) <= set(entries)
    pretrain = {name.partition("_")[0] if name.startswith("belle") else name for name in PAPER.split()}
    assert (
        len(pretrain & {n.partition("_")[0] if n.startswith("belle") else n for n in _used("pretrain")}) == 10
    )


def _used(use):
    return [name for name, source in registry.entries().items() if source.use == use]


@pytest.mark.parametrize(("name", "entry"), registry.entries().items())
def test_every_entry_can_be_declared_and_read(name, entry):
    reader = readers.load(entry.reader)
    assert reader.suits(entry.use)
    reader.options.model_validate(entry.options)
    assert entry.licence or "No licence is stated" in entry.note
    assert entry.manual or entry.hub != "folder"
    (node,) = nodes(SteelRun(profile="t", sources={name: entry}))
    assert "licence" not in node.config


def test_a_profile_takes_an_entry_and_changes_fields(tmp_path, monkeypatch):
    monkeypatch.setattr(profiles, "FOLDER", tmp_path)
    (tmp_path / "p.yaml").write_text(
        "sources:\n"
        "  z: {entry: zhihu, options: {min_votes: 100}, revision: abc}\n"
        "  mine: {entry: starcoder, hub: folder, dataset: code}\n"
    )
    config = profiles.load("p", {"sources": {"z": {"files": ["data/one.parquet"]}}})
    z, mine = config.sources["z"], config.sources["mine"]
    assert (z.dataset, z.reader, z.licence) == ("wangrui6/Zhihu-KOL", "zhihu", "MIT")
    assert (z.options, z.revision, z.files) == ({"min_votes": 100}, "abc", ["data/one.parquet"])
    assert (mine.hub, mine.dataset, mine.gated, mine.language) == ("folder", "code", False, "code")


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("{entry: zhihuu}", "source s: there is no entry 'zhihuu' in registry.yaml"),
        ("{entry: zhihu, hub: folder}", "give dataset, or urls with hub: url"),
        ("{hub: url, dataset: x, reader: alpaca}", "give dataset, or urls with hub: url"),
        ("{hub: url, urls: [{url: 'ftp://x/y'}], reader: alpaca}", "urls.0.url"),
        ("zhihu", "sources.s: Input should be a valid dictionary"),
    ],
)
def test_a_wrong_source_is_one_line(tmp_path, monkeypatch, source, message):
    monkeypatch.setattr(profiles, "FOLDER", tmp_path)
    (tmp_path / "p.yaml").write_text(f"sources:\n  s: {source}\n")
    with pytest.raises(NodeError, match=message) as error:
        profiles.load("p")
    assert "\n" not in str(error.value)


def test_the_registry_is_no_part_of_a_nodes_code():
    """An entry more must not fetch a terabyte again."""
    from tasks.stage.closure import closure

    for node in nodes(profiles.load("demo")):
        assert registry.PATH not in closure(node.body, node.code).data


def test_what_is_here_is_told(tmp_path):
    sources = {
        "zhihu": {"hub": "huggingface", "dataset": "a/b", "reader": "zhihu", "size": 1_500_000_000},
        "starcoder": {"hub": "huggingface", "dataset": "c/d", "reader": "starcoder", "gated": True},
        "mine": {"dataset": "mine", "reader": "skypile", "licence": "MIT"},
        "gone": {"dataset": "gone", "reader": "skypile", "manual": "ask for it"},
        "sft": {"hub": "url", "urls": [{"url": "https://x.org/d/q.json"}], "reader": "alpaca", "use": "sft"},
    }
    (tmp_path / "raw/mine").mkdir(parents=True)
    (tmp_path / "raw/mine/a.jsonl").write_bytes(b"x" * 1234)
    runtime = {"artifacts": tmp_path / "artifacts", "folders": {"sources": tmp_path / "raw"}}
    config = SteelRun(profile="t", sources=sources, runtime=runtime)
    first = nodes(config)[0]
    done = tmp_path / "artifacts/download/zhihu-0123456789abcdef"
    done.mkdir(parents=True)
    manifest = {
        "node": first.name,
        "digest": "",
        "fingerprint": "",
        "identity": {"config": dict(first.config)},
        "counts": {"files": 3, "bytes": 7},
    }
    (done / "manifest.json").write_text(json.dumps(manifest))
    begun = tmp_path / "artifacts/download/starcoder-77.partial"
    begun.mkdir()
    (begun / "x.part").write_bytes(b"x" * 2000)
    found = {row.name: row for row in catalogue.rows(config)}
    assert (found["zhihu"].present, found["zhihu"].size) == ("downloaded, 3 files", 7)
    assert found["starcoder"].present == "begun, 2.0 kB"
    assert (found["mine"].present, found["mine"].size) == ("in its folder, 1 file", 1234)
    assert found["gone"].present == "missing: not in SOURCES"
    assert found["gone"].access == "by hand"
    text = "\n".join(catalogue.table(found.values(), tmp_path / "artifacts"))
    assert "2 of 5 are here." in text
    assert "To fetch: 2 data sets, about 0 B, and 2 whose size" in text
    assert "q.json" in text
    changed = config.model_copy(
        update={"sources": {"zhihu": config.sources["zhihu"].model_copy(update={"files": ["x"]})}}
    )
    assert catalogue.rows(changed)[0].present == "downloaded with other settings"


def test_make_sources(capsys):
    assert cli.main(["sources", "--registry"]) == 0
    everything = capsys.readouterr().out
    assert all(name in everything for name in PAPER.split())
    assert "none was checked on a hub" in everything
    assert cli.main(["sources", "--profile", "demo"]) == 0
    assert "demo/zhihu" in capsys.readouterr().out
    assert cli.main(["sources", "--profile", "dmeo"]) == 2
