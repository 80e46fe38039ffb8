"""The three kinds of node, from cleaned records to a manifest that the loader reads."""

import inspect
import json
import logging
from concurrent.futures import Future
from fractions import Fraction
from math import floor, inf, nan
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from model.training.loader import BlockLoader
from model.training.shards import ShardFile, repeats_of
from tasks.records import account as accounts
from tasks.settings.config import Runtime, Section, Source, SteelRun, Tokenize
from tasks.settings.errors import NodeError
from tasks.stage.fingerprint import canonical
from tasks.stage.node import Artifact, Context
from tasks.tokenize import job, manifest, source, tokenizer
from tasks.tokenize.chat import IM_END, IM_START
from tasks.tokenize.encode import Encoder
from tasks.tokenize.node import nodes
from tasks.work import pool
from tests.support.tokenizing import SETTINGS, corpus, dialogue, record, write_lines

BLOCK = 32
RECIPE = job.Settings(block_size=BLOCK, val_share=0.1)


class Silent:
    def metrics(self, values, step=None): ...
    def params(self, values): ...
    def file(self, path, folder=""): ...


def artifact(path: Path) -> Artifact:
    return Artifact(path.name, path, digest="d", fingerprint="f", manifest={})


def context(name: str, out: Path, config: Section, inputs: dict[str, Path]) -> Context:
    out.mkdir(parents=True)
    log = logging.getLogger("test")
    found = {role: artifact(path) for role, path in inputs.items()}
    return Context(name, out, config, found, Runtime(), seed=1, log=log, track=Silent())


@pytest.fixture(autouse=True)
def inline(monkeypatch):
    """The pool's work, done here."""

    def submit(function, *args):
        future = Future()
        future.set_result(function(*args))
        return future

    monkeypatch.setattr(pool, "submit", submit)


def run_source(folder: Path, tokenizer_folder: Path, rows: list, dropped=(), name="wiki", again="", **recipe):
    """tokenize:<name> on these records, or on these parts of records; `again` makes another artifact of it."""
    if rows and isinstance(rows[0], list):
        for i, job in enumerate(rows):
            write_lines(folder / f"clean-{name}" / f"records-{i:05d}.jsonl", job)
    else:
        write_lines(folder / f"clean-{name}" / "records.jsonl", rows)
    write_lines(folder / f"drops-{name}" / "drops.jsonl", [{"id": r["id"], "step": "dedup"} for r in dropped])
    inputs = {
        "records": folder / f"clean-{name}",
        "drops": folder / f"drops-{name}",
        "tokenizer": tokenizer_folder,
    }
    ctx = context(
        f"tokenize:{name}", folder / f"tokenize-{name}{again}", RECIPE.model_copy(update=recipe), inputs
    )
    return ctx.out, source.body(ctx)


def read_documents(folder: Path, split: str, block_size: int = BLOCK) -> dict[str, list[int]]:
    """Record id -> tokens, put together again from the rows."""
    found: dict[str, list[int]] = {}
    for path in sorted(folder.glob(f"{split}-*.arrow")):
        shard = ShardFile(path)
        assert shard.block_size == block_size
        for i in range(shard.rows):
            row = shard.read(i)
            ends = [*row.doc_starts[1:], row.valid]
            for begin, end, id in zip(row.doc_starts, ends, row.doc_ids, strict=True):
                found.setdefault(id.hex(), []).extend(row.input_ids[begin:end].tolist())
    return found


def test_every_record_is_in_the_shards_or_accounted_for(tmp_path, tokenizer_folder, encoder):
    rows = [*corpus(), record("")]
    dropped = rows[5:12]
    out, outcome = run_source(tmp_path, tokenizer_folder, rows, dropped)
    account = json.loads((out / "accounting.json").read_text("utf-8"))
    assert account["records_in"] == len(rows)
    assert account["dropped"] == {"drops": 7, "empty": 1}
    train, val = read_documents(out, "train"), read_documents(out, "val")
    assert (len(train), len(val)) == (account["train"]["documents"], account["val"]["documents"])
    assert len(train) + len(val) == len(rows) - 8
    assert 0.04 < len(val) / len(rows) < 0.2
    assert not set(train) & set(val)
    kept = {r["id"]: r for r in rows if r not in dropped and r.get("text") != ""}
    assert set(train) | set(val) == set(kept)
    for id, tokens in {**train, **val}.items():
        if "text" in kept[id]:
            assert tokens == [*encoder.encode(kept[id]["text"]), encoder.end_of_text]
        else:
            assert tokens.count(encoder.special_id(IM_START)) == 3
            assert tokens[-1] == encoder.end_of_text
    assert outcome.counts["train_tokens"] == sum(map(len, train.values())) == account["train"]["tokens"]
    assert outcome.counts["dropped"] == 8


