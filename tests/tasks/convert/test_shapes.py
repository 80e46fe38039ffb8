"""The shapes that JSON comes in beyond a value a line, and how many bytes are lost with what cannot be read."""

from __future__ import annotations

import gzip
import json
import tracemalloc

import pytest

from tasks.convert.formats import is_lines, json_items
from tasks.convert.json_documents import documents
from tasks.convert.lost import LostShare
from tasks.convert.values import parse
from tasks.convert.verdicts import Bad
from tasks.settings.errors import NodeError
from tests.support.convert import convert, jsonl
from tests.support.corpus import pretty

ROWS = [{"text": f'第{i}条, {{ "a": [1] }} \\ }}\n{{ 完'} for i in range(40)]
WRAPPED = {
    "one list": {"data": ROWS},
    "fields before and after": {"v": 1, "tags": ["{", "["], "n": [[1], [2]], "data": ROWS, "end": {"x": [1]}},
    "deeper": {"result": {"page": {"items": ROWS}}},
    "two lists": {"train": ROWS[:30], "info": {}, "test": ROWS[30:]},
    "an empty list first": {"none": [], "data": ROWS},
}


@pytest.mark.parametrize("name", WRAPPED)
@pytest.mark.parametrize("indent", [None, 1])
@pytest.mark.parametrize("limit", [300, 1 << 20])
def test_records_inside_an_object(tmp_path, name, indent, limit):
    """Whether it is small enough to be parsed whole or not, the same records come at the same positions."""
    path = tmp_path / "a.json"
    path.write_text(json.dumps(WRAPPED[name], ensure_ascii=False, indent=indent) + "\n", "utf-8")
    if limit > 300:
        done = convert(tmp_path, "skypile", {"a.json": path.read_bytes()})
        assert [r["text"] for r in done.records] == [row["text"] for row in ROWS]
        assert [r["meta"]["at"] for r in done.records] == [f"a.json:{i}" for i in range(1, 41)]
    else:
        assert [(at, value) for at, value, _ in json_items(path, limit)] == list(enumerate(ROWS, start=1))


def test_documents_at_every_chunk_size():
    body = pretty("a", '}\n{ "', "c\\") + b" " + json.dumps({"text": "d" * 90}).encode() + b"," + pretty("e")
    texts = ["a", '}\n{ "', "c\\", "d" * 90, "e"]
    for size in (*range(1, 12), 50, 10_000):
        chunks = [body[i : i + size] for i in range(0, len(body), size)]
        assert [value["text"] for _, value, _ in documents(iter(chunks), 1000, parse)] == texts


def test_a_record_with_a_list_of_objects_is_no_wrapper(tmp_path):
    """One dialogue a file, as MOSS comes; and a bad record among others is not taken apart."""
    chat = {"conversation": [{"human": "q", "assistant": "a"}]}
    done = convert(tmp_path / "moss", "moss", {"a.json": json.dumps(chat).encode()})
    assert len(done.records[0]["messages"]) == 2
    bad = {"parts": [{"text": "x"}, {"text": "y"}]}
    done = convert(tmp_path / "among", "skypile", {"a.jsonl": jsonl({"text": "a"}, bad)})
    assert done.reasons == [(2, "missing field")]
    assert done.quarantine[0]["detail"] == "text; there are: parts"


def test_memory_of_a_wrapper_on_one_line_is_bounded(tmp_path):
    path = tmp_path / "a.json"
    with path.open("wb") as file:
        file.write(b'{"version": 1, "data": [')
        for i in range(20_000):
            file.write(b'{"text": "%d %s"},' % (i, b"x" * 1000))
        file.write(b'{"text": "last"}]}')
    tracemalloc.start()
    count = sum(isinstance(value, dict) for _, value, _ in json_items(path, 100_000))
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert count == 20_001
    assert peak < 8_000_000


@pytest.mark.parametrize(
    ("body", "expected"),
    [
        (jsonl(*ROWS), True),
        (jsonl(*ROWS).replace(b"\n", b"\r\n"), True),
        (jsonl(*ROWS).replace(b"\n", b"\r"), False),
        (b'{"data": [\n' + jsonl(*ROWS).replace(b"\n", b",\n") + b"]}", False),
        (pretty("a", "b"), False),
        (b'{"text": "' + b"x" * (2 << 20) + b'"}\n', True),
    ],
)
def test_only_lines_may_be_cut(tmp_path, body, expected):
    (tmp_path / "a").write_bytes(body)
    assert is_lines(tmp_path / "a") is expected


# ------------------------------------------------------------------------------- bytes lost
GOOD = [{"text": f"{i} " + "x" * 40} for i in range(50)]
HUGE = b'{"text": "' + b"y" * 60_000 + b'"}'
NOISE = b'{"text": ' + b"z" * 6000 + b"}"


@pytest.mark.parametrize(
    ("name", "body"),
    [
        ("a.jsonl", jsonl(*GOOD, HUGE)),
        ("a.jsonl", jsonl(*GOOD, NOISE)),
        ("a.jsonl", jsonl(*GOOD, {"content": "y" * 6000})),
        ("a.json", b"[" + b",".join([*(json.dumps(g).encode() for g in GOOD), HUGE]) + b"]"),
        ("a.json", pretty(*(g["text"] for g in GOOD)) + b"{\n" + NOISE[1:-1] * 4),
        ("a.jsonl.gz", gzip.compress(jsonl(*GOOD, NOISE), mtime=0)),
    ],
)
def test_one_bad_line_with_most_of_the_bytes_stops_the_run(tmp_path, name, body):
    good = jsonl({"text": "sound"})
    with pytest.raises(
        NodeError, match=r"cannot be read, and with them [5-9]\d% of the bytes|no record is left"
    ):
        convert(tmp_path, "skypile", {name: body, "z.jsonl": good}, max_quarantined_share=0.5)


def test_bytes_lost_are_those_of_the_bad_lines_however_a_file_is_cut(tmp_path):
    body = jsonl(*GOOD, b"{bad", *GOOD[:3], {"text": None}, HUGE)
    lost = len(b"{bad") + len(b'{"text": null}') + len(HUGE)
    for number, job_bytes in enumerate((1 << 20, 500)):
        done = convert(tmp_path / str(number), "skypile", {"a.jsonl": body}, job_bytes=job_bytes)
        assert done.account["bytes_lost"] == lost


def test_lost_share_of_rows_and_of_what_follows_damage():
    share = LostShare(1000)
    for _ in range(3):
        share.read({"a": 1})
    share.lost(Bad("null field"), 4, {"a": None})
    assert share.bytes() == 250
    share.lost(Bad("unreadable file", size=300), 0, b"")
    assert share.bytes() == 550
    whole = LostShare(1000)
    whole.lost(Bad("unreadable file"), 0, b"")
    assert whole.bytes() == 1000
