"""The download nodes: declaration, local folders, and the body from end to end."""

from __future__ import annotations

import logging
import os

import pytest

from tasks.download import local
from tasks.download import node as download
from tasks.settings.config import Runtime, SteelRun
from tasks.settings.errors import NodeError
from tasks.stage.fingerprint import canonical
from tasks.stage.node import Context


def run(config, tmp_path, name):
    node = {n.name: n for n in download.nodes(config)}[f"download:{name}"]
    out = tmp_path / "out"
    out.mkdir(exist_ok=True)
    return node.body(
        Context(
            name=node.name,
            out=out,
            config=node.config,
            inputs={},
            runtime=config.runtime,
            seed=0,
            log=logging.getLogger("test"),
            track=None,
        )
    ), out


def folder_config(tmp_path, **source):
    fields = {"hub": "folder", "dataset": "s", "reader": "skypile", **source}
    folders = {"sources": str(tmp_path / "raw"), "posttrain": str(tmp_path / "post")}
    return SteelRun(
        profile="t",
        sources={"s": fields},
        runtime=Runtime(artifacts=tmp_path / "artifacts", folders=folders),
    )


def node_files(out):
    return {p.relative_to(out).as_posix(): p.read_bytes() for p in out.rglob("*") if p.is_file()}


@pytest.fixture
def raw(tmp_path):
    base = tmp_path / "raw" / "s"
    (base / "sub").mkdir(parents=True)
    (base / "a.jsonl").write_text('{"text": "a"}\n')
    (base / "sub/b.jsonl").write_text('{"text": "b"}\n')
    (base / "note.txt").write_text("n")
    (base / ".hidden.jsonl").write_text("h")
    return base


def test_a_local_folder_is_taken(tmp_path, raw):
    config = folder_config(tmp_path, files=["**/*.jsonl"])
    outcome, out = run(config, tmp_path, "s")
    assert sorted(p.relative_to(out).as_posix() for p in out.rglob("*.*")) == ["a.jsonl", "sub/b.jsonl"]
    assert outcome.counts == {"files": 2, "bytes": 28}
    (raw / "a.jsonl").write_text("later edit")
    assert (out / "a.jsonl").read_text() == '{"text": "a"}\n'


def test_digests_are_remembered_and_noticed(tmp_path, raw, monkeypatch):
    (node,) = download.nodes(folder_config(tmp_path))
    first = node.external()
    assert set(first) == {"a.jsonl", "note.txt", "sub/b.jsonl"}
    hashed = []
    real = local._sha256
    monkeypatch.setattr(local, "_sha256", lambda path: hashed.append(path.name) or real(path))
    assert node.external() == first
    assert hashed == []
    (raw / "a.jsonl").write_text('{"text": "A"}\n')
    os.utime(raw / "a.jsonl", ns=(1, 1))  # the same size; another time of change
    assert node.external()["a.jsonl"] != first["a.jsonl"]
    assert hashed == ["a.jsonl"]


def test_a_large_file_is_linked(tmp_path, raw, monkeypatch):
    monkeypatch.setattr(local, "LINK_SIZE", 10)
    _, out = run(folder_config(tmp_path, files=["a.jsonl"]), tmp_path, "s")
    assert os.path.samefile(out / "a.jsonl", raw / "a.jsonl")


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ({"dataset": "nowhere"}, r"no folder .*raw/nowhere below SOURCES="),
        ({"use": "sft"}, r"there is no folder .*post, which POSTTRAIN="),
        ({"below": "benchmarks"}, r"set BENCHMARKS= \(runtime\.folders\.benchmarks\)"),
        ({"files": ["*.parquet"]}, r"none of the 3 files .* matches files: \*\.parquet"),
    ],
)
def test_a_missing_folder_names_its_setting(tmp_path, raw, source, message):
    (node,) = download.nodes(folder_config(tmp_path, **source))
    with pytest.raises(NodeError, match=message) as error:
        node.external()
    assert "\n" not in str(error.value)


def test_the_slice_holds_no_paths(tmp_path, raw):
    (node,) = download.nodes(folder_config(tmp_path))
    assert str(tmp_path) not in str(node.config)
    assert node.resumable


