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


ANSWERS = {"A": 0, "b": 1, "Ｃ": 2, "(D)": 3, " a. ": 0, "1": 1, "丁": 3, "ｄ": 3, "3": 3}


def test_answers_in_any_sane_form(tmp_path):
    rows = "".join(f"{k},q{k},甲,乙,丙,丁,{said}\n" for k, said in enumerate(ANSWERS))
    done = convert(tmp_path, "ceval", {"val/law_val.csv": (HEAD + rows).encode()})
    assert [q["answer"] for q in done.records] == list(ANSWERS.values())


def test_numbers_may_count_from_one(tmp_path):
    files = {"val/law_val.csv": (HEAD + "0,q,甲,乙,丙,丁,4\n").encode()}
    assert convert(tmp_path / "one", "ceval", files, {"first": 1}).records[0]["answer"] == 3
    with pytest.raises(NodeError, match=r"bad answer 1 .*4: options.first is 0"):
        convert(tmp_path / "zero", "ceval", files)


def test_a_number_that_is_another_options_text_is_refused(tmp_path):
    rows = "0,q,1,2,3,4,2\n1,r,0,1,2,3,2\n2,s,7,8,9,6,9\n"
    done = convert(tmp_path, "ceval", {"val/law_val.csv": (HEAD + rows).encode()})
    assert [q["answer"] for q in done.records] == [2, 2]
    assert done.reasons == [(1, "bad answer")]


def test_two_to_ten_options(tmp_path):
    letters = "ABCDEFGHIJ"
    files = {
        f"val/x{n}_val.csv": f"id,question,{','.join(letters[:n])},answer\n"
        f"0,q,{','.join(f'o{k}' for k in range(n))},{letters[n - 1]}\n".encode()
        for n in (2, 3, 5, 10)
    }
    files["val/mixed_val.csv"] = (
        b"id,question,A,B,C,D,E,answer\n0,q,a,b,c,d,e,E\n1,r,a,b,c,,,C\n2,s,a,,c,,,A\n"
    )
    done = convert(tmp_path, "ceval", files)
    assert {(q["subject"], len(q["choices"]), q["answer"]) for q in done.records} == {
        ("x2", 2, 1),
        ("x3", 3, 2),
        ("x5", 5, 4),
        ("x10", 10, 9),
        ("mixed", 5, 4),
        ("mixed", 3, 2),
    }
    assert done.reasons == [(3, "empty text")]


def test_a_fifth_option_of_mmlu_is_no_answer(tmp_path):
    done = convert(tmp_path, "mmlu", {"test/virology_test.csv": b"q,a,b,c,d,e,E\nr,1,2,3,4,5,A\n"})
    assert [(len(q["choices"]), q["answer"]) for q in done.records] == [(5, 4), (5, 0)]


def test_files_beside_each_other(tmp_path):
    files = {f"law_{split}.csv": (HEAD + "0,q,a,b,c,d,A\n").encode() for split in ("dev", "val")}
    done = convert(tmp_path, "ceval", files)
    assert [(q["subject"], q["split"]) for q in done.records] == [("law", "dev"), ("law", "val")]


def test_arithmetic(tmp_path):
    files = {
        "gsm8k/test.json": b'[{"instruction": "2+3?", "input": "", "output": "5", "answer": "5.0"}]',
        "main/test.jsonl": b'{"question": "2*3?", "answer": "2*3 = 6\\n#### 1,006"}\n{"question": "x", "answer": "many"}\n',
        "main/train.jsonl": b'{"question": "never", "answer": "1"}\n',
    }
    done = convert(tmp_path, "arithmetic", files)
    found = [(q["subject"], q["split"], q["question"], q["target"]) for q in done.records]
    assert found == [("gsm8k", "test", "2+3?", "5.0"), ("main", "test", "2*3?", "1,006")]
    assert done.reasons == [(2, "bad answer")]
    assert done.account["files_ignored"] == 1


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