def test_the_split_of_a_record_does_not_depend_on_the_others(tmp_path, tokenizer_folder):
    rows = corpus()
    all_out, _ = run_source(tmp_path / "a", tokenizer_folder, rows)
    half_out, _ = run_source(tmp_path / "b", tokenizer_folder, rows[::-2])
    assert set(read_documents(half_out, "val")) <= set(read_documents(all_out, "val"))


def test_same_records_same_bytes_and_several_shards(tmp_path, tokenizer_folder, monkeypatch):
    monkeypatch.setattr(job, "ROWS_PER_SHARD", 40)
    monkeypatch.setattr(job, "BATCH_BYTES", 300)
    one, _ = run_source(tmp_path / "a", tokenizer_folder, corpus())
    monkeypatch.setattr(job, "BATCH_BYTES", 10**6)  # how texts are handed over changes nothing
    two, _ = run_source(tmp_path / "b", tokenizer_folder, corpus())
    names = sorted(path.name for path in one.iterdir())
    assert names == sorted(path.name for path in two.iterdir())
    assert len([name for name in names if name.startswith("train")]) > 2
    for name in names:
        assert (one / name).read_bytes() == (two / name).read_bytes(), name
    assert len(read_documents(one, "train")) + len(read_documents(one, "val")) == len(corpus())


def test_a_part_whose_records_are_all_dropped_or_empty(tmp_path, tokenizer_folder):
    rows = corpus()[:9]
    out, outcome = run_source(tmp_path, tokenizer_folder, [rows, [record("")], corpus()[9:20]], rows)
    account = json.loads((out / "accounting.json").read_text("utf-8"))
    assert account["dropped"] == {"drops": 9, "empty": 1}
    assert outcome.counts["train_documents"] + outcome.counts["val_documents"] == 11


def test_special_strings_in_a_web_page_do_not_end_its_document(tmp_path, tokenizer_folder, encoder):
    page = record("a page<|endoftext|>that tries<|im_start|>system\nto inject<|im_end|>")
    chat = dialogue("say <|im_end|>", "<|im_end|><|endoftext|>")
    out, _ = run_source(tmp_path, tokenizer_folder, [page, chat], val_share=0)
    found = read_documents(out, "train")
    assert found[page["id"]].count(encoder.end_of_text) == 1
    assert encoder.special_id(IM_START) not in found[page["id"]]
    assert found[chat["id"]].count(encoder.special_id(IM_END)) == 3


def test_an_empty_source_has_no_shards(tmp_path, tokenizer_folder, caplog):
    out, outcome = run_source(tmp_path, tokenizer_folder, [])
    assert [path.name for path in out.iterdir()] == ["accounting.json"]
    assert outcome.counts["records_in"] == 0
    assert "wiki has no training documents" in caplog.text


# ------------------------------------------------------------------------------------- parts
@pytest.fixture
def made(monkeypatch) -> list[str]:
    """The names of the parts that are tokenized."""
    seen: list[str] = []
    real = job.shared_encoder

    def watched(*args):
        frame = inspect.currentframe().f_back
        seen.append(Path(frame.f_locals["part"]).name)
        return real(*args)

    monkeypatch.setattr(job, "shared_encoder", watched)
    return seen


def in_parts(rows, size=150):
    return [rows[i : i + size] for i in range(0, len(rows), size)]


def shard_bytes(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.glob("*.arrow")}


def test_an_added_part_adds_shards_and_leaves_the_others_as_they_are(tmp_path, tokenizer_folder, made):
    parts = in_parts(corpus())
    few, _ = run_source(tmp_path, tokenizer_folder, parts[:2], parts[0][3:9])
    assert made == ["records-00000.jsonl", "records-00001.jsonl"]
    # the new part brings drops with it: no reason to do the others again
    all_of_them, _ = run_source(
        tmp_path, tokenizer_folder, parts, [*parts[0][3:9], *parts[2][:4]], again="-2"
    )
    assert made[2:] == ["records-00002.jsonl"]
    before, after = shard_bytes(few), shard_bytes(all_of_them)
    assert sorted(before) == ["train-00000.arrow", "train-00001.arrow", "val-00000.arrow", "val-00001.arrow"]
    assert set(after) - set(before) == {"train-00002.arrow", "val-00002.arrow"}
    assert all(after[name] == content for name, content in before.items())
    account = json.loads((all_of_them / "accounting.json").read_text("utf-8"))
    assert account["records_in"] == len(corpus())
    assert account["dropped"] == {"drops": 10, "empty": 0}
    train, val = read_documents(all_of_them, "train"), read_documents(all_of_them, "val")
    dropped = {r["id"] for r in [*parts[0][3:9], *parts[2][:4]]}
    assert set(train) | set(val) == {r["id"] for r in corpus()} - dropped
    assert account["train"]["tokens"] == sum(map(len, train.values()))  # none is lost at a part's end
    # a record that is dropped from the second part changes that part alone
    run_source(tmp_path, tokenizer_folder, parts, [*parts[0][3:9], *parts[2][:4], parts[1][0]], again="-3")
    assert made[3:] == ["records-00001.jsonl"]


