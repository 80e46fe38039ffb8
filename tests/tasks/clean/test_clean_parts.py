"""A source in parts: the same records as in one file, sums that agree, and only what is new is cleaned."""

import json
import logging
import os
import signal
import time

import pytest

from tasks.clean import source
from tasks.clean.recipe import load_set
from tasks.records import parts
from tasks.records.account import Accounting, StepCount, total
from tasks.settings.config import Runtime
from tasks.settings.errors import NodeError
from tasks.stage.node import Artifact, Context
from tasks.work import partitions, pool
from tests.support.inline import inline_pool  # noqa: F401
from tests.support.samples import dialogue, real_text, record, write

RECORDS = [
    *(record(real_text(seed)) for seed in range(40)),
    record("短"),
    dialogue("你好。", "<p>" + real_text(103) + "</p>"),
    record("<p>" + real_text(100) + "</p>"),
    record("#$%^" * 20),
    *(record(real_text(seed)) for seed in range(200, 220)),
]
RECIPES = {kind: recipe.steps for kind, recipe in load_set("steel").items()}


def clean(folder, pieces, models, out="out.partial", **runtime):
    for number, piece in enumerate(pieces):
        name = parts.name(number) if len(pieces) > 1 else "records.jsonl"
        write(folder / "convert" / name, piece)
    inputs = {
        "records": Artifact("convert:web", folder / "convert", "", "", {}),
        "assets": Artifact("clean:assets", models, "models", "", {}),
    }
    (folder / out).mkdir()
    config = source.Settings(recipes=RECIPES, trace_examples=2)
    log = logging.getLogger("test")
    ctx = Context("clean:web", folder / out, config, inputs, Runtime(**runtime), 1, log, None)
    return source.body(ctx)


def joined(folder):
    return {
        "records": b"".join(parts.lines(folder)),
        "dropped": b"".join(parts.lines(folder, "dropped")),
        "accounting": (folder / "accounting.json").read_bytes(),
        "examples": (folder / "examples.json").read_bytes(),
    }


@pytest.mark.usefixtures("inline_pool")
def test_parts_give_what_one_file_gives(models, tmp_path):
    clean(tmp_path / "one", [RECORDS], models)
    outcome = clean(tmp_path / "many", [RECORDS[:30], [], RECORDS[30:42], RECORDS[42:]], models)
    assert joined(tmp_path / "one" / "out.partial") == joined(tmp_path / "many" / "out.partial")
    assert len(parts.parts(tmp_path / "many" / "out.partial")) == 4
    assert outcome.counts["records_in"] == len(RECORDS)


@pytest.mark.usefixtures("inline_pool")
def test_a_new_part_is_all_that_is_cleaned(models, tmp_path, monkeypatch):
    cleaned = []
    make = partitions.make

    def counted(root, key, function, args):
        cleaned.append(args[0].name)
        make(root, key, function, args)

    monkeypatch.setattr(partitions, "make", counted)
    clean(tmp_path, [RECORDS[:30], RECORDS[30:42]], models)
    clean(tmp_path, [RECORDS[:30], RECORDS[30:42], RECORDS[42:]], models, "again.partial")
    assert cleaned == [parts.name(0), parts.name(1), parts.name(2)]
    before, after = tmp_path / "out.partial", tmp_path / "again.partial"
    assert (before / parts.name(0)).stat().st_ino == (after / parts.name(0)).stat().st_ino


def test_sums_of_parts_with_different_kinds():
    text = StepCount("length", "text", 5, 4, 1, 1, 50, 40)
    code = StepCount("tabs", "code", 2, 2, 0, 0, 20, 20)
    skipped = [{"recipe": "text", "operator": "perplexity_filter", "reason": "no model"}]
    both = Accounting("a", 7, 70, 6, 60, steps=[code, text], skipped=skipped)
    both.dropped["length"] = 1
    one = Accounting("a", 5, 50, 4, 40, steps=[text], skipped=skipped)
    one.dropped["length"] = 1
    whole = total("a", [one.as_json(), both.as_json(), one.as_json()])
    assert (whole["records_in"], whole["kept"], whole["dropped"]) == (17, 14, {"length": 3})
    assert [(s["recipe"], s["in"], s["changed"]) for s in whole["steps"]] == [("code", 2, 0), ("text", 15, 3)]
    assert whole["skipped"] == skipped
    assert total("a", [one.as_json()]) == one.as_json()
    with pytest.raises(NodeError, match="17 records came in"):
        total("a", [one.as_json(), both.as_json() | {"kept": 5}, one.as_json()])


@pytest.mark.slow
def test_a_killed_worker_costs_only_the_parts_it_was_at(models, tmp_path):
    pieces = [RECORDS[:20] + [record(f"{i}。" + real_text(i))] for i in range(6)]
    root = tmp_path / ".partitions"
    pool.shutdown()
    pool.configure(1)
    try:
        pool.submit(os.getpid).result()
        [worker] = pool._pool._processes
        killer = _kill_when(worker, lambda: len(list(root.glob("*/done.json"))) >= 2)
        with pytest.raises(
            NodeError, match=r"a worker process was killed; \d of 6 partitions are done and kept"
        ):
            clean(tmp_path, pieces, models)
        killer.join()
        done = {path: path.stat().st_mtime_ns for path in root.glob("*/done.json")}
        assert 2 <= len(done) < 6
        outcome = clean(tmp_path, pieces, models, "again.partial")
    finally:
        pool.shutdown()
        pool.configure(2)
    assert outcome.counts["records_in"] == sum(map(len, pieces))
    after = {path: path.stat().st_mtime_ns for path in root.glob("*/done.json")}
    assert len(after) == 6
    assert done.items() <= after.items()
    assert json.loads((tmp_path / "again.partial" / "accounting.json").read_text())["kept"] > 100


def _kill_when(pid, ready):
    import threading

    def watch():
        while not ready():
            time.sleep(0.002)
        os.kill(pid, signal.SIGKILL)

    thread = threading.Thread(target=watch)
    thread.start()
    return thread
