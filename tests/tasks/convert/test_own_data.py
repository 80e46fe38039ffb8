"""Own data as people have it: plain texts, tables, columns of other names, dialogues and pairs in all their forms."""

from __future__ import annotations

import gzip
import io
import json

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tasks.convert import readers
from tasks.settings.errors import NodeError
from tasks.tokenize.chat import chat_pieces
from tests.support.convert import convert, jsonl, one
from tests.support.corpus import zstd


def parquet(*rows):
    sink = io.BytesIO()
    pq.write_table(pa.Table.from_pylist(list(rows)), sink)
    return sink.getvalue()


def said(record):
    return [(m["role"], m["content"]) for m in record["messages"]]


# -------------------------------------------------------------------------------------- text
NOVEL = "第一章\r\n山高。\r\n\r\n \r\n第二章\r\n水长。\r\n"
TABLE = b'text,n\n"a, b",1\n"c\nd",2\n'


@pytest.mark.parametrize(
    ("file", "body", "texts"),
    [
        ("novel.txt", NOVEL.encode(), ["第一章\n山高。\n\n \n第二章\n水长。"]),
        ("NOTE.MD", b"\xef\xbb\xbf# Title\n\nbody\n", ["# Title\n\nbody"]),
        ("novel.txt.gz", gzip.compress(NOVEL.encode(), mtime=0), ["第一章\n山高。\n\n \n第二章\n水长。"]),
        ("note.md.zst", zstd(b"body"), ["body"]),
        ("utf16.txt", "中文".encode("utf-16"), ["中文"]),
        ("t.csv", TABLE, ["a, b", "c\nd"]),
        ("t.csv.gz", gzip.compress(TABLE, mtime=0), ["a, b", "c\nd"]),
        ("t.tsv", b"text\tn\na, b\t1\n", ["a, b"]),
        ("t.tsv", "text\tn\r\n中文\t1\r\n".encode("utf-16"), ["中文"]),
        ("t.csv", b"text,text\na,b\n", ["a"]),
        ("t.tsv.zst", zstd(b"text\tn\na, b\t1\n"), ["a, b"]),
        ("t.parquet", parquet({"text": "a"}, {"text": "b"}), ["a", "b"]),
        ("T.PARQUET", parquet({"text": "a"}), ["a"]),
        ("t.jsonl", jsonl({"text": "a"}), ["a"]),
        ("T.NDJSON", b"\xef\xbb\xbf" + jsonl({"text": "a"}, {"text": "b"}), ["a", "b"]),
        ("t.ndjson.gz", gzip.compress(jsonl({"text": "a"}), mtime=0), ["a"]),
        ("a.markdown", b"# Title", ["# Title"]),
        ("texts.json", b'["a", "b"]', ["a", "b"]),
        ("texts.jsonl", jsonl("a", "b"), ["a", "b"]),
        ("t.json", b'{"data": [{"text": "a"}, {"text": "b"}]}', ["a", "b"]),
    ],
)
def test_texts_in_every_kind_of_file(tmp_path, file, body, texts):
    done = convert(tmp_path, "text", {file: body})
    assert [r["text"] for r in done.records] == texts
    assert not done.quarantine


@pytest.mark.parametrize(
    ("file", "body", "texts", "bad"),
    [
        ("a.csv", b'id,text\n1,"a\n2,b\n3,c\n', ["b", "c"], [1]),
        ("a.tsv", b'id\ttext\n1\tx\n2\t"a\n3\tb\n', ["x", "b"], [2]),
        ("a.csv", b'text\nx\n"half of a text', ["x"], [2]),
        ("a.csv", b'id,text\n1,x\n2,"half of\na text', ["x"], [2]),
        ("a.csv", b'id,text\n1,x\n2,"whole\ntext"', ["x", "whole\ntext"], []),
    ],
)
def test_a_quote_that_is_not_closed_costs_its_own_row(tmp_path, file, body, texts, bad):
    done = convert(tmp_path, "text", {file: body})
    assert [r["text"] for r in done.records] == texts
    assert done.reasons == [(at, "broken CSV") for at in bad]