def test_the_hub_of_the_config_is_used(tmp_path, monkeypatch):
    from tasks.world.hub import Hub

    with Hub("org/set", {"a.jsonl": b"{}\n"}, token="hf_x") as hub:
        config = SteelRun(
            profile="t",
            sources={"s": {"hub": "huggingface", "dataset": "org/set", "reader": "skypile"}},
            runtime={
                "endpoints": {"huggingface": [hub.endpoint + "/"]},
                "artifacts": tmp_path / "artifacts",
            },
        )
        monkeypatch.delenv("HF_TOKEN", raising=False)
        monkeypatch.setattr("huggingface_hub.get_token", lambda: os.environ.get("HF_TOKEN"))
        with pytest.raises(NodeError, match="then set HF_TOKEN"):
            run(config, tmp_path, "s")
        monkeypatch.setenv("HF_TOKEN", "hf_x")
        outcome, out = run(config, tmp_path, "s")
    assert (out / "a.jsonl").read_bytes() == b"{}\n"
    assert outcome.extra["revision"] == hub.commit
    assert "hf_x" not in str(outcome) + str(node_files(out))


HUB = {"hub": "huggingface", "dataset": "a/b", "revision": "r"}
WEB = {"hub": "url", "urls": [{"url": "https://x.org/a.zip"}], "unpack": ["*.txt"]}
FILE = {"url": "https://x.org/a.zip", "path": "", "size": None, "sha256": ""}


@pytest.mark.parametrize(
    ("source", "counted"),
    [
        ({"hub": "folder", "dataset": "d"}, {"hub": "folder", "dataset": "d", "below": "sources"}),
        (HUB, HUB),
        ({**HUB, "hub": "modelscope", "unpack": ["*"]}, {**HUB, "hub": "modelscope", "unpack": ["*"]}),
        (WEB, {"hub": "url", "dataset": "", "urls": [FILE], "unpack": ["*.txt"]}),
        (
            {"hub": "demo", "dataset": "demo/zhihu"},
            {"hub": "demo", "dataset": "demo/zhihu", "world": {"seed": 20250211, "size": "full"}},
        ),
    ],
)
def test_only_the_fields_of_its_hub_count(source, counted):
    config = SteelRun(profile="t", sources={"s": {"reader": "skypile", "licence": "MIT", **source}})
    (node,) = download.nodes(config)
    assert canonical(node.config) == {"files": ["**"], **counted}
    assert "licence" not in node.config
    with pytest.raises(KeyError):
        node.config["sha256"]


def test_the_mirror_of_the_environment_is_asked(tmp_path, monkeypatch, caplog):
    from tasks.world.hub import Hub

    with Hub("org/set", {"a.jsonl": b"{}\n"}) as hub:
        monkeypatch.setenv("HF_ENDPOINT", hub.endpoint)
        monkeypatch.setattr("huggingface_hub.get_token", lambda: None)
        source = {"hub": "huggingface", "dataset": "org/set", "reader": "skypile"}
        config = SteelRun(profile="t", sources={"s": source}, runtime={"artifacts": tmp_path / "artifacts"})
        outcome, out = run(config, tmp_path, "s")
    assert node_files(out) == {"a.jsonl": b"{}\n"}
    assert outcome.extra["endpoint"] == hub.endpoint
    assert f"s: asked is {hub.endpoint}, by HF_ENDPOINT" in caplog.text


def test_a_folder_with_links_and_names_of_windows(tmp_path, raw, caplog):
    (tmp_path / "nas").mkdir()
    with open(os.fsencode(tmp_path / "nas") + b"/" + "网页.jsonl".encode("gbk"), "wb") as file:
        file.write(b"{}")
    os.symlink(tmp_path / "nas", raw / "linked")
    os.symlink(tmp_path / "nas", raw / "twice")
    config = folder_config(tmp_path, files=["**/*.jsonl"])
    _, out = run(config, tmp_path, "s")
    assert sorted(node_files(out)) == ["a.jsonl", "linked/网页.jsonl", "sub/b.jsonl"]
    assert "links lead to one file twice: twice/网页.jsonl (is linked/网页.jsonl)" in caplog.text
    (node,) = download.nodes(config)
    assert sorted(node.external()) == sorted(node_files(out))
