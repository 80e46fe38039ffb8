"""Jobs, parts and uniqueness: however a source is cut, the result is the one of a single pass."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tasks.convert import job, join, readers, unique
from tasks.convert import jobs as plan
from tasks.convert.formats import is_lines, json_items, spans
from tasks.convert.source import at_once
from tasks.records import parts
from tasks.records.account import balance
from tasks.records.record import content, stable_id
from tasks.settings.errors import NodeError
from tasks.settings.paths import ROOT
from tasks.work import partitions
from tests.support.convert import convert, in_node, jsonl, lines

TEXTS = {"a.jsonl": 40, "b.jsonl": 3, "c.jsonl": 25}


def raw_files(repeat: int = 7) -> dict[str, bytes]:
    """Three files whose records repeat within a file and across files (an empty one is malformed)."""
    rng = random.Random(3)
    return {
        name: jsonl(*({"text": "x" * rng.randrange(1, repeat * n)} for _ in range(n)))
        + jsonl({"text": "in all of them"}, b"{broken", {"text": None})
        for name, n in TEXTS.items()
    }


def joined(folder: Path) -> bytes:
    return b"".join(path.read_bytes() for path in parts.parts(folder))


@pytest.mark.parametrize("cut", [{"part_bytes": 300}, {"job_bytes": 400}, {"job_bytes": 1, "part_bytes": 1}])
def test_a_cut_source_is_the_whole_source(tmp_path, monkeypatch, cut):
    files = raw_files(1)
    whole = convert(tmp_path / "whole", "skypile", files)
    monkeypatch.setattr(unique, "BUDGET", 5)  # from here on ids are compared by the engine, in ranges
    pieces = convert(tmp_path / "cut", "skypile", files, **cut)
    assert joined(tmp_path / "cut/out") == joined(tmp_path / "whole/out")
    assert len(parts.parts(tmp_path / "cut/out")) > 1
    assert pieces.account == whole.account
    assert pieces.account["dropped"]["duplicate-id"] > 3
    assert pieces.quarantine == whole.quarantine
    by_place = [sorted((d["at"], d["id"]) for d in each.dropped) for each in (whole, pieces)]
    assert by_place[0] == by_place[1]


def test_parts_keep_to_their_size(tmp_path):
    files = {"a.jsonl": jsonl(*({"text": f"{i}" * 50} for i in range(60)), {"text": "y" * 1900})}
    convert(tmp_path, "skypile", files, part_bytes=1000)
    sizes = [path.stat().st_size for path in parts.parts(tmp_path / "out")]
    assert len(sizes) > 5
    assert all(size <= 1000 for size in sizes[:-1])
    assert sizes[-1] > 1900  # the longer record is a part of its own
    assert [path.name for path in parts.parts(tmp_path / "out")][:2] == [
        "records-00000.jsonl",
        "records-00001.jsonl",
    ]


@settings(max_examples=40, deadline=None)
@given(
    body=st.lists(
        st.sampled_from([b'{"a": 1}', b"{", b"", b" \r", b'"' + b"x" * 90 + b'"', b"y" * 300, b"\xff"]),
        max_size=30,
    ).map(b"\n".join),
    bom=st.booleans(),
    size=st.integers(1, 200),
)
def test_spans_read_what_the_whole_file_reads(tmp_path_factory, body, bom, size):
    path = tmp_path_factory.mktemp("spans") / "a.jsonl"
    path.write_bytes((b"\xef\xbb\xbf" if bom else b"") + b'{"first": 1}\n' + body)
    found = spans(path, size)
    assert found[0].start == 3 * bom
    assert found[-1].end == path.stat().st_size
    assert all(a.end == b.start for a, b in zip(found, found[1:], strict=False))
    assert all(span.end - span.start >= size for span in found[:-1])
    apart = [item for span in found for item in json_items(path, 100, span)]
    assert apart == list(json_items(path, 100))


@pytest.mark.parametrize(
    ("body", "expected"),
    [(b'{"a": 1}\n', True), (b"\n\n{", True), (b" [1]", False), (b'{\n "a": 1}', False), (b"PAR1", False), (b"", False)],
)  # fmt: skip
def test_only_lines_are_cut(tmp_path, body, expected):
    (tmp_path / "a").write_bytes(body)
    assert is_lines(tmp_path / "a") is expected


def test_an_array_or_a_compressed_file_is_one_job_whatever_its_size(tmp_path):
    array = json.dumps([{"completion": f"{i}"} for i in range(99)]).encode()
    done = convert(tmp_path, "wikipedia_cn", {"w.json": array}, job_bytes=10)
    assert done.account["kept"] == 99
    assert len(parts.parts(tmp_path / "out")) == 1


def groups(tmp_path: Path, sizes: dict[str, int], job_bytes: int = 3200) -> list[list[str]]:
    for name, size in sizes.items():
        (tmp_path / name).write_bytes(b"1" * size)
    files = dict.fromkeys(sorted(sizes), "0")
    found = plan.jobs(tmp_path, files, readers.load("skypile"), job_bytes, lambda jobs: [])
    return [[p.file for p in group] for group in found]


def test_small_neighbours_share_a_job(tmp_path):
    sizes = {"a": 40, "b": 40, "c": 40, "d": 100, "e": 1, "f": 2000}
    assert groups(tmp_path, sizes) == [["a", "b"], ["c"], ["d"], ["e"], ["f"]]


def test_an_added_small_file_moves_few_borders(tmp_path, monkeypatch):
    monkeypatch.setattr(plan, "BORDER", 8)
    sizes = {f"{i:04d}": 20 + i % 7 for i in range(0, 1000, 2)}
    before = groups(tmp_path, sizes)
    after = groups(tmp_path, sizes | {"0333": 21})
    changed = [group for group in after if group not in before]
    assert 1 <= len(changed) <= 12
    assert sorted(sum(after, [])) == sorted([*sizes, "0333"])


# ------------------------------------------------------------------------------------- uniqueness
def ids_in(folder: Path, rows: list[int]) -> Path:
    folder.mkdir(parents=True)
    raw = bytearray(b"".join((n * 2654435761 % 2**32).to_bytes(4, "big") * 4 for n in rows))
    np.save(folder / job.IDS, job._sorted_ids(raw))
    return folder


@settings(max_examples=40, deadline=None)
@given(
    jobs=st.lists(st.lists(st.integers(0, 25), max_size=30), min_size=1, max_size=5),
    budget=st.integers(1, 60),
)
def test_repeats_are_those_of_a_set(tmp_path_factory, jobs, budget):
    place = tmp_path_factory.mktemp("ids")
    folders = [ids_in(place / str(n), rows) for n, rows in enumerate(jobs)]
    seen, expected = set(), []
    for rows in jobs:
        expected.append([i for i, n in enumerate(rows) if n in seen or n in rows[:i]])
        seen |= set(rows)
    assert [found.tolist() for found in unique.repeats(folders, budget)] == expected


def test_a_part_of_nothing_but_repeats_leaves_no_file(tmp_path):
    files = {"a.jsonl": jsonl({"text": "x"}, {"text": "y"}), "b.jsonl": jsonl({"text": "y"}, {"text": "x"})}
    done = convert(tmp_path, "skypile", files, job_bytes=1)
    assert [r["text"] for r in done.records] == ["x", "y"]
    assert all(path.stat().st_size for path in parts.parts(tmp_path / "out"))
    assert [d["at"] for d in done.dropped] == ["b.jsonl:1", "b.jsonl:2"]
    assert {d["id"] for d in done.dropped} == {r["id"] for r in done.records}


def test_repeats_are_counted_as_they_are_written(tmp_path, monkeypatch):
    """Rows beyond the part's end are nobody's: the sum of what lies on the disk is no longer that of the jobs."""
    files = {"a.jsonl": jsonl({"text": "x"}, {"text": "y"}, {"text": "x"})}
    real = join.without
    monkeypatch.setattr(join, "without", lambda path, rows, *places: real(path, rows + 1, *places))
    with pytest.raises(NodeError, match=r"3 \+ 0 records were written, not 2 \+ 1"):
        convert(tmp_path, "skypile", files)


def test_sums_that_disagree_end_the_node():
    balance("web", "records", 5, 3, dropped=1, quarantined=1)
    with pytest.raises(
        NodeError, match=r"web: 6 records came in, but 3 kept \+ 1 dropped \+ 1 quarantined are"
    ):
        balance("web", "records", 6, 3, dropped=1, quarantined=1)


# ------------------------------------------------------------------------------ kept between runs
@pytest.fixture
def made(tmp_path, monkeypatch):
    """Raw files in place; the list of jobs that are really run, as (function, files)."""
    (tmp_path / "raw").mkdir()
    for name, body in raw_files().items():
        (tmp_path / "raw" / name).write_bytes(body)
    log = []

    def make(root, key, function, args):
        log.append((function.__name__, [p.file for p in args[1]] if function is job.convert_pieces else []))
        if "fail" in log:
            raise KeyboardInterrupt
        return partitions_make(root, key, function, args)

    partitions_make = partitions.make
    monkeypatch.setattr(partitions, "make", make)
    monkeypatch.setattr("tasks.work.pool.submit", at_once)
    return log


def test_an_added_file_converts_itself_alone(tmp_path, made):
    in_node(tmp_path, 1)
    assert len(made) > 3
    made.clear()
    (tmp_path / "raw/bb.jsonl").write_bytes(jsonl({"text": "in all of them"}, {"text": "new"}))
    account, out = in_node(tmp_path, 2)
    assert {name for _, files in made for name in files} == {"bb.jsonl"}
    fresh = convert(
        tmp_path / "fresh", "skypile", {p.name: p.read_bytes() for p in (tmp_path / "raw").iterdir()}
    )
    assert [r["id"] for part in parts.parts(out) for r in lines(part)] == _ids_of_source(fresh, "s")
    assert account["kept"] == fresh.account["kept"]


def _ids_of_source(done, name):
    return [stable_id(name, content(record)).hex() for record in done.records]


def test_a_changed_setting_or_file_is_converted_again(tmp_path, made):
    in_node(tmp_path, 1)
    count = len(made)
    made.clear()
    in_node(tmp_path, 2)
    assert made == []
    in_node(tmp_path, 3, max_chars=1999)
    assert len([1 for name, _ in made if name == "convert_pieces"]) == count - 2  # the two cuts stay
    made.clear()
    body = (tmp_path / "raw/b.jsonl").read_bytes()
    (tmp_path / "raw/b.jsonl").write_bytes(body.replace(b"broken", b"other!"))
    in_node(tmp_path, 4)
    assert {name for _, files in made for name in files} == {"b.jsonl"}


def test_a_killed_convert_goes_on_with_the_jobs_left(tmp_path, made):
    program = subprocess.Popen([sys.executable, "-m", "tests.support.slow_convert", str(tmp_path)], cwd=ROOT)
    store = tmp_path / "convert/.partitions"
    end = time.monotonic() + 60
    while len(list(store.glob("*/done.json"))) < 4 and time.monotonic() < end:
        time.sleep(0.02)
    os.kill(program.pid, signal.SIGKILL)
    program.wait()
    before = {path.parent.name for path in store.glob("*/done.json")}
    assert len(before) >= 4
    account, out = in_node(tmp_path, 2)
    assert made
    after = {path.parent.name for path in store.glob("*/done.json")}
    assert len(made) == len(after - before)
    assert before < after
    fresh = convert(tmp_path / "fresh", "skypile", raw_files())
    assert account["kept"] == fresh.account["kept"]
    assert [r["text"] for part in parts.parts(out) for r in lines(part)] == [r["text"] for r in fresh.records]
    assert not list(store.glob("*.partial"))
