"""Benchmarks become questions; splits, labels and subjects stay what they are."""

from __future__ import annotations

import pytest

from tasks.settings.errors import NodeError
from tests.support.convert import convert

HEAD = "id,question,A,B,C,D,answer\n"
CEVAL = {
    "dev/law_dev.csv": b"id,question,A,B,C,D,answer,explanation\n0,q0,a,b,c,d,A,because\n",
    "val/law_val.csv": (HEAD + '0,"q,1",a,b,c,d,B\n1,q2,甲,乙,丙,丁,D\n').encode(),
    "test/law_test.csv": b"id,question,A,B,C,D\n0,q3,a,b,c,d\n",
    "val/logic_val.csv": (HEAD + "0,q4,a,b,c,d,C\n").encode(),
    "notes/readme.csv": b"x,y\n",
}


def test_ceval(tmp_path):
    done = convert(tmp_path, "ceval", CEVAL)
    found = [(q["subject"], q["split"], q["question"], q["answer"]) for q in done.records]
    assert found == [
        ("law", "dev", "q0", 0),
        ("law", "test", "q3", None),
        ("law", "val", "q,1", 1),
        ("law", "val", "q2", 3),
        ("logic", "val", "q4", 2),
    ]
    assert done.records[3]["choices"] == ["甲", "乙", "丙", "丁"]
    assert done.records[0]["meta"]["explanation"] == "because"
    assert done.account["files_ignored"] == 1


def test_subjects(tmp_path):
    done = convert(tmp_path, "ceval", CEVAL, {"subjects": ["logic"]})
    assert [q["subject"] for q in done.records] == ["logic"]
    with pytest.raises(NodeError, match=r"src: there is no subject magic .*there are: law, logic"):
        convert(tmp_path, "ceval", CEVAL, {"subjects": ["magic", "law"]})


def test_the_demo_exam_carries_more(tmp_path):
    head = "id,question,A,B,C,D,answer,half,relation,held_out_fact,language\n"
    rows = "0,q,a,b,c,d,A,known-words,capital,true,en\n1,r,a,b,c,d,B,new-words,capital,false,zh\n"
    done = convert(
        tmp_path,
        "ceval",
        {
            "val/geo_val.csv": (head + rows).encode(),
            "select/geo_select.csv": (HEAD + "0,s,a,b,c,d,A\n").encode(),
        },
    )
    assert {q["split"] for q in done.records} == {"val", "select"}
    first = next(q for q in done.records if q["question"] == "q")
    assert first["language"] == "en"
    assert first["meta"]["half"] == "known-words"
    assert first["meta"]["relation"] == "capital"
    assert first["meta"]["held_out_fact"] is True


def test_cmmlu(tmp_path):
    files = {
        "data/dev/anatomy.csv": ",Question,A,B,C,D,Answer\n0,骨？,1,2,3,4,B\n".encode(),
        "data/test/anatomy.csv": ",Question,A,B,C,D,Answer\n0,肉？,(1) (2),2,3,4,C\n".encode(),
    }
    done = convert(tmp_path, "cmmlu", files)
    assert [(q["split"], q["question"], q["answer"]) for q in done.records] == [
        ("dev", "骨？", 1),
        ("test", "肉？", 2),
    ]
    assert done.records[1]["choices"][0] == "(1) (2)"


def test_mmlu_says_none(tmp_path):
    body = b'"Which, if any?",NA,None,nan,null,B\nmulti\nline,a,b,c,d,A\n"two\nlines",a,b,c,d,D\n'
    done = convert(tmp_path, "mmlu", {"test/virology_test.csv": body})
    assert done.records[0]["choices"] == ["NA", "None", "nan", "null"]
    assert [q["question"] for q in done.records] == ["Which, if any?", "line", "two\nlines"]
    assert done.reasons == [(2, "wrong number of columns")]


def test_repeated_questions_stay_with_ids_of_their_own(tmp_path):
    body = (HEAD + "0,q,a,b,c,d,A\n1,q,a,b,c,d,A\n").encode()
    done = convert(tmp_path, "ceval", {"val/law_val.csv": body})
    assert len({q["id"] for q in done.records}) == 2


@pytest.mark.parametrize(
    ("row", "reason"),
    [
        (b"1,r,a,b,c,d,E", "bad answer"),
        (b"1,r,a,b,c,d,", "bad answer"),
        (b"1,,a,b,c,d,A", "empty text"),
        (b"1,r,a,b,c,A", "wrong number of columns"),
        (b"1,\xff\xfe,a,b,c,d,A", "not UTF-8"),
        (b"1," + b"x" * 200_000 + b",a,b,c,d,A", "broken CSV"),
    ],
)
def test_bad_rows(tmp_path, row, reason):
    body = HEAD.encode() + b"0,q,a,b,c,d,A\n" + row + b"\n2,s,a,b,c,d,B\n"
    done = convert(tmp_path, "ceval", {"val/law_val.csv": body})
    assert [q["question"] for q in done.records] == ["q", "s"]
    assert done.reasons == [(2, reason)]
