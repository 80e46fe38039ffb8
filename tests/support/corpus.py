"""A corpus of malformed inputs, made from tables of named mutations of sound ones.

Every case is one source of one or two files. It says which of the sound records must survive and what
must lie in quarantine: (position, reason) pairs, in order. Nothing else may happen.
"""

from __future__ import annotations

import gzip
import io
import json
import random
import tarfile
import zipfile
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

MAX_CHARS = 2000
OVER = 12 * MAX_CHARS + (1 << 16) + 1
"""Bytes of a line that is over the limit whatever is in it."""


@dataclass(frozen=True)
class Case:
    """One malformed source."""

    name: str
    reader: str
    files: dict[str, bytes]
    kept: int
    reasons: list[tuple[int, str]] = field(default_factory=list)
    options: dict[str, Any] = field(default_factory=dict)


def lines(*items: bytes) -> bytes:
    return b"".join(item + b"\n" for item in items)


def array(*items: bytes) -> bytes:
    return b"[" + b",\n".join(items) + b"]"


def pretty(*texts: str) -> bytes:
    """Objects of several lines each, one after another."""
    return b"".join(json.dumps({"text": text, "x": {"y": 1}}, indent=2).encode() + b"\n" for text in texts)


def zstd(body: bytes) -> bytes:
    sink = pa.BufferOutputStream()
    with pa.CompressedOutputStream(sink, "zstd") as stream:
        stream.write(body)
    return sink.getvalue().to_pybytes()


def tar_gz(**members: bytes) -> bytes:
    sink = io.BytesIO()
    with tarfile.open(fileobj=sink, mode="w:gz") as archive:
        for name, body in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(body)
            archive.addfile(info, io.BytesIO(body))
    return sink.getvalue()


def parquet(rows: Any, **kwargs: Any) -> bytes:
    sink = io.BytesIO()
    pq.write_table(rows if isinstance(rows, pa.Table) else pa.Table.from_pylist(rows), sink, **kwargs)
    return sink.getvalue()


A, Z = b'{"text": "\xe7\x94\xb2"}', b'{"text": "\xe4\xb9\x99"}'

