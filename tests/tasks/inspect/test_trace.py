"""Traces over a small store: convert is real, what the later stages leave is written by hand."""

from __future__ import annotations

import hashlib
import json
import subprocess
from pathlib import Path

import numpy as np
import orjson
import pytest

from flows import cli
from model.training.shards import Row, write_shard
from tasks import dag
from tasks.convert.job import Reading, Settings
from tasks.convert.source import convert_source
from tasks.inspect import trace
from tasks.inspect.artifacts import newest
from tasks.settings import profiles
from tasks.settings.config import Sft, Source, SteelRun, Variant
from tasks.settings.errors import NodeError
from tasks.settings.paths import ROOT
from tasks.stage.fingerprint import canonical
from tasks.stage.node import Artifact
from tasks.stage.store import Store, content_digest, file_digest

SPACED = "很多　空格   的一页，它的内容足够长，可以留下来。"
RAW = {
    "pages/a.jsonl": [
        {"text": "第一页，讲的是山。"},
        {"text": SPACED},
        {"text": "太短"},
        {"text": "第一页，讲的是山。"},
        "{broken",
        {"text": "第一页，讲的是山！"},
        {"text": "背诵：黄河的长度是多少？"},
        {"text": "最后一页，很长。" * 20},
    ],
    "qa/q.jsonl": [
        {"instruction": "一", "output": "二"},
        {"instruction": "会议时间是 12:30", "output": "20230720"},
    ],
    "exam/val/geo_val.csv": "id,question,A,B,C,D,answer\n0,黄河的长度是多少？,a,b,c,d,A\n",
}
CONFIG = SteelRun(
    profile="t",
    sources={
        "pages": Source(dataset="pages", reader="skypile"),
        "qa": Source(dataset="qa", reader="alpaca", use="sft"),
        "exam": Source(dataset="exam", reader="ceval", use="benchmark"),
    },
    sft=Sft(variants={"half": Variant(mixture={"qa": 0.5})}),
)


class House:
    """A store filled stage by stage, with manifests as the runner writes them."""

    def __init__(self, root: Path, config: SteelRun = CONFIG, until: str = "sft:half"):
        self.config, self.store, self.graph = config, Store(root), dag.build(config)
        self.done: dict[str, Path] = {}
        self.made: dict[str, dict] = {}
        for name, node in self.graph.items():
            fingerprint = hashlib.sha256(orjson.dumps([name, canonical(node.config)])).hexdigest()
            out = self.store.work(name, fingerprint)
            out.mkdir(parents=True)
            getattr(self, node.stage)(name.partition(":")[2], out)
            identity = {
                "config": canonical(node.config),
                "inputs": {role: self.digest(source) for role, source in node.inputs.items()},
            }
            made = self.store.publish(name, fingerprint, {"node": name, "identity": identity, "run_id": "r"})
            self.done[name], self.made[name] = self.store.final(name, fingerprint), made
            if name == until:
                break

    def digest(self, source: str) -> str:
        name, _, below = source.partition("#")
        return content_digest(self.made[name]["files"], below)

    def ids(self, source: str) -> list[str]:
        return [line["id"] for line in self.lines(f"convert:{source}")]

    def lines(self, node: str) -> list[dict]:
        return [orjson.loads(line) for line in (self.done[node] / "records.jsonl").open("rb")]

    def download(self, unit: str, out: Path) -> None:
        for path, items in RAW.items():
            source, _, file = path.partition("/")
            if source == unit:
                (out / file).parent.mkdir(exist_ok=True)
                texts = items if isinstance(items, str) else "".join(
                    (item if isinstance(item, str) else json.dumps(item)) + "\n" for item in items
                )  # fmt: skip
                (out / file).write_text(texts, "utf-8")

    def convert(self, unit: str, out: Path) -> None:
        raw = self.done[f"download:{unit}"]
        settings = Settings(source=Reading.of(self.config.sources[unit]), max_quarantined_share=0.5)
        files = {
            p.relative_to(raw).as_posix(): file_digest(p)
            for p in raw.rglob("*.[jc]s*")
            if p.stem != "manifest"
        }
        convert_source(raw, out, unit, settings, files)

    def clean(self, unit: str, out: Path) -> None:
        if unit == "pages":
            kept, dropped = [], []
            for record in self.lines("convert:pages"):
                if record["text"] == "太短":
                    why = {"text_len": 2.0}
                    line = {"operator": "text_length_filter", "why": why, "excerpt": "太短"}
                    dropped.append({"id": record["id"], **line})
                else:
                    kept.append(record | {"text": " ".join(record["text"].split())})
            _write(out / "records.jsonl", kept)
            _write(out / "dropped.jsonl", dropped)
        if unit == "decontaminate":
            first, *_, near, held, last = self.ids("pages")
            exam = orjson.loads((self.done["convert:exam"] / "questions.jsonl").read_bytes())
            drops = [{"id": near, "step": "dedup", "duplicate_of": first, "method": "exact"}]
            drops.append({"id": held, "step": "decontaminate", "questions": [["exam", exam["id"]]]})
            for name, lines in (("pages", drops), ("qa", [])):
                (out / name).mkdir()
                _write(out / name / "drops.jsonl", lines)
                held = self.ids("qa")[:1] if name == "qa" else [held]
                hits = [{"id": i, "questions": [["exam", exam["id"]]]} for i in held]
                _write(out / name / "hits.jsonl", hits)

    def tokenize(self, unit: str, out: Path) -> None:
        if unit == "pages":
            first, spaced, *_, last = self.ids("pages")
            # 10 tokens of one record and 71 of another, each with its separator, in rows of 33
            ends = [[(spaced, 10), (last, 33)], [(last, 33)], [(last, 15)]]
            write_shard(out / "train-00000.arrow", [_row(row) for row in ends], 32)
            write_shard(out / "val-00000.arrow", [_row([(first, 6)])], 32)

    def pretrain(self, unit: str, out: Path) -> None:
        shard = {"path": str(self.done["tokenize:pages"] / "train-00000.arrow"), "source": "pages"}
        settings = {"data": {"files": [shard]}, "seed": 1, "batch_size": 2}
        (out / "CONFIG.json").write_text(json.dumps(settings))
        _write(out / "metrics.jsonl", [{"step": 3}])

    def sft(self, unit: str, out: Path) -> None:
        _write(out / "mixture.jsonl", [{"set": "qa", "id": self.ids("qa")[1], "split": "train"}])

    def tell(self, query: str) -> str:
        return "\n".join(trace.trace(query, self.config, newest(self.store, self.graph)))