def test_columns_with_one_name(tmp_path):
    done = convert(tmp_path, "text", {"a.csv": b"text,n,text\na,1,b\n"}, {"field": "text.1"})
    assert [r["text"] for r in done.records] == ["b"]


TURNS = [{"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}]


@pytest.mark.parametrize(
    ("reader", "options", "value", "kept"),
    [
        ("text", {"field": "data.text"}, {"data": {"text": "a"}}, {"text": "a"}),
        ("text", {"field": "a.b.c"}, {"a": {"b": {"c": "x"}}}, {"text": "x"}),
        (
            "text",
            {"field": "data.text"},
            {"data.text": "the name itself", "data": {"text": "b"}},
            {"text": "the name itself"},
        ),
        ("messages", {"field": "data.turns"}, {"data": {"turns": TURNS}}, {"messages": TURNS}),
        ("messages", {"field": "data.turns"}, {"data": {"turns": json.dumps(TURNS)}}, {"messages": TURNS}),
        (
            "alpaca",
            {"instruction": "data.q", "output": "data.a"},
            {"data": {"q": "q", "a": "a"}},
            {"messages": TURNS},
        ),
        (
            "pairs",
            {"prompt": "p.q", "chosen": "p.good", "rejected": "p.bad"},
            {"p": {"q": "q", "good": "a", "bad": "b"}},
            {"chosen": "a", "rejected": "b"},
        ),
    ],
)
def test_fields_inside_of_objects(tmp_path, reader, options, value, kept):
    record = one(tmp_path, reader, value, options=options)
    assert {key: record[key] for key in kept} == kept


@pytest.mark.parametrize(
    ("value", "reason"),
    [
        ({"data": "no object"}, "missing field"),
        ({"data": {"content": "a"}}, "missing field"),
        ({"data": {"text": 7}}, "wrong type"),
        ({"data": {"text": " "}}, "empty text"),
        ({"data": [{"text": "a"}]}, "missing field"),
    ],
)
def test_a_field_that_is_not_inside_is_quarantined(tmp_path, value, reason):
    good = {"data": {"text": "a"}}
    done = convert(tmp_path, "text", {"a.jsonl": jsonl(value, good)}, {"field": "data.text"})
    assert done.reasons == [(1, reason)]


def test_options_inside_of_an_object(tmp_path):
    options = {"question": "q.text", "options": "q.options", "answer": "q.key"}
    record = one(
        tmp_path, "choices", {"q": {"text": "1+1?", "options": ["1", "2"], "key": "B"}}, options=options
    )
    assert "B" in said(record)[-1][1]
    record = one(
        tmp_path,
        "choices",
        {"q": {"text": "1+1?", "A": "1", "B": "2", "key": "A"}},
        options=options | {"options": ["q.A", "q.B"]},
    )
    assert "A" in said(record)[-1][1]


@pytest.mark.parametrize("packed", [bytes, gzip.compress, zstd])
def test_a_text_in_parts(tmp_path, packed):
    file = "a.txt" + {gzip.compress: ".gz", zstd: ".zst"}.get(packed, "")
    options = {"split": "blank-lines", "field": "content"}
    done = convert(tmp_path, "text", {file: packed(NOVEL.encode())}, options)
    assert [(r["text"], r["meta"]["at"]) for r in done.records] == [
        ("第一章\n山高。", f"{file}:1"),
        ("第二章\n水长。", f"{file}:2"),
    ]


@pytest.mark.parametrize(
    ("file", "body", "reason"),
    [
        ("a.txt", NOVEL.encode("gb18030"), "not UTF-8"),
        ("a.txt", b"", "empty file"),
        ("a.txt", b" \n\n", "empty file"),
        ("a.txt", b"%PDF-1.7 x", "unreadable file"),
        ("a.md", b"PK\x03\x04 docx", "unreadable file"),
        ("a.txt", "长".encode() * 2001, "over-long record"),
        ("a.txt", b"x" * 200_000, "over-long record"),
        ("a.txt.gz", b"no gzip", "unreadable file"),
        ("a.txt.gz", gzip.compress(b"x", mtime=0)[:-4], "unreadable file"),
        ("a.csv.gz", b"no gzip", "unreadable file"),
        ("a.csv", "text\n中文\n".encode("gb18030"), "not UTF-8"),
    ],
)
def test_texts_that_cannot_be_read(tmp_path, file, body, reason):
    done = convert(tmp_path, "text", {file: body, "z.txt": b"sound"})
    assert reason in [q["reason"] for q in done.quarantine]
    assert done.records[-1]["text"] == "sound"


@pytest.mark.parametrize(("file", "body"), [("a.txt", "中文"), ("a.csv", "text\n中文\n")])
def test_chinese_texts_of_windows(tmp_path, file, body):
    done = convert(tmp_path, "text", {file: body.encode("gb18030")}, {"encoding": "GB18030"})
    assert [r["text"] for r in done.records] == ["中文"]
    with pytest.raises(ValueError, match="there is no encoding 'gb99'"):
        readers.load("text").options(encoding="gb99")


def test_a_folder_as_people_have_it(tmp_path):
    files = {
        "a.jsonl": jsonl({"text": "a"}),
        "novel.txt": b"b",
        "t.csv": b"text\nc\n",
        "x.docx": b"PK",
        "e.txt": b"",
    }
    done = convert(tmp_path, "text", files)
    assert sorted(r["text"] for r in done.records) == ["a", "b", "c"]
    assert (done.account["files_ignored"], done.account["ignored"]) == (1, ["x.docx"])
    assert (done.account["files_without_records"], done.account["without_records"]) == (1, ["e.txt"])


def test_a_file_in_spans_has_records_if_one_of_them_has(tmp_path):
    body = jsonl(*([b"{bad"] * 200), {"text": "a"})
    done = convert(tmp_path, "skypile", {"a.jsonl": body, "b.jsonl": b"{bad\n" * 200}, job_bytes=100)
    assert done.account["without_records"] == ["b.jsonl"]


def test_a_column_of_another_name(tmp_path):
    with pytest.raises(
        NodeError, match=r"missing field 2 \(first: a.jsonl:1, text; there are: content, url"
    ) as error:
        convert(tmp_path, "text", {"a.jsonl": jsonl(*({"content": c, "url": 1} for c in "ab"))})
    assert "\n" not in str(error.value)
    record = one(tmp_path / "b", "text", {"content": "a"}, options={"field": "content"})
    assert record["text"] == "a"


def test_no_file_for_the_reader_says_what_is_there(tmp_path):
    with pytest.raises(
        NodeError, match=r"none of the 3 files is one for its reader .*; there are: a.xml, b.pdf, c"
    ):
        convert(tmp_path, "text", {"c": b"", "a.xml": b"", "b.pdf": b""})


# --------------------------------------------------------------------------------- dialogues
TURNS = [{"from": "human", "value": "问"}, {"from": "gpt", "value": "答"}]
OPENAI = [{"role": "user", "content": "问"}, {"role": "assistant", "content": "答"}]
BOTH = [("user", "问"), ("assistant", "答")]


@pytest.mark.parametrize("reader", ["messages", "sharegpt"])
@pytest.mark.parametrize(
    ("item", "expected"),
    [
        ({"conversations": TURNS}, BOTH),
        ({"messages": OPENAI}, BOTH),
        ({"dialog": OPENAI, "messages": None}, BOTH),
        ({"conversations": OPENAI}, BOTH),
        ({"messages": TURNS}, BOTH),
        ({"conversations": json.dumps(TURNS)}, BOTH),
        ({"conversations": [{"from": "system", "value": ""}, *TURNS]}, BOTH),
        ({"conversations": [{"from": "system", "value": None}, *TURNS], "system": " "}, BOTH),
        ({"conversations": TURNS, "system": "S", "tools": "[]"}, [("system", "S"), *BOTH]),
        ({"conversations": TURNS, "system_prompt": "S"}, [("system", "S"), *BOTH]),
        ({"conversations": [{"from": "system", "value": "S"}, *TURNS], "system": "S"}, [("system", "S"), *BOTH]),
        ({"conversations": [{"from": "system", "value": "T"}, *TURNS], "system": "S"}, [("system", "S\nT"), *BOTH]),
        ({"messages": [{"role": "developer", "content": "S"}, *OPENAI]}, [("system", "S"), *BOTH]),
        ({"messages": [{"role": "user", "content": [{"type": "text", "text": "问"}]}, OPENAI[1]]}, BOTH),
        ({"messages": [{"role": "user", "content": [{"type": "input_text", "text": "问"}]}, OPENAI[1]]}, BOTH),
        ({"messages": [{"role": "user", "content": ["a", {"text": "b"}]}, OPENAI[1]]}, [("user", "a\nb"), BOTH[1]]),
        (
            {"conversations": [
                TURNS[0], {"from": "function_call", "value": "f()"}, {"from": "observation", "value": "1"}, TURNS[1]]},
            [BOTH[0], ("assistant", "f()"), ("tool", "1"), BOTH[1]],
        ),
        ({"messages": [turn | {"tool_calls": []} for turn in OPENAI]}, BOTH),
        ({"messages": [turn | {"tool_calls": "[]", "function_call": {"name": None}} for turn in OPENAI]}, BOTH),
        ({"messages": [OPENAI[0], {"role": "tool", "content": "1"}, OPENAI[1]]}, [BOTH[0], ("tool", "1"), BOTH[1]]),
    ],
)  # fmt: skip
def test_forms_of_dialogues(tmp_path, reader, item, expected):
    assert said(one(tmp_path, reader, item)) == expected


@pytest.mark.parametrize(
    ("turns", "reason", "detail"),
    [
        ([OPENAI[0], {"role": "assistant", "content": ""}], "empty text", "content"),
        ([OPENAI[0], {"role": "assistant", "content": None}], "null field", "content"),
        ([OPENAI[0], OPENAI[1] | {"tool_calls": [{"id": "1"}]}], "not a text", "tool_calls"),
        (
            [OPENAI[0], {"role": "assistant", "content": None, "tool_calls": [{"id": "1"}]}],
            "not a text",
            "tool_calls",
        ),
        ([OPENAI[0], OPENAI[1] | {"function_call": {"name": "f"}}], "not a text", "function_call"),
        ([OPENAI[0], {"role": "narrator", "content": "x"}], "unknown role", "narrator"),
        ([{"role": "user", "content": [{"type": "image_url"}]}, OPENAI[1]], "not a text", "image_url"),
        ([OPENAI[0], OPENAI[1] | {"weight": 0.5}], "wrong type", "weight of a turn"),
        ([OPENAI[0], OPENAI[1] | {"loss": False}], "incomplete dialogue", "no answer is to be learnt"),
        ("[{", "broken JSON", "messages"),
        ([], "incomplete dialogue", "no question"),
    ],
)
def test_dialogues_that_cannot_be_read(tmp_path, turns, reason, detail):
    done = convert(tmp_path, "messages", {"a.jsonl": jsonl({"messages": turns}, {"messages": OPENAI})})
    assert done.reasons == [(1, reason)]
    assert done.quarantine[0]["detail"].startswith(detail)


@pytest.mark.parametrize("flag", [{"loss": False}, {"weight": 0}, {"train": False, "weight": None}])
def test_a_reply_with_a_flag_is_no_target(tmp_path, flag):
    turns = [OPENAI[0], OPENAI[1] | flag, {"role": "user", "content": "3"}]
    record = one(
        tmp_path, "messages", {"messages": [*turns, {"role": "assistant", "content": "4", "weight": 1}]}
    )
    assert [m.get("loss", True) for m in record["messages"]] == [True, False, True, True]
    targets = [piece.text for piece in chat_pieces(record["messages"]) if piece.target]
    assert targets == ["4", "<|im_end|>"]


def test_dialogues_in_a_list_of_another_name_and_in_tables(tmp_path):
    item = {"talk": OPENAI}
    assert said(one(tmp_path / "a", "messages", item, options={"field": "talk"})) == BOTH
    body = b'messages\n"' + json.dumps(OPENAI).replace('"', '""').encode() + b'"\n'
    done = convert(
        tmp_path / "b", "messages", {"a.csv": body, "b.parquet": parquet({"messages": TURNS + TURNS})}
    )
    assert [said(r) for r in done.records] == [BOTH, BOTH + BOTH]


@pytest.mark.parametrize(
    ("item", "expected"),
    [
        ({"instruction": "", "input": "问", "output": "答"}, BOTH),
        ({"instruction": None, "input": "问", "output": "答"}, BOTH),
        ({"input": "问", "output": "答"}, BOTH),
        ({"instruction": "问", "input": None, "output": "答"}, BOTH),
        ({"instruction": "问", "output": "答", "history": [["", ""], [None, " "]]}, BOTH),
        (
            {"instruction": "问", "output": "答", "history": [["a", "b"]]},
            [("user", "a"), ("assistant", "b"), *BOTH],
        ),
    ],
)
def test_forms_of_alpaca(tmp_path, item, expected):
    assert said(one(tmp_path, "alpaca", item)) == expected


def test_alpaca_with_half_a_past_and_with_other_columns(tmp_path):
    done = convert(
        tmp_path / "a", "alpaca",
        {"a.jsonl": jsonl({"instruction": "q", "output": "a", "history": [["x", ""]]}, {"instruction": "q", "output": "a"})},
    )  # fmt: skip
    assert done.reasons == [(1, "empty text")]
    options = {"instruction": "question", "output": "reply"}
    done = convert(tmp_path / "b", "alpaca", {"a.csv": b"question,reply\nq,a\n"}, options)
    assert said(done.records[0]) == [("user", "q"), ("assistant", "a")]


# ------------------------------------------------------------------------------------- pairs
GOOD, BAD = [{"role": "assistant", "content": "a"}], [{"role": "assistant", "content": "b"}]
ASK = [{"role": "user", "content": "q"}]


@pytest.mark.parametrize(
    "item",
    [
        {"prompt": "q", "chosen": "a", "rejected": "b"},
        {"prompt": ASK, "chosen": GOOD, "rejected": BAD},
        {"prompt": "q", "chosen": ASK + GOOD, "rejected": ASK + BAD},
        {"chosen": ASK + GOOD, "rejected": ASK + BAD},
        {"prompt": ASK, "chosen": GOOD[0], "rejected": BAD[0]},
        {"prompt": ASK, "chosen": "a", "rejected": "b"},
        {"chosen": "\n\nHuman: q\n\nAssistant: a", "rejected": "\n\nHuman: q\n\nAssistant: b"},
        {"prompt": "\n\nHuman: q\n\nAssistant:", "chosen": " a".strip(), "rejected": "b"},
        {"prompt": json.dumps(ASK), "chosen": json.dumps(GOOD), "rejected": json.dumps(BAD)},
    ],
)
def test_forms_of_pairs(tmp_path, item):
    record = one(tmp_path, "pairs", item)
    assert (said(record), record["chosen"], record["rejected"]) == ([("user", "q")], "a", "b")


@pytest.mark.parametrize(
    ("item", "reason"),
    [
        ({"prompt": "q", "chosen": "a", "rejected": "a"}, "equal replies"),
        ({"chosen": "a", "rejected": "b"}, "missing field"),
        ({"chosen": ASK + GOOD, "rejected": [{"role": "user", "content": "r"}, *BAD]}, "incomplete dialogue"),
        ({"prompt": "q", "chosen": ASK, "rejected": BAD}, "incomplete dialogue"),
        ({"prompt": "q", "chosen": None, "rejected": "b"}, "null field"),
        ({"prompt": ASK + GOOD, "chosen": GOOD, "rejected": BAD}, "incomplete dialogue"),
    ],
)
def test_pairs_that_cannot_be_read(tmp_path, item, reason):
    sound = {"prompt": "q", "chosen": "a", "rejected": "b"}
    assert convert(tmp_path, "pairs", {"a.jsonl": jsonl(item, sound)}).reasons == [(1, reason)]


def test_pairs_with_other_columns_in_a_table(tmp_path):
    options = {"prompt": "question", "chosen": "good", "rejected": "bad"}
    done = convert(tmp_path, "pairs", {"a.csv": b"question,good,bad,system\nq,a,b,S\n"}, options)
    assert said(done.records[0]) == [("system", "S"), ("user", "q")]


# ----------------------------------------------------------------------------------- choices
@pytest.mark.parametrize(
    ("item", "options", "answer"),
    [
        ({"question": "q", "A": "x", "B": "y", "C": "", "answer": "b"}, {}, "B. y"),
        ({"question": "q", "A": "x", "B": "y", "answer": "Ａ."}, {}, "A. x"),
        ({"question": "q", "A": "x", "B": "y", "answer": "(B)"}, {}, "B. y"),
        ({"question": "q", "A": "x", "B": "y", "answer": "（b）"}, {}, "B. y"),
        ({"question": "q", "A": "x", "B": "y", "answer": "B。"}, {}, "B. y"),
        ({"question": "q", "A": "x", "B": "y", "answer": 1}, {}, "B. y"),
        ({"question": "q", "A": "x", "B": "y", "answer": 1}, {"first": 1}, "A. x"),
        ({"question": "q", "A": "x", "B": "y", "answer": "y"}, {}, "B. y"),
        (
            {"q": "q", "opts": ["x", "y"], "key": "B"},
            {"question": "q", "options": "opts", "answer": "key"},
            "B. y",
        ),
        ({"question": "q", "options": '["x", "y"]', "answer": "1"}, {"options": "options"}, "B. y"),
        (
            {"question": "q", "o": {"text": ["x", "y"], "label": ["1", "2"]}, "answer": "2"},
            {"options": "o"},
            "B. y",
        ),
        ({"question": "q", "o1": "x", "o2": "y", "answer": "o2"}, {"options": ["o1", "o2"]}, "B. y"),
    ],
)
def test_forms_of_choices(tmp_path, item, options, answer):
    assert said(one(tmp_path, "choices", item, options=options)) == [
        ("user", "q\nA. x\nB. y"),
        ("assistant", answer),
    ]


@pytest.mark.parametrize(
    ("item", "reason"),
    [
        ({"question": "q", "A": "x", "B": "y", "answer": "C"}, "bad answer"),
        ({"question": "q", "A": "x", "B": "y", "answer": 2}, "bad answer"),
        ({"question": "q", "A": "x", "B": "y"}, "missing field"),
        ({"question": "q", "A": "x", "C": "y", "answer": "A"}, "no choices"),
        ({"question": "q", "A": "x", "answer": "A"}, "no choices"),
        ({"question": "q", "answer": "A"}, "missing field"),
    ],
)
def test_choices_that_cannot_be_read(tmp_path, item, reason):
    sound = {"question": "q", "A": "x", "B": "y", "answer": "A"}
    assert convert(tmp_path, "choices", {"a.jsonl": jsonl(item, sound)}).reasons == [(1, reason)]


def test_choices_above_which_a_text_stands(tmp_path):
    item = {"passage": "p", "question": "q", "A": "x", "B": "y", "answer": "A"}
    assert said(one(tmp_path, "choices", item, options={"context": "passage"}))[0] == (
        "user",
        "p\nq\nA. x\nB. y",
    )