# ----------------------------------------------------------------- one bad line among good ones
# name -> (line, reason); "" = it is kept
LINES: dict[str, tuple[bytes, str]] = {
    "unclosed object": (b'{"text": "a"', "broken JSON"),
    "unclosed string": (b'{"text": "a', "broken JSON"),
    "trailing words": (b'{"text": "a"} and more', "broken JSON"),
    "two objects on a line, one broken": (b'{"text": "a"}{"text": b}', "broken JSON"),
    "an object and a list on a line": (b'{"text": "a"}["b"]', "broken JSON"),
    "a comma after the object": (b'{"text": "a"}, ', ""),
    "a mark within the file": (b'\xef\xbb\xbf{"text": "a"}', ""),
    "single quotes": (b"{'text': 'a'}", "broken JSON"),
    "bare key": (b'{text: "a"}', "broken JSON"),
    "trailing comma": (b'{"text": "a",}', "broken JSON"),
    "comment": (b'{"text": "a" /* why */}', "broken JSON"),
    "Python's None": (b'{"text": "a", "x": None}', "broken JSON"),
    "Python's True": (b'{"text": "a", "x": True}', "broken JSON"),
    "hexadecimal": (b'{"text": "a", "x": 0xff}', "broken JSON"),
    "leading zeros": (b'{"text": "a", "x": 007}', "broken JSON"),
    "raw tab in a string": (b'{"text": "a\tb"}', "broken JSON"),
    "raw NUL in a string": (b'{"text": "a\x00b"}', "broken JSON"),
    "bad escape": (b'{"text": "\\x41"}', "broken JSON"),
    "cut escape": (b'{"text": "\\u12"}', "broken JSON"),
    "HTML error page": (b"<html><body>404</body></html>", "broken JSON"),
    "separator line": (b"-----", "broken JSON"),
    "binary": (b"\x00\x01\x02\x03", "broken JSON"),
    "Latin-1": ('{"text": "café"}'.encode("latin-1"), "not UTF-8"),
    "GB18030": ('{"text": "中文"}'.encode("gb18030"), "not UTF-8"),
    "Shift-JIS": ('{"text": "日本語"}'.encode("shift-jis"), "not UTF-8"),
    "cut UTF-8": (b'{"text": "\xe4\xb8"}', "not UTF-8"),
    "overlong UTF-8": (b'{"text": "\xc0\xaf"}', "not UTF-8"),
    "UTF-8 surrogate": (b'{"text": "\xed\xa0\xbd"}', "not UTF-8"),
    "lone high surrogate": (b'{"text": "\\ud83d"}', "lone surrogate"),
    "lone low surrogate": (b'{"text": "a", "x": ["\\ude00"]}', "lone surrogate"),
    "surrogate in a key": (b'{"text": "a", "\\ud83d": 1}', "lone surrogate"),
    "NaN as the text": (b'{"text": NaN}', "null field"),
    "NaN beside the text": (b'{"text": "a", "score": NaN, "s": [Infinity, -Infinity]}', ""),
    "NaN within broken JSON": (b'{"text": NaN', "broken JSON"),
    "duplicate keys, last sound": (b'{"text": null, "text": "a"}', ""),
    "duplicate keys, last null": (b'{"text": "a", "text": null}', "null field"),
    "integer of 100 digits": (b'{"text": "a", "x": ' + b"9" * 100 + b"}", ""),
    "integer of 5000 digits": (b'{"text": "a", "x": ' + b"9" * 5000 + b"}", "broken JSON"),
    "float overflow": (b'{"text": "a", "x": 1e999}', ""),
    "deep lists": (b'{"text": "a", "x": ' + b"[" * 3000 + b"]" * 3000 + b"}", "nested too deeply"),
    "deep objects": (b'{"x":' * 3000 + b"1" + b"}" * 3000, "nested too deeply"),
    "deep lists, never closed": (b'{"text": "a", "x": ' + b"[" * 3000, "nested too deeply"),
    "deep lists with NaN": (b'{"text": NaN, "x": ' + b"[" * 3000 + b"]" * 3000 + b"}", "nested too deeply"),
    "a list": (b'["text", "a"]', "not an object"),
    "a string": (b'"text"', "not an object"),
    "a number": (b"12", "not an object"),
    "true": (b"true", "not an object"),
    "null": (b"null", "null record"),
    "no field": (b"{}", "missing field"),
    "field of another case": (b'{"Text": "a"}', "missing field"),
    "field with a space": (b'{"text ": "a"}', "missing field"),
    "null as text": (b'{"text": null}', "null field"),
    "number as text": (b'{"text": 12}', "wrong type"),
    "boolean as text": (b'{"text": false}', "wrong type"),
    "list as text": (b'{"text": ["a"]}', "wrong type"),
    "object as text": (b'{"text": {"a": "b"}}', "wrong type"),
    "empty text": (b'{"text": ""}', "empty text"),
    "blank text": (b'{"text": " \\n\\t\\u3000\\u00a0"}', "empty text"),
    "NUL escaped": (b'{"text": "a\\u0000b"}', ""),
    "carriage return escaped": (b'{"text": "a\\r\\nb"}', ""),
    "more characters than allowed": (b'{"text": "' + b"x" * (MAX_CHARS + 1) + b'"}', "over-long record"),
    "more bytes than allowed": (b'{"text": "' + b"x" * OVER + b'"}', "over-long record"),
    "one field over the byte limit": (b'{"text": "a", "x": "' + b"x" * OVER + b'"}', "over-long record"),
}


def line_cases() -> Iterator[Case]:
    """Each bad line as the second of three: in JSON lines, and in the same gzipped and zstd-compressed."""
    for name, (line, reason) in LINES.items():
        body = lines(A, line, Z)
        kept, reasons = (2, [(2, reason)]) if reason else (3, [])
        yield Case(f"line: {name}", "skypile", {"a.jsonl": body}, kept, reasons)
        if len(line) < 1000:
            yield Case(f"gzip line: {name}", "skypile", {"a.jsonl.gz": gzip.compress(body)}, kept, reasons)
            yield Case(f"zstd line: {name}", "skypile", {"a.jsonl.zst": zstd(body)}, kept, reasons)