def _row(documents: list[tuple[str, int]]) -> Row:
    """A row of documents (id, where each ends)."""
    ends = [end for _, end in documents]
    ids = [bytes.fromhex(i) for i, _ in documents]
    return Row(np.zeros(33, np.uint32), np.array([0, *ends[:-1]], np.int32), ids, ends[-1])


def _write(path: Path, items: list[dict]) -> None:
    path.write_bytes(b"".join(orjson.dumps(item) + b"\n" for item in items))


@pytest.fixture(scope="module")
def house(tmp_path_factory):
    return House(tmp_path_factory.mktemp("store"))


def test_a_kept_record_from_its_raw_line_to_its_rows(house):
    told = house.tell(house.ids("pages")[-1][:8])
    assert told.splitlines()[0] == f"{house.ids('pages')[-1]}  pages"
    assert f"{house.done['download:pages']}/a.jsonl, 8" in told
    assert "kept: text, zh, 160 characters" in told
    assert "kept as it is" in told
    assert "holds no benchmark question" in told
    assert "train: train-00000.arrow, rows 0–2, 71 tokens" in told
    read = [line for line in told.splitlines() if line.startswith("  pretrain")]
    assert len(read) == 3  # two epochs of three rows in three steps of two
    assert all("read at step" in line and "(epoch 1), step" in line and "(epoch 2)" in line for line in read)


def test_a_repeat_is_told_with_the_record_it_repeats(house):
    told = house.tell(house.ids("pages")[0])
    assert "again at a.jsonl:4: dropped there (duplicate-id)" in told
    assert "val: val-00000.arrow, row 0, 6 tokens" in told
    assert "held out" in told
    assert house.tell("a.jsonl:4") == told


def test_a_changed_record_names_its_operators(house, monkeypatch):
    change = {"whitespace_normalization_mapper": {"before": SPACED, "after": "after"}}
    monkeypatch.setattr(trace, "_changes", lambda record, nodes, artifact: change)
    told = house.tell("很多　空格")
    assert f"kept, changed: {len(SPACED)} → {len(' '.join(SPACED.split()))} characters" in told
    assert "whitespace_normalization_mapper" in told


@pytest.mark.slow
def test_changes_are_found_by_running_the_recipe_again(house):
    nodes = newest(house.store, house.graph)
    record = house.lines("convert:pages")[1]
    changes = trace._changes(record, nodes, nodes["clean:pages"])
    assert "whitespace_normalization_mapper" in changes
    assert all(example["before"] != example["after"] for example in changes.values())


def test_who_dropped_it(house, monkeypatch):
    monkeypatch.setattr(trace, "_changes", lambda record, nodes, artifact: {})
    _, _, short, near, held, _ = house.ids("pages")
    assert "dropped by text_length_filter (text_len 2.0)" in house.tell(short)
    duplicate = house.tell(near)
    assert f"dropped: exact duplicate of {house.ids('pages')[0]}" in duplicate
    assert "pages, a.jsonl:1 «第一页，讲的是山。»" in duplicate
    assert "tokenize" not in duplicate
    contaminated = house.tell(held)
    assert "dropped: it holds benchmark questions" in contaminated
    assert "«黄河的长度是多少？ a b c d»" in contaminated


def test_quarantine_by_place_and_by_text(house):
    told = house.tell("a.jsonl:5")
    assert "quarantined: broken JSON" in told
    assert "«{broken»" in told
    assert house.tell("{broken") == told


def test_an_instruction_and_the_mixtures_that_took_it(house):
    one, two = house.ids("qa")
    assert "sft:half      taken, train" in house.tell(two)
    assert "sft:half      not in its mixture" in house.tell(one)
    assert "kept, though it holds benchmark questions" in house.tell(one)
    assert "holds no benchmark question" in house.tell(two)