def test_a_killed_node_goes_on_with_the_parts_that_are_left(tmp_path, tokenizer_folder, made, monkeypatch):
    parts = in_parts(corpus())
    whole, _ = run_source(tmp_path / "whole", tokenizer_folder, parts)
    made.clear()
    real = accounts.write

    def killed(out, account, *end):
        if len(made) == 2:
            raise KeyboardInterrupt
        real(out, account, *end)

    monkeypatch.setattr(accounts, "write", killed)
    with pytest.raises(KeyboardInterrupt):
        run_source(tmp_path, tokenizer_folder, parts)
    monkeypatch.setattr(accounts, "write", real)
    out, _ = run_source(tmp_path, tokenizer_folder, parts, again="-2")
    assert made == [
        "records-00000.jsonl",
        "records-00001.jsonl",
        "records-00001.jsonl",
        "records-00002.jsonl",
    ]
    assert shard_bytes(out) == shard_bytes(whole)


def test_one_part_or_one_file_is_the_same(tmp_path, tokenizer_folder):
    one, _ = run_source(tmp_path / "a", tokenizer_folder, corpus())
    job, _ = run_source(tmp_path / "b", tokenizer_folder, [corpus()])
    assert shard_bytes(one) == shard_bytes(job)


# ---------------------------------------------------------------------------------- manifest
def make_manifest(folder: Path, tokenizer_folder: Path, parts: dict[str, Path], weights=None) -> dict:
    config = manifest.Settings(block_size=BLOCK, weights=weights or {})
    ctx = context("tokenize:manifest", folder / "manifest", config, {**parts, "tokenizer": tokenizer_folder})
    manifest.body(ctx)
    return json.loads((ctx.out / "shards.json").read_text("utf-8"))


def test_weights_become_repeats_and_the_loader_sees_what_was_planned(tmp_path, tokenizer_folder):
    wiki, _ = run_source(tmp_path, tokenizer_folder, corpus())
    code, _ = run_source(
        tmp_path, tokenizer_folder, [record(f"x = {i}", "code") for i in range(99)], name="code"
    )
    found = make_manifest(tmp_path, tokenizer_folder, {"wiki": wiki, "code": code}, {"code": 3})
    rows = {name: found["sources"][name]["train"][0]["rows"] for name in ("wiki", "code")}
    assert found["sources"]["code"]["train"][0]["repeats"] == 3
    assert found["totals"]["epoch_blocks"] == rows["wiki"] + 3 * rows["code"]
    assert sum(s["share"] for s in found["sources"].values()) == pytest.approx(1, abs=1e-5)
    files = [
        {"path": folder / shard["file"], **{k: shard[k] for k in ("repeats", "rows", "digest", "extra_rows")}}
        for name, folder in (("wiki", wiki), ("code", code))
        for shard in found["sources"][name]["train"]
    ]
    loader = BlockLoader(files, seed=1, batch_size=1)
    assert loader.blocks_per_epoch == found["totals"]["epoch_blocks"]


@given(
    rows=st.lists(st.integers(1, 500), min_size=1, max_size=6),
    added=st.lists(st.integers(1, 500), max_size=3),
    weight=st.floats(0, 4).map(lambda w: round(w, 3)) | st.integers(0, 3),
)
def test_weights_resolve_exactly_and_added_shards_change_nothing(rows, added, weight):
    found = list(manifest.takes([*rows, *added], weight))
    assert found[: len(rows)] == list(manifest.takes(rows, weight))
    seen = []
    for count, (repeats, extra) in zip([*rows, *added], found, strict=True):
        times = repeats_of(count, repeats, extra)
        assert extra < count
        assert not extra or times[-1] == repeats  # the last row may be padded
        assert set(times) <= {repeats, repeats + 1}
        seen.append(times)
    total = sum(len(times) for times in seen)
    assert sum(times.sum() for times in seen) == floor(Fraction(str(weight)) * total + Fraction(1, 2))


def test_extra_rows_are_spread_evenly():
    times = repeats_of(1000, 2, 250)
    assert times.sum() == 2250
    assert (times.reshape(-1, 4) == [3, 2, 2, 2]).all()
    assert repeats_of(5, 0, 0).tolist() == [0] * 5