# ---------------------------------------------------------------- one bad element in a JSON array
# in an array a lost quote or brace may take its neighbour along, and a bare value is cut at its commas
ELEMENTS_APART = {
    "unclosed object", "unclosed string", "two objects on a line, one broken", "trailing words", "single quotes",
    "deep lists, never closed", "NaN within broken JSON", "cut UTF-8", "Shift-JIS", "a mark within the file",
    "an object and a list on a line", "a comma after the object",
}  # fmt: skip


def element_cases() -> Iterator[Case]:
    for name, (line, reason) in LINES.items():
        if name in ELEMENTS_APART:
            continue
        items = [item.replace(b'"text"', b'"completion"') for item in (A, line, Z)]
        kept, reasons = (2, [(2, reason)]) if reason else (3, [])
        if name in ("a string",):  # the replaced word is the string
            items[1] = line
        yield Case(f"element: {name}", "wikipedia_cn", {"w.json": array(*items)}, kept, reasons)
    a, z = (item.replace(b'"text"', b'"completion"') for item in (A, Z))
    cut = array(a, z)[:-12]
    broken = {
        "array without its end": (b"[" + a + b"," + z, 2, []),
        "array cut in a record": (cut, 1, [(2, "truncated record")]),
        "array with a trailing comma": (b"[" + a + b"," + z + b",]", 2, []),
        "array with a leading comma": (b"[," + a + b"," + z + b"]", 2, []),
        "array and words after it": (array(a, z) + b" end", 2, [(3, "data after the array")]),
        "two arrays": (array(a) + array(z), 2, []),
        "two arrays on lines": (array(a) + b"\n" + array(z), 2, []),
        "an array and an object": (array(a) + z, 1, [(2, "data after the array")]),
        "array of arrays": (array(array(a), z), 1, [(1, "not an object")]),
        "empty array": (b"[]", 0, []),
        "lone bracket": (b"[", 0, []),
        "brackets only": (b"[" * 3000, 0, [(1, "truncated record")]),
        "array with NUL bytes between": (b"[" + a + b",\0\0," + z + b"]", 2, [(2, "broken JSON")]),
        "two braces too many": (b"[" + a + b"}}," + z + b"]", 1, [(1, "broken JSON")]),
        "a comma forgotten": (b"[" + a + b" " + z + b"," + a[:-2] + b'!"}]', 1, [(1, "broken JSON")]),
        "a quote too many": (b'[{"completion": "say "hi""}, ' + z + b"]", 1, [(1, "broken JSON")]),
        "a quote forgotten": (b'[{"completion": "a}, ' + z + b"," + a + b"]", 2, [(1, "broken JSON")]),
        "BOM before the array": (b"\xef\xbb\xbf" + array(a, z), 2, []),
        "array after empty lines": (b"\n \r\n" + array(a, z), 2, []),
    }
    for name, (body, kept, reasons) in broken.items():
        files = {"w.json": body, "x.json": array(b'{"completion": "last"}')}
        yield Case(name, "wikipedia_cn", files, kept + 1, reasons)


# -------------------------------------------------------------------- every field, every wrong type
VALUES: dict[str, tuple[Any, str]] = {
    "missing": (..., "missing field"),
    "null": (None, "null field"),
    "number": (7, "wrong type"),
    "boolean": (True, "wrong type"),
    "list": (["a"], "wrong type"),
    "object": ({"a": "b"}, "wrong type"),
    "empty": ("", "empty text"),
    "blank": (" \u3000", "empty text"),
}
TURNS = [{"from": "human", "value": "q"}, {"from": "gpt", "value": "a"}]
GOOD: dict[str, tuple[dict[str, Any], list[str]]] = {
    "wanjuan": ({"id": "1", "content": "t"}, ["content"]),
    "baidu_baike": ({"title": "t", "summary": "s", "sections": []}, ["title"]),
    "baidu_qa": ({"title": "t", "desc": "d", "answer": "a"}, ["title", "answer"]),
    "belle_2m": ({"instruction": "q", "input": "", "output": "a"}, ["instruction", "output"]),
    "firefly": ({"kind": "k", "input": "q", "target": "a"}, ["input", "target"]),
    "webinstruct": ({"question": "q", "answer": "a"}, ["question", "answer"]),
    "ruozhiba": ({"instruction": "q", "output": "a"}, ["instruction", "output"]),
    "self_cognition": ({"instruction": "q", "output": "{{name}}"}, ["instruction", "output"]),
    "ultrafeedback_zh": (
        {"instruction": "q", "chosen_response": "a", "rejected_response": "b"},
        ["instruction", "chosen_response", "rejected_response"],
    ),
    "logiqa": ({"text": "t", "question": "q", "options": ["a", "b"], "answer": 0}, ["text", "question"]),
}