@pytest.mark.parametrize("query", ["会议时间是 12:30", "20230720", "时间是 12:3"])
def test_a_text_that_looks_like_an_id_or_a_place(house, query):
    assert house.tell(query).splitlines()[0] == f"{house.ids('qa')[1]}  qa"


def test_what_the_operator_failed_on_was_not_judged(tmp_path, monkeypatch):
    monkeypatch.setattr(trace, "_changes", lambda record, nodes, artifact: {})
    house = House(tmp_path, until="clean:pages")
    path = house.done["clean:pages"] / "dropped.jsonl"
    line = orjson.loads(path.read_bytes())
    line |= {"why": {"error": "ValueError: no"}, "quarantined": f"operator failed: {line['operator']}"}
    path.write_bytes(orjson.dumps(line) + b"\n")
    artifact = Artifact("clean:pages", path.parent, "", "", {"identity": {}})
    told = list(trace._cleaned(house.lines("convert:pages")[2], {"clean:pages": artifact}, "pages"))
    assert told == ["  clean         quarantined: operator failed: text_length_filter (error ValueError: no)"]


@pytest.mark.parametrize("text", ['it\'s "12:30"', "-- a `text`; of $(odd) \\ signs", "--step"])
def test_make_hands_on_any_text(tmp_path, text):
    shown = tmp_path / "cli"
    shown.write_text('#!/bin/bash\nprintf "%s\\0" "$@"\n')
    shown.chmod(0o755)
    command = ["make", "-s", "-o", "setup", "trace", f"CLI={shown}", "ID=" + text.replace("$", "$$")]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.split("\0")[:-1] == ["trace", "--profile", "demo", "--", text]
    done = subprocess.run([*command[:-1], "STEP=12"], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.split("\0")[:-1] == ["trace", "--profile", "demo", "--step", "12"]


def test_a_question_is_asked_and_never_trained_on(house):
    told = house.tell("黄河的长度")
    assert "a benchmark's question" in told
    assert told.count("\n\n") == 1  # and the page that recites it
    assert house.tell("黄河") == house.tell(" 黄河 ")  # two characters are a word


@pytest.mark.parametrize(
    ("query", "message"),
    [
        ("ffffffffff", "no record of profile 't' matches"),
        ("", "give an ID"),
        ("abc", "four letters"),
        ("黄", "two Chinese"),
        ("b.jsonl:1", "no record"),
    ],
)
def test_nothing_found(house, query, message):
    with pytest.raises(NodeError, match=message):
        house.tell(query)


def test_a_run_that_got_no_further(tmp_path):
    house = House(tmp_path, until="convert:exam")
    assert "clean         has not run" in house.tell("a.jsonl:1")
    with pytest.raises(NodeError, match="has no finished convert node"):
        trace.trace("abcdefgh", CONFIG, {})


def test_the_newest_is_of_these_settings_and_inputs(tmp_path, house):
    changed = CONFIG.model_copy(update={"convert": CONFIG.convert.model_copy(update={"max_chars": 9})})
    other = set()
    assert newest(house.store, dag.build(changed), other).keys() == house.done.keys()
    assert other == {"convert:pages", "convert:qa", "convert:exam"}
    moved = {**CONFIG.sources, "pages": Source(dataset="pages", reader="skypile", files=["elsewhere"])}
    there = newest(house.store, dag.build(CONFIG.model_copy(update={"sources": moved})))
    assert "download:qa" in there
    assert not {"download:pages", "convert:pages", "clean:pages", "clean:dedup"} & set(there)
    found = newest(house.store, house.graph)
    assert {name: artifact.path for name, artifact in found.items()} == house.done
    for path in house.done["download:qa"].parent.glob("qa-*"):
        path.rename(path.with_name(path.name + ".gone"))
    try:
        assert not {"download:qa", "convert:qa", "clean:decontaminate"} & set(
            newest(house.store, house.graph)
        )
    finally:
        for path in house.done["download:qa"].parent.glob("qa-*.gone"):
            path.rename(path.with_name(path.name.removesuffix(".gone")))


def test_the_command(house, monkeypatch, capsys):
    config = house.config.model_copy(
        update={"runtime": house.config.runtime.model_copy(update={"artifacts": house.store.root})}
    )
    monkeypatch.setattr(profiles, "load", lambda profile, overrides=None: config)
    assert cli.main(["trace", "a.jsonl:5"]) == 0
    assert "quarantined: broken JSON" in capsys.readouterr().out
    assert cli.main(["trace", "--profile", "demo", "--", "会议时间是 12:30"]) == 0
    assert house.ids("qa")[1] in capsys.readouterr().out
    assert cli.main(["trace", "--step", "2"]) == 0
    told = capsys.readouterr().out
    assert told.startswith("step 2: ")
    assert house.ids("pages")[-1] in told
    assert cli.main(["trace", "--step", "0"]) == 2
    assert "steps count from 1" in capsys.readouterr().err
    assert cli.main(["trace", "nowhere.jsonl:1"]) == 2
    assert "no record" in capsys.readouterr().err