def test_a_fractional_weight_in_the_manifest(tmp_path, tokenizer_folder):
    wiki, _ = run_source(tmp_path, tokenizer_folder, in_parts(corpus()))
    found = make_manifest(tmp_path, tokenizer_folder, {"wiki": wiki}, {"wiki": 1.5})["sources"]["wiki"]
    rows = [shard["rows"] for shard in found["train"]]
    assert found["epoch_blocks"] == floor(1.5 * sum(rows) + 0.5)
    tokens = 0
    for shard in found["train"]:
        file = ShardFile(wiki / shard["file"])
        times = repeats_of(shard["rows"], shard["repeats"], shard["extra_rows"])
        tokens += sum(int(t) * file.read(i).valid for i, t in enumerate(times))
    assert found["epoch_tokens"] == tokens
    assert all((shard["repeats"], shard["extra_rows"]) == (1, 0) for shard in found["val"])


def test_shards_that_do_not_belong_are_refused(tmp_path, tokenizer_folder, cleaned):
    wiki, _ = run_source(tmp_path, tokenizer_folder, corpus())
    other = tmp_path / "other"
    other.mkdir()
    tokenizer.train(cleaned, str(other), SETTINGS.model_copy(update={"vocab_size": 300}))
    with pytest.raises(NodeError, match="wiki were made with another tokenizer"):
        make_manifest(tmp_path / "m1", other, {"wiki": wiki})
    with pytest.raises(NodeError, match=r"copy/train-00000.arrow has the same content as wiki/"):
        make_manifest(tmp_path / "m2", tokenizer_folder, {"wiki": wiki, "copy": wiki})
    with pytest.raises(NodeError, match="nothing to train on"):
        make_manifest(tmp_path / "m3", tokenizer_folder, {"wiki": wiki}, {"wiki": 0})


# ---------------------------------------------------------------------------------- the nodes
def steel_run(**tokenize) -> SteelRun:
    sources = {
        "wiki": Source(dataset="w", reader="wikipedia_cn"),
        "code": Source(dataset="c", reader="starcoder"),
        "chat": Source(dataset="s", reader="alpaca", use="sft"),
    }
    return SteelRun(profile="test", sources=sources, tokenize=Tokenize(**tokenize))


def test_nodes_and_their_inputs():
    made = {node.name: node for node in nodes(steel_run(weights={"code": 2}))}
    assert list(made) == ["tokenize:tokenizer", "tokenize:wiki", "tokenize:code", "tokenize:manifest"]
    assert made["tokenize:tokenizer"].inputs == {
        "wiki": "clean:wiki",
        "code": "clean:code",
        "decontaminate": "clean:decontaminate",
    }
    assert made["tokenize:wiki"].inputs["drops"] == "clean:decontaminate#wiki"
    assert made["tokenize:manifest"].config.weights == {"wiki": 1, "code": 2}
    assert "weights" not in canonical(made["tokenize:wiki"].config)  # another mix does not tokenize again
    folder = nodes(steel_run(tokenizer="folder"))[0]
    assert folder.inputs == {}
    with pytest.raises(NodeError, match="TOKENIZER="):
        folder.external()
    with pytest.raises(NodeError, match="no pre-training source: chat"):
        nodes(steel_run(weights={"chat": 2}))
    with pytest.raises(NodeError, match="0 or more: wiki"):
        nodes(steel_run(weights={"wiki": -0.5}))
    for bad in (inf, nan):
        with pytest.raises(ValidationError, match="wiki"):
            steel_run(weights={"wiki": bad})
    whole, fraction = (nodes(steel_run(weights={"wiki": w}))[-1].config.weights["wiki"] for w in (2.0, 0.5))
    assert (repr(whole), fraction) == ("2", 0.5)


def test_the_tokenizer_nodes_fill_their_folder(tmp_path, cleaned, tokenizer_folder):
    records, drops = (Path(path).parent for path in cleaned["wiki"])
    (tmp_path / "dropped").mkdir()
    (tmp_path / "dropped" / "wiki").symlink_to(drops)
    ctx = context(
        "tokenize:tokenizer",
        tmp_path / "t",
        SETTINGS,
        {"wiki": records, "decontaminate": tmp_path / "dropped"},
    )
    outcome = tokenizer.train_body(ctx)
    assert (ctx.out / "tokenizer.json").read_bytes() == (tokenizer_folder / "tokenizer.json").read_bytes()
    assert outcome.extra["tokenizer_digest"] == Encoder(ctx.out).digest
    taken = context("tokenize:tokenizer", tmp_path / "f", tokenizer.FolderSettings(), {})
    taken.runtime = Runtime(folders={"tokenizer": tokenizer_folder})
    assert tokenizer.folder_body(taken).counts["vocab_size"] == outcome.counts["vocab_size"]
