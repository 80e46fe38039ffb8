"""The post-training sets of the paper, on tiny records made by hand in their documented schemas."""

from __future__ import annotations

import io

import pyarrow as pa
import pyarrow.parquet as pq

from tests.support.convert import convert, jsonl, one


def parquet(*rows):
    sink = io.BytesIO()
    pq.write_table(pa.Table.from_pylist(list(rows)), sink)
    return sink.getvalue()


def said(record):
    return [m["content"] for m in record["messages"]]


def test_infinity_keeps_the_languages_asked_for(tmp_path):
    rows = [
        {
            "id": i,
            "conversations": [{"from": "human", "value": ask}, {"from": "gpt", "value": "答"}],
            "langdetect": language,
            "source": "s",
        }
        for i, (ask, language) in enumerate([("问", "zh-cn"), ("ask", "en"), ("问二", "zh-cn")])
    ]
    done = convert(tmp_path, "infinity_instruct", {"7M/x.parquet": parquet(*rows)}, {"languages": ["zh-cn"]})
    assert [said(r)[0] for r in done.records] == ["问", "问二"]
    assert done.account["dropped"] == {"language": 1}


def test_code_feedback_and_openhermes_are_read_as_dialogues(tmp_path):
    turns = [{"role": "user", "content": "write f"}, {"role": "assistant", "content": "def f(): pass"}]
    record = one(tmp_path, "sharegpt", {"id": 1, "messages": turns}, language="en")
    assert said(record) == ["write f", "def f(): pass"]
    hermes = {
        "conversations": [
            {"from": "system", "value": "be brief"},
            {"from": "human", "value": "2+2?", "weight": None},
            {"from": "gpt", "value": "4", "weight": None},
        ],
        "system_prompt": None,
        "source": "airoboros2.2",
    }
    record = one(tmp_path / "h", "sharegpt", hermes, language="en")
    assert [m["role"] for m in record["messages"]] == ["system", "user", "assistant"]


def test_web_instruct(tmp_path):
    body = parquet({"question": "why?", "answer": "because", "source": "stackexchange", "index": 3})
    (record,) = convert(tmp_path, "webinstruct", {"a.parquet": body}, language="en").records
    assert said(record) == ["why?", "because"]


EXAM = {
    "id": "e1",
    "q_type": "单选题",
    "q_main": "中国的首都是？",
    "option_a": "上海",
    "option_b": "北京",
    "option_c": None,
    "std_ans": "B",
    "answer_detail": "新中国成立以后，首都一直在这座城市，故选B。",
}


def test_wanjuan_exam_both_ways(tmp_path):
    record = one(tmp_path, "wanjuan_exam", EXAM)
    question, reply = said(record)
    assert "A. 上海\nB. 北京\n" in question
    assert reply == "B。新中国成立以后，首都一直在这座城市，故选B。"
    reply = said(one(tmp_path / "cot", "wanjuan_exam", EXAM, options={"cot": True}))[1]
    assert reply.startswith("新中国成立以后")
    assert reply.endswith("答案为B")


def test_wanjuan_exam_without_an_answer_or_reasons(tmp_path):
    items = jsonl(EXAM, EXAM | {"std_ans": None}, EXAM | {"answer_detail": "短"})
    done = convert(tmp_path, "wanjuan_exam", {"a.jsonl": items}, {"cot": True})
    assert done.account["dropped"] == {"no-answer": 1, "no-reasoning": 1}


def test_an_explanation_that_says_strategy_is_no_answer_left_out(tmp_path):
    details = ["略。", "（解析略）", "这是他们的策略，战略上藐视敌人，省略号表示列举。"]
    items = [EXAM | {"q_main": f"问{i}", "answer_detail": detail} for i, detail in enumerate(details)]
    done = convert(tmp_path, "wanjuan_exam", {"a.jsonl": jsonl(*items)})
    assert done.account["dropped"] == {"answer-left-out": 2}
    assert "策略" in said(done.records[0])[1]


def test_arc_and_openbookqa_look_the_answer_up_among_the_labels(tmp_path):
    arc = {
        "id": "x",
        "question": "Which is a gas?",
        "choices": {"text": ["iron", "air", "ice"], "label": ["1", "2", "3"]},
        "answerKey": "2",
    }
    book = {
        "id": "y",
        "question_stem": "The sun is",
        "choices": {"text": ["cold", "hot"], "label": ["A", "B"]},
        "answerKey": "B",
    }
    files = {"ARC-Easy/train-0.parquet": parquet(arc), "main/train-0.parquet": parquet(book)}
    done = convert(tmp_path, "arc", files, language="en")
    assert [said(r) for r in done.records] == [
        ["Which is a gas?\nA. iron\nB. air\nC. ice", "B. air"],
        ["The sun is\nA. cold\nB. hot", "B. hot"],
    ]


def test_logiqa_is_read_from_its_txt(tmp_path):
    item = {"id": 7, "answer": 0, "text": "All a are b.", "question": "Then?", "options": ["yes", "no"]}
    done = convert(
        tmp_path, "logiqa", {"train.txt": jsonl(item, item | {"answer": 2}, item | {"answer": True})}
    )
    assert [said(r) for r in done.records] == [["All a are b.\nThen?\nA. yes\nB. no", "A. yes"]]
    assert done.account["quarantined"] == {"bad answer": 1, "wrong type": 1}


def dialogue(question, answer):
    return [{"content": question, "role": "user"}, {"content": answer, "role": "assistant"}]


def test_ultrafeedback_pairs(tmp_path):
    good = {
        "source": "s",
        "prompt": "q",
        "chosen": dialogue("q", "good"),
        "chosen-rating": 4.5,
        "rejected": dialogue("q", "bad"),
        "rejected-rating": 2.0,
    }
    rows = [good, good | {"rejected": dialogue("other", "bad")}, good | {"rejected": good["chosen"]}]
    done = convert(
        tmp_path,
        "ultrafeedback_binarized",
        {"a.parquet": parquet(*rows), "b.jsonl": jsonl(good | {"prompt": "p"})},
    )
    assert {(said(r)[0], r["chosen"], r["rejected"]) for r in done.records} == {("q", "good", "bad")}
    assert done.records[0]["meta"]["chosen-rating"] == 4.5
    assert done.account["quarantined"] == {"incomplete dialogue": 1, "equal replies": 1}


def test_ultrafeedback_chinese(tmp_path):
    row = {"instruction": "写诗", "source": "s", "chosen_response": "床前", "rejected_response": "不会"}
    row |= {"chosen_rating": 9.0, "rejected_rating": 1.0}
    done = convert(
        tmp_path, "ultrafeedback_zh", {"a.parquet": parquet(row, row | {"rejected_response": "床前"})}
    )
    assert [(r["chosen"], r["rejected"]) for r in done.records] == [("床前", "不会")]
    assert done.account["quarantined"] == {"equal replies": 1}
