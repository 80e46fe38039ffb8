"""Malformed input goes to quarantine with reason and place; nothing stops and nothing goes missing."""

from __future__ import annotations

import errno
import gzip
import io
import json
import random
import tarfile

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tasks.convert.formats import parse
from tasks.convert.json_array import elements
from tasks.convert.tabular import parquet_rows
from tasks.convert.verdicts import Bad
from tasks.settings.errors import NodeError
from tests.support.convert import convert, jsonl

GOOD = {"text": "好"}
DEEP = b'{"text": ' + b"[" * 5000 + b"]" * 5000 + b"}"

LINES = [
    (b'{"text": "a"', "broken JSON"),
    (b'{"text": "a"} trailing', "broken JSON"),
    (b"{text: 'a'}", "broken JSON"),
    (b'{"text": NaN}', "null field"),
    (b'{"text": "\\ud83d"}', "lone surrogate"),
    (b'{"text": "a\tb"}', "broken JSON"),
    (b"\x00\x01\x02", "broken JSON"),
    (b'{"text": "\xff\xfe"}', "not UTF-8"),
    (b'{"text": "\xb0\xa1"}', "not UTF-8"),
    (DEEP, "nested too deeply"),
    (b"[1, 2]", "not an object"),
    (b'"text"', "not an object"),
    (b"12", "not an object"),
    (b"null", "null record"),
    (b"{}", "missing field"),
    (b'{"Text": "a"}', "missing field"),
    (b'{"text": null}', "null field"),
    (b'{"text": 12}', "wrong type"),
    (b'{"text": true}', "wrong type"),
    (b'{"text": ["a"]}', "wrong type"),
    (b'{"text": {"a": "b"}}', "wrong type"),
    (b'{"text": ""}', "empty text"),
    (b'{"text": " \\n\\t\\u3000"}', "empty text"),
    (b'{"text": "' + b"x" * 2001 + b'"}', "over-long record"),
    (b'{"text": "' + b"x" * 3_000_000 + b'"}', "over-long record"),
]


@pytest.mark.parametrize(("line", "reason"), LINES)
def test_bad_lines(tmp_path, line, reason):
    body = jsonl(GOOD, line, {"text": "后"})
    done = convert(tmp_path, "skypile", {"a.jsonl": body})
    assert [r["text"] for r in done.records] == ["好", "后"]
    assert done.reasons == [(2, reason)]
    assert done.quarantine[0]["file"] == "a.jsonl"
    assert len(done.quarantine[0]["excerpt"]) <= 200


@pytest.mark.parametrize(("element", "reason"), [case for case in LINES if case[0] != b"12"])
def test_bad_array_elements(tmp_path, element, reason):
    element = element.replace(b'"text"', b'"completion"')
    body = b'[{"completion": "a"},\n' + element + b',\n{"completion": "z"}, {"completion": "zz"}]'
    done = convert(tmp_path, "wikipedia_cn", {"w.json": body})
    texts = [r["text"] for r in done.records]
    assert texts[0] == "a"
    # what stands between a lost brace or quote and the next seam may go with it, never more
    assert texts[-1] == "zz"
    assert sum(done.account["quarantined"].values()) in (1, 2)
    if reason not in ("broken JSON", "over-long record", "null record"):
        assert done.account["quarantined"] == {reason: 1}


@pytest.mark.parametrize(
    ("body", "kept", "reasons"),
    [
        (b"\xef\xbb\xbf" + jsonl(GOOD, {"text": "b"}), 2, []),  # a BOM loses nothing
        (jsonl(GOOD).replace(b"\n", b"\r\n") + b"\r\n\n  \n", 1, []),
        (jsonl(GOOD)[:-1], 1, []),
        (jsonl(GOOD) + b'{"text": "cut of', 1, [(2, "broken JSON")]),
        (jsonl(b"x" * 3_000_000, GOOD), 1, [(1, "over-long record")]),
        (jsonl(GOOD) + b"x" * 3_000_000, 1, [(2, "over-long record")]),
    ],
)
def test_line_files(tmp_path, body, kept, reasons):
    done = convert(tmp_path, "skypile", {"a.jsonl": body})
    assert len(done.records) == kept
    assert done.reasons == reasons