def field_cases() -> Iterator[Case]:
    for reader, (good, fields) in GOOD.items():
        for key in fields:
            for what, (value, reason) in VALUES.items():
                bad = {k: v for k, v in good.items() if k != key or value is not ...}
                if value is not ...:
                    bad[key] = value
                body = lines(json.dumps(bad).encode(), json.dumps(good).encode())
                yield Case(f"{reader}.{key}: {what}", reader, {"a.jsonl": body}, 1, [(1, reason)])


# --------------------------------------------------------------------------------------- whole files
def file_cases() -> Iterator[Case]:
    sound, rows = lines(A, Z), [{"INSTRUCTION": f"q{i}", "RESPONSE": f"a{i}"} for i in range(40)]
    many = lines(*(b'{"text": "%d"}' % i for i in range(3000)))
    noise = random.Random(1).randbytes(3000)
    late = lines(*(b'{"text": "%s"}' % random.Random(i).randbytes(300).hex().encode() for i in range(300)))
    zipped = io.BytesIO()
    with zipfile.ZipFile(zipped, "w") as archive:
        archive.writestr("a.jsonl", sound)
    whole = {"z.jsonl": lines(b'{"text": "last"}')}
    for name, file, body, kept, reasons in (
        ("empty file", "a.jsonl", b"", 0, [(0, "empty file")]),
        ("blank file", "a.jsonl", b" \n\r\n\t\n", 0, [(0, "empty file")]),
        ("BOM only", "a.jsonl", b"\xef\xbb\xbf", 0, [(0, "empty file")]),
        ("BOM", "a.jsonl", b"\xef\xbb\xbf" + sound, 2, []),
        ("CRLF", "a.jsonl", sound.replace(b"\n", b"\r\n"), 2, []),
        ("CR only", "a.jsonl", sound.replace(b"\n", b"\r"), 2, []),
        ("CR only, one bad", "a.jsonl", lines(A, b"{bad", Z).replace(b"\n", b"\r"), 2, [(2, "broken JSON")]),
        ("CR only, without the last", "a.jsonl", sound[:-1].replace(b"\n", b"\r"), 2, []),
        ("CR and LF mixed", "a.jsonl", lines(A + b"\r" + Z, b'{"text": "c"}'), 3, []),
        ("two objects on a line", "a.jsonl", lines(A + Z, b'{"text": "c"}'), 3, []),
        ("all objects on one line", "a.jsonl", A + Z + b" " + b'{"text": "c"}', 3, []),
        ("no newline at the end", "a.jsonl", sound[:-1], 2, []),
        ("cut in the last line", "a.jsonl", sound[:-3], 1, [(2, "broken JSON")]),
        ("cut in a character", "a.jsonl", sound[:-5], 1, [(2, "not UTF-8")]),
        ("empty lines between", "a.jsonl", sound.replace(b"\n", b"\n\n \n"), 2, []),
        ("NUL after the end", "a.jsonl", sound + b"\0" * 100, 2, [(3, "broken JSON")]),
        ("UTF-16", "a.jsonl", sound.decode().encode("utf-16"), 0, [(0, "not UTF-8")]),
        ("UTF-16 without a mark", "a.jsonl", b'{"text": "a"}\n'.decode().encode("utf-16-le"), 0,
         [(1, "broken JSON"), (2, "broken JSON")]),
        ("gzip named .jsonl", "a.jsonl", gzip.compress(sound), 2, []),
        ("zstd named .jsonl", "a.jsonl", zstd(sound), 2, []),
        ("zstd named .gz", "a.jsonl.gz", zstd(sound), 2, []),
        ("JSON lines named .gz", "a.jsonl.gz", sound, 0, [(0, "unreadable file")]),
        ("JSON lines named .zst", "a.jsonl.zst", sound, 0, [(0, "unreadable file")]),
        ("JSON lines named .tar.gz", "a.tar.gz", sound, 0, [(0, "unreadable file")]),
        ("gzip that is no tar", "a.tar.gz", gzip.compress(sound), 0, [(0, "unreadable file")]),
        ("JSON array named .jsonl", "a.jsonl", array(A, Z), 2, []),
        ("pretty-printed object", "a.json", json.dumps({"text": "a", "x": 1}, indent=2).encode(), 1, []),
        ("pretty-printed and cut", "a.json", json.dumps({"text": "a", "x": 1}, indent=2).encode()[:-4], 0,
         [(1, "truncated record")]),
        ("several pretty-printed objects", "a.json", pretty("a", "b", "c"), 3, []),
        ("several, with CRLF", "a.json", pretty("a", "b").replace(b"\n", b"\r\n"), 2, []),
        ("several, with CR only", "a.json", pretty("a", "b").replace(b"\n", b"\r"), 2, []),
        ("several with commas between", "a.json", pretty("a", "b").replace(b"}\n{", b"},\n{"), 2, []),
        ("several, glued", "a.json", pretty("a", "b").replace(b"}\n{", b"}{"), 2, []),
        ("several, one broken", "a.json", pretty("a") + b'{\n  "text": b\n}\n' + pretty("c"), 2,
         [(2, "broken JSON")]),
        ("several, one not closed", "a.json", pretty("a")[:-2] + pretty("b", "c").replace(b"}\n{", b"}\n\n{"), 2,
         [(1, "broken JSON")]),
        ("several, a quote lost", "a.json", pretty("a").replace(b'"a"', b'"a') + pretty("b", "c"), 2,
         [(1, "broken JSON")]),
        ("several, words between", "a.json", pretty("a") + b"and\n" + pretty("b"), 2, [(2, "broken JSON")]),
        ("an object around its records", "a.json", b'{"data": ' + array(A, Z) + b"}", 2, []),
        ("around them, with other fields", "a.json", b'{"v": 1, "l": ["x"], "rows": ' + array(A, Z) + b', "n": 2}', 2,
         []),
        ("around them, pretty-printed", "a.json", json.dumps({"RECORDS": [{"text": "a"}, {"text": "b"}]}, indent=1)
         .encode(), 2, []),
        ("around them, a record a line", "a.json", b'{"data": [\n' + A + b",\n" + Z + b"\n]}\n", 2, []),
        ("around one record on a line", "a.json", b'{"data": [\n' + A + b"\n]}", 1, []),
        ("two objects deep", "a.json", b'{"code": 0, "result": {"items": ' + array(A, Z) + b"}}", 2, []),
        ("records by their keys", "a.json", b'{"0": ' + A + b', "1": ' + Z + b"}", 2, []),
        ("lists of records by split", "a.json", b'{"train": ' + array(A, Z) + b', "test": [{"text": "c"}]}', 3, []),
        ("around them, one bad", "a.json", b'{"data": [' + A + b', {"text": null}, ' + Z + b"]}", 2,
         [(2, "null field")]),
        ("around them, gzipped", "a.json.gz", gzip.compress(b'{"data": ' + array(A, Z) + b"}"), 2, []),
        ("around nothing", "a.json", b'{"data": []}', 0, [(1, "missing field")]),
        ("around something else", "a.json", b'{"data": [{"name": "x"}]}', 0, [(1, "missing field")]),
        ("parquet named .jsonl", "a.jsonl", parquet(rows), 0, [(0, "unreadable file")]),
        ("zip named .json", "a.json", zipped.getvalue(), 0, [(0, "unreadable file")]),
        ("CSV named .json", "a.json", b"text,x\na,1\n", 0, [(1, "broken JSON"), (2, "broken JSON")]),
        ("bzip2 named .json", "a.json", b"BZh91AY&SY" + noise, 0, [(0, "unreadable file")]),
        ("xz named .json", "a.json", b"\xfd7zXZ\0" + noise, 0, [(0, "unreadable file")]),
        ("gzip twice", "a.jsonl.gz", gzip.compress(gzip.compress(sound)), 0, [(0, "unreadable file")]),
        ("empty gzip file", "a.jsonl.gz", b"", 0, [(0, "unreadable file")]),
        ("gzip of nothing", "a.jsonl.gz", gzip.compress(b""), 0, [(0, "empty file")]),
        ("gzip cut in its head", "a.jsonl.gz", gzip.compress(sound)[:6], 0, [(0, "unreadable file")]),
        ("gzip with a wrong checksum", "a.jsonl.gz", gzip.compress(sound)[:-8] + b"\0" * 8, 2,
         [(0, "unreadable file")]),
        ("gzip with words after it", "a.jsonl.gz", gzip.compress(many) + b"words", 3000,
         [(0, "unreadable file")]),
        ("two gzip members", "a.jsonl.gz", gzip.compress(A + b"\n") + gzip.compress(Z + b"\n"), 2, []),
        ("zstd cut in its head", "a.jsonl.zst", zstd(sound)[:5], 0, [(0, "unreadable file")]),
        ("zstd cut at its end", "a.jsonl.zst", zstd(sound)[:-3], 0, [(0, "unreadable file")]),
        ("zstd with words after it", "a.jsonl.zst", zstd(sound) + b"words", 0, [(0, "unreadable file")]),
        ("empty zstd file", "a.jsonl.zst", b"", 0, [(0, "unreadable file")]),
        ("tar with an empty member", "a.tar.gz", tar_gz(a=sound, b=b"", c=lines(b'{"text": "c"}')), 3,
         [(2, "empty file")]),
        ("tar with a bad member", "a.tar.gz", tar_gz(a=sound, b=b"no\n", c=lines(b'{"text": "c"}')), 3,
         [(3, "broken JSON")]),
        ("tar of nothing", "a.tar.gz", tar_gz(), 0, []),
    ):  # fmt: skip
        yield Case(name, "skypile", {file: body, **whole}, kept + 1, reasons)
    # what was read before the damage stays; its end is one line of quarantine
    for name, file, body in (
        ("gzip cut in the middle", "a.jsonl.gz", gzip.compress(late)),
        ("zstd cut in the middle", "a.jsonl.zst", zstd(late)),
        ("tar cut in the middle", "a.tar.gz", tar_gz(a=late)),
    ):
        yield Case(name, "skypile", {file: body[: len(body) // 2], **whole}, -1, [(0, "unreadable file")])


# ------------------------------------------------------------------------------------------- tables
def parquet_cases() -> Iterator[Case]:
    rows = [{"INSTRUCTION": f"q{i}", "RESPONSE": f"a{i}", "METADATA": "{}"} for i in range(40)]
    sound = parquet(rows)
    table = pa.Table.from_pylist(rows[:2])
    bad_utf8 = pa.Array.from_buffers(pa.string(), 2, pa.array([b"\xff\xfe", b"ok"]).buffers())
    deep = pa.array([None, None], _nested(60))
    wrong = {
        "null column": pa.nulls(2),
        "integers": pa.array([1, 2]),
        "floats with NaN": pa.array([float("nan"), float("inf")]),
        "booleans": pa.array([True, False]),
        "bytes": pa.array([b"a", b"b"]),
        "lists": pa.array([["a"], ["b"]]),
        "structs": pa.array([{"a": 1}, {"a": 2}]),
        "decimals": pa.array([1, 2]).cast(pa.decimal128(38, 2)),
        "times": pa.array([1, 2]).cast(pa.timestamp("ms")),
        "deep lists": deep,
    }
    for name, column in wrong.items():
        reason = "null field" if name in ("null column", "deep lists") else "wrong type"
        body = parquet(table.set_column(1, "RESPONSE", column))
        yield _table(f"parquet column of {name}", body, 0, [(1, reason), (2, reason)])
    years = pa.array([2**50, 0]).cast(pa.timestamp("ms"))
    halves = pa.array([rows[0]["RESPONSE"], None])
    for name, body, kept, reasons in (
        ("invalid UTF-8", parquet(table.set_column(1, "RESPONSE", bad_utf8)), 1, [(1, "not UTF-8")]),
        ("one null", parquet(table.set_column(1, "RESPONSE", halves)), 1, [(2, "null field")]),
        ("a column missing", parquet(table.drop_columns(["RESPONSE"])), 0, [(1, "missing field")] * 2),
        ("columns of another case", parquet(table.rename_columns(["instruction", "response", "m"])), 0,
         [(1, "missing field")] * 2),
        ("a date beyond Python's", parquet(table.append_column("when", years)), 1, [(1, "unreadable value")]),
        ("a dictionary column", parquet(table.set_column(
            1, "RESPONSE", table["RESPONSE"].combine_chunks().dictionary_encode())), 2, []),
        ("a large string column", parquet(table.set_column(
            1, "RESPONSE", table["RESPONSE"].cast(pa.large_string()))), 2, []),
        ("no rows", parquet(table.slice(0, 0)), 0, []),
        ("no columns", parquet(pa.table({})), 0, []),
        ("metadata that is no JSON", parquet(table.set_column(2, "METADATA", pa.array(["{", "[1]"]))), 2, []),
        ("votes beyond measure", parquet(table.set_column(
            2, "METADATA", pa.array(['{"upvotes": "赞同 ' + "9" * 400 + '"}', '{"upvotes": 1e308}']))), 2, []),
        ("an empty file", b"", 0, [(0, "empty file")]),
        ("only the mark", b"PAR1", 0, [(0, "unreadable file")]),
        ("marks and nothing between", b"PAR1\x00\x00\x00\x00PAR1", 0, [(0, "unreadable file")]),
        ("JSON lines", lines(A, Z), 0, [(0, "unreadable file")]),
        ("gzip", gzip.compress(sound), 0, [(0, "unreadable file")]),
        ("cut at the end", sound[:-100], 0, [(0, "unreadable file")]),
        ("cut in the middle", sound[: len(sound) // 2], 0, [(0, "unreadable file")]),
        ("cut at the start", sound[100:], -1, None),
        ("a footer of noise", sound[:-60] + b"\xff" * 52 + sound[-8:], 0, [(0, "unreadable file")]),
        ("a footer of impossible length", sound[:-8] + b"\xff\xff\xff\x7f" + sound[-4:], 0,
         [(0, "unreadable file")]),
        ("an encrypted footer's mark", sound[:-4] + b"PARE", 0, [(0, "unreadable file")]),
    ):  # fmt: skip
        if reasons is not None:
            reasons = [(i + 1 if len(reasons) > 1 else at, why) for i, (at, why) in enumerate(reasons)]
            yield _table(f"parquet: {name}", body, kept, reasons)
        else:
            yield _table(f"parquet: {name}", body, kept, [])
    groups = bytearray(parquet(rows, row_group_size=10, compression="zstd"))
    meta = pq.ParquetFile(io.BytesIO(bytes(groups))).metadata
    for group in range(4):
        start = meta.row_group(group).column(0).data_page_offset
        damaged = bytearray(groups)
        damaged[start : start + 20] = b"\xff" * 20
        body = bytes(damaged)
        yield _table(f"parquet: row group {group} damaged", body, 30, [(10 * group + 1, "damaged row group")])


def _nested(depth: int) -> pa.DataType:
    kind = pa.string()
    for _ in range(depth):
        kind = pa.list_(kind)
    return kind


def _table(name: str, body: bytes, kept: int, reasons: list[tuple[int, str]]) -> Case:
    good = parquet([{"INSTRUCTION": "last", "RESPONSE": "one", "METADATA": "{}"}])
    more = kept + 1 if kept >= 0 else -1
    return Case(name, "zhihu", {"a.parquet": body, "b.parquet": good}, more, reasons)


HEAD, FIRST, LAST = "id,question,A,B,C,D,answer\n", "0,q,a,b,c,d,A\n", "2,s,a,b,c,d,B\n"
ROWS: dict[str, tuple[str | bytes, list[tuple[int, str]]]] = {
    "a letter beyond D": ("1,r,a,b,c,d,E", [(2, "bad answer")]),
    "two letters": ("1,r,a,b,c,d,AB", [(2, "bad answer")]),
    "no letter": ("1,r,a,b,c,d,", [(2, "bad answer")]),
    "no question": ("1,,a,b,c,d,A", [(2, "empty text")]),
    "no choice": ("1,r,a,,c,d,A", [(2, "empty text")]),
    "a column too few": ("1,r,a,b,c,A", [(2, "wrong number of columns")]),
    "a column too many": ("1,r,a,b,c,d,A,x", [(2, "wrong number of columns")]),
    "another separator": ("1;r;a;b;c;d;A", [(2, "wrong number of columns")]),
    "tabs": ("1\tr\ta\tb\tc\td\tA", [(2, "wrong number of columns")]),
    "not UTF-8": (b"1,\xff\xfe,a,b,c,d,A", [(2, "not UTF-8")]),
    "GB18030": ("1,中文,a,b,c,d,A".encode("gb18030"), [(2, "not UTF-8")]),
    "a field over the limit": ("1," + "x" * 200_000 + ",a,b,c,d,A", [(2, "broken CSV")]),
    "a quote that is not closed": ('1,"r,a,b,c,d,A', [(2, "broken CSV")]),
    "a quote within": ('1,r "x" y,a,b,c,d,A', []),
    "words after a quote": ('1,"r" x,a,b,c,d,A', []),
    "a line break within quotes": ('1,"r\nx",a,b,c,d,A', []),
    "a NUL": ("1,r\0,a,b,c,d,A", []),
    "spaces around the letter": ("1,r,a,b,c,d, a ", []),
    "words that look missing": ("1,NA,nan,None,null,N/A,A", []),
    "an empty line": ("", []),
}


def csv_cases() -> Iterator[Case]:
    for name, (row, reasons) in ROWS.items():
        row = row if isinstance(row, bytes) else row.encode()
        body = (HEAD + FIRST).encode() + row + b"\n" + LAST.encode()
        kept = 2 + (not reasons and bool(row))
        yield Case(f"CSV row: {name}", "ceval", {"val/law_val.csv": body}, kept, reasons)
    good = {"val/logic_val.csv": (HEAD + LAST).encode()}
    whole = (HEAD + FIRST + LAST).encode()
    for name, body, kept, reasons in (
        ("empty file", b"", 0, [(0, "empty file")]),
        ("head only", HEAD.encode(), 0, [(0, "empty file")]),
        ("blank lines only", b"\n\n\n", 0, [(0, "empty file")]),
        ("BOM", b"\xef\xbb\xbf" + whole, 2, []),
        ("CRLF", whole.replace(b"\n", b"\r\n"), 2, []),
        ("CR only", whole.replace(b"\n", b"\r"), 2, []),
        ("no head", (FIRST + LAST).encode(), 0, [(1, "missing field")]),
        ("a head with other names", whole.replace(b"question", b"Frage"), 0,
         [(1, "missing field"), (2, "missing field")]),
        ("JSON", lines(A, Z), 0, [(1, "missing field")]),
        ("cut in a row", whole[:-6], 1, [(2, "wrong number of columns")]),
        ("every quote open", (HEAD + '0,"q,a,b,c,d,A\n' + '1,"r,a,b,c,d,A\n' + LAST).encode(), -1, None),
        ("the last quote open", (HEAD + FIRST + '1,"r,a,b,c,d,A\n').encode(), 1,
         [(2, "wrong number of columns")]),
    ):  # fmt: skip
        more = kept + 1 if kept >= 0 else -1
        yield Case(f"CSV: {name}", "ceval", {"val/law_val.csv": body, **good}, more, reasons or [])


def cases() -> list[Case]:
    """The whole corpus."""
    makers = (line_cases, element_cases, field_cases, file_cases, parquet_cases, csv_cases)
    return [case for maker in makers for case in maker()]