@pytest.mark.parametrize(
    ("body", "kept", "reasons"),
    [
        (b"[]", 0, []),
        (b'[{"completion": "a"}', 1, []),
        (b'[{"completion": "a"}, {"completion": "b', 1, [(2, "truncated record")]),
        (b'[{"completion": "a"}] x', 1, [(2, "data after the array")]),
        (b'[{"completion": "a"},]', 1, []),
        (b'[{"completion": "a"}}, {"completion": "b"}]', 1, [(1, "broken JSON")]),
        (b'[{"completion": "a" {"completion": "b"}, {"completion": "c"}]', 1, [(1, "broken JSON")]),
        (b'[{"completion": "say "hi" now"}, {"completion": "b"}]', 1, [(1, "broken JSON")]),
        (b'[{"completion": "lost quote}, {"completion": "b"}, {"completion": "c"}]', 2, [(1, "broken JSON")]),
        (
            b'[1, "a", null, {"completion": "b"}]',
            1,
            [(1, "not an object"), (2, "not an object"), (3, "null record")],
        ),
    ],
)
def test_array_files(tmp_path, body, kept, reasons):
    files = {"w.json": body, "zz.json": b'[{"completion": "last"}]'}
    done = convert(tmp_path, "wikipedia_cn", files)
    assert len(done.records) == kept + 1
    assert done.reasons == reasons


def test_array_splitter_agrees_with_json_at_every_chunk_size():
    values = [
        {"a": 'quote " backslash \\ brace } bracket ] comma ,'},
        {"b": [1, {"c": [[]]}], "d": "中文\u3000\n"},
        [],
        {},
        "plain",
        -1.5e3,
        True,
        None,
        {"e": '\\"', "f": "\\\\"},
    ]
    body = json.dumps(values, ensure_ascii=False, indent=1).encode()
    for size in (*range(1, 12), 50, 10_000):
        chunks = [body[i : i + size] for i in range(0, len(body), size)]
        assert [value for _, value, _ in elements(iter(chunks), 1000, parse)] == values


def test_array_damage_stays_local():
    """Whatever single byte is damaged, at most two neighbours of the damaged element are lost."""
    values = [{"text": f'第{i}条, with {{braces}} and "quotes"'} for i in range(8)]
    body = json.dumps(values, ensure_ascii=False).encode()
    rng = random.Random(0)
    for _ in range(1500):
        at = rng.randrange(1, len(body) - 1)
        damaged = body[:at] + bytes([rng.choice(b'"{}[],\\x\x00\xff')]) + body[at + 1 :]
        chunks = [damaged[i : i + 37] for i in range(0, len(damaged), 37)]
        found = [v for _, v, _ in elements(iter(chunks), 5000, parse) if not isinstance(v, Bad)]
        whole = [v for v in found if v in values]
        assert len(whole) >= len(values) - 3, damaged
        assert len(found) <= len(values) + 1


def test_memory_of_a_long_array_is_bounded():
    import tracemalloc

    def chunks():
        yield b"["
        for i in range(20_000):
            yield b'{"completion": "%d %s"},' % (i, b"x" * 1000)
        yield b'{"completion": "last"}]'

    tracemalloc.start()
    count = sum(1 for _ in elements(chunks(), 100_000, parse))
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert count == 20_001
    assert peak < 1_000_000


def test_memory_of_a_huge_line_is_bounded(tmp_path):
    import tracemalloc

    path = tmp_path / "huge.jsonl"
    with open(path, "wb") as sink:
        sink.write(b'{"text": "')
        for _ in range(50):
            sink.write(b"x" * 1_000_000)
        sink.write(b'"}\n{"text": "after"}\n')
    from tasks.convert.formats import json_items

    tracemalloc.start()
    found = [(position, value) for position, value, _ in json_items(path, 1_000_000)]
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert found == [(1, Bad("over-long record")), (2, {"text": "after"})]
    assert peak < 10_000_000


def table(rows, **kwargs):
    sink = io.BytesIO()
    pq.write_table(pa.Table.from_pylist(rows), sink, **kwargs)
    return sink.getvalue()


ROWS = [{"INSTRUCTION": f"问{i}", "RESPONSE": f"答{i}", "METADATA": "{}"} for i in range(40)]


def test_bad_rows_of_parquet(tmp_path):
    rows = [dict(row) for row in ROWS[:4]]
    rows[1]["RESPONSE"] = None
    rows[2]["INSTRUCTION"] = ""
    done = convert(tmp_path, "zhihu", {"a.parquet": table(rows)})
    assert len(done.records) == 2
    assert done.reasons == [(2, "null field"), (3, "empty text")]


def test_truncated_and_empty_parquet(tmp_path):
    whole = table(ROWS)
    files = {"a.parquet": whole, "b.parquet": whole[:-200], "c.parquet": b"", "d.parquet": b"PAR1 no parquet"}
    done = convert(tmp_path, "zhihu", files)
    assert len(done.records) == 40
    assert [(q["file"], q["reason"]) for q in done.quarantine] == [
        ("b.parquet", "unreadable file"),
        ("c.parquet", "empty file"),
        ("d.parquet", "unreadable file"),
    ]


def test_a_damaged_row_group_costs_itself_only(tmp_path):
    whole = bytearray(table(ROWS, row_group_size=10, compression="zstd"))
    start = pq.ParquetFile(io.BytesIO(bytes(whole))).metadata.row_group(1).column(0).data_page_offset
    whole[start : start + 20] = b"\xff" * 20
    done = convert(tmp_path, "zhihu", {"a.parquet": bytes(whole)})
    assert len(done.records) == 30
    assert done.account["quarantined"] == {"damaged row group": 10}
    assert (done.quarantine[0]["position"], done.quarantine[0]["records"]) == (11, 10)


@pytest.mark.parametrize("at", ["opening", "reading"])
def test_an_error_of_the_disk_is_no_damage_of_the_table(tmp_path, monkeypatch, at):
    (tmp_path / "a.parquet").write_bytes(table(ROWS))
    real = pq.ParquetFile

    class Failing(real):
        def __init__(self, *args, **more):
            if at == "opening":
                raise OSError(errno.EIO, "Input/output error")
            super().__init__(*args, **more)

        def iter_batches(self, *args, **more):
            raise OSError(errno.EIO, "Input/output error")

    monkeypatch.setattr(pq, "ParquetFile", Failing)
    with pytest.raises(OSError, match="Input/output error") as raised:
        list(parquet_rows(tmp_path / "a.parquet", 1000))
    assert raised.value.errno == errno.EIO


def test_parquet_of_another_schema_and_of_bytes(tmp_path):
    bad_utf8 = pa.table(
        {"INSTRUCTION": pa.array([b"\xff\xfe", b"ok"]).cast(pa.binary()), "RESPONSE": ["a", "b"]}
    )
    column = pa.Array.from_buffers(pa.string(), 2, bad_utf8["INSTRUCTION"].chunk(0).buffers())
    sink = io.BytesIO()
    pq.write_table(bad_utf8.set_column(0, "INSTRUCTION", column), sink)
    files = {
        "a.parquet": sink.getvalue(),
        "b.parquet": table([{"INSTRUCTION": b"x", "RESPONSE": "y"}, {"other": 1}]),
    }
    done = convert(tmp_path, "zhihu", files)
    assert len(done.records) == 1
    assert [q["reason"] for q in done.quarantine] == ["not UTF-8", "wrong type", "null field"]


def test_compressed_and_truncated_archives(tmp_path):
    def lines(name):
        return jsonl(*({"id": str(i), "content": f"{name} {i}"} for i in range(200)))

    sink = io.BytesIO()
    with tarfile.open(fileobj=sink, mode="w:gz") as archive:
        for name in ("m1.jsonl", "m2.jsonl"):
            info = tarfile.TarInfo(name)
            info.size = len(lines(name))
            archive.addfile(info, io.BytesIO(lines(name)))
    noise = random.Random(0).randbytes(5000).hex().encode()
    cut = gzip.compress(jsonl({"id": "c", "content": "cut"}, noise))[:-500]
    files = {"a.jsonl.gz": gzip.compress(lines("a")), "b.jsonl.tar.gz": sink.getvalue(), "c.jsonl.gz": cut}
    done = convert(tmp_path, "wanjuan", files | {"d.jsonl.gz": b"not gzip"}, max_chars=100_000)
    assert done.account["kept"] in (600, 601)
    assert [q["reason"] for q in done.quarantine if q["file"] in ("c.jsonl.gz", "d.jsonl.gz")][-2:] == [
        "unreadable file",
        "unreadable file",
    ]


def test_empty_files_are_seen(tmp_path):
    done = convert(tmp_path, "skypile", {"a.jsonl": b"", "b.jsonl": b" \n\n", "c.jsonl": jsonl(GOOD)})
    assert [(q["file"], q["reason"]) for q in done.quarantine] == [
        ("a.jsonl", "empty file"),
        ("b.jsonl", "empty file"),
    ]


def test_too_much_quarantine_stops_with_a_summary(tmp_path):
    body = jsonl(GOOD, {"text": None}, b"{", {"text": None})
    with pytest.raises(NodeError) as error:
        convert(tmp_path, "skypile", {"a.jsonl": body}, max_quarantined_share=0.5)
    message = str(error.value)
    assert "3 of 4 records (75%)" in message
    assert "convert.max_quarantined_share = 50%" in message
    assert (
        'null field 2 (first: a.jsonl:2, text «{"text": null}»); broken JSON 1 (first: a.jsonl:3 «{»)'
        in message
    )
    assert str(tmp_path / "out/quarantine.jsonl") in message
    assert "\n" not in message
    convert(tmp_path, "skypile", {"a.jsonl": body}, max_quarantined_share=0.75)


def test_a_lost_file_counts_by_its_bytes(tmp_path):
    """One line of quarantine stands for all the rows that a file without its footer had."""
    files = {"a.parquet": table(ROWS), "b.parquet": table(ROWS)[:-50], "c.parquet": table(ROWS)}
    with pytest.raises(
        NodeError, match=r"1 of 81 records \(1%\) cannot be read, and with them 32% of the bytes"
    ):
        convert(tmp_path, "zhihu", files, max_quarantined_share=0.2)
    done = convert(tmp_path, "zhihu", files, max_quarantined_share=0.4)
    assert done.account["bytes_lost"] == len(files["b.parquet"])
    assert done.account["bytes_in"] == sum(map(len, files.values()))


def test_a_hole_in_a_reader_costs_one_record(tmp_path, monkeypatch):
    from tasks.convert.readers import Reader, skypile

    def convert_or_fail(item, options, file):
        if item["text"] == "b":
            raise failure
        return skypile.convert(item, options, file)

    monkeypatch.setattr(skypile, "READER", Reader(convert_or_fail))
    monkeypatch.setattr("tasks.convert.readers.load", lambda name: skypile.READER)
    files = {"a.jsonl": jsonl(GOOD, {"text": "b"}, {"text": "c"})}
    failure = OverflowError("\ud83d beyond")
    done = convert(tmp_path, "skypile", files)
    assert done.account["kept"] == 2
    assert done.reasons == [(2, "reader failed")]
    assert done.quarantine[0]["detail"] == "OverflowError: ? beyond"
    failure = OSError(28, "No space left on device")
    with pytest.raises(OSError, match="No space left"):
        convert(tmp_path, "skypile", files)


def test_nothing_left_and_no_files(tmp_path):
    with pytest.raises(NodeError, match="no record is left"):
        convert(tmp_path, "wikipedia_cn", {"a.json": b"[]"})
    with pytest.raises(NodeError, match=r"none of the 2 files is one for its reader \(\.parquet\)"):
        convert(tmp_path, "zhihu", {"b.jsonl": jsonl(GOOD)})


def test_duplicates_are_dropped_and_counted(tmp_path):
    files = {"a.jsonl": jsonl(GOOD, {"text": "b"}, GOOD), "b.jsonl": jsonl(GOOD)}
    done = convert(tmp_path, "skypile", files)
    assert [r["text"] for r in done.records] == ["好", "b"]
    assert done.account["dropped"] == {"duplicate-id": 2}
    assert (done.account["chars_in"], done.account["chars_out"]) == (4, 2)


def test_ids_are_stable_and_depend_on_content_only(tmp_path):
    first = convert(tmp_path / "1", "skypile", {"a.jsonl": jsonl({"text": "x", "other": 1})}).records[0]
    again = convert(tmp_path / "2", "skypile", {"z.jsonl": jsonl({"text": "y"}, {"text": "x"})}).records[1]
    assert first["id"] == again["id"]
    assert len(first["id"]) == 32
    assert (tmp_path / "1/out/records.jsonl").read_bytes()[:6] == b'{"id":'


def test_same_input_same_bytes(tmp_path):
    files = {f"{i}.jsonl": jsonl({"text": f"t{i}"}, b"{", {"text": None}) for i in range(5)}
    for where in ("1", "2"):
        convert(tmp_path / where, "skypile", dict(reversed(files.items())) if where == "2" else files)
    names = ("records.jsonl", "quarantine.jsonl", "dropped.jsonl", "accounting.json", "examples.json")
    for name in names:
        assert (tmp_path / "1/out" / name).read_bytes() == (tmp_path / "2/out" / name).read_bytes()
