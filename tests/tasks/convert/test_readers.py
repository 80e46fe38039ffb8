"""What each schema becomes; the losses of the original converters must not come back."""

from __future__ import annotations

import io
import json

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tasks.convert import readers
from tests.support.convert import convert, jsonl, one


def parquet(rows: list[dict]) -> bytes:
    sink = io.BytesIO()
    pq.write_table(pa.Table.from_pylist(rows), sink)
    return sink.getvalue()


def said(record):
    return [(m["role"], m["content"]) for m in record["messages"]]


def test_every_reader_has_its_name_and_module():
    expected = """skypile wanjuan wikipedia_cn baidu_baike baidu_qa zhihu belle_2m belle_3_5m moss firefly
    starcoder alpaca sharegpt ruozhiba self_cognition mc_en dpo_sharegpt ceval cmmlu mmlu
    infinity_instruct webinstruct wanjuan_exam arc logiqa ultrafeedback_zh ultrafeedback_binarized
    text messages pairs choices arithmetic"""
    assert set(readers.names()) == set(expected.split())
    for name in readers.names():
        assert readers.load(name).suffixes


def test_skypile(tmp_path):
    record = one(tmp_path, "skypile", {"text": "第一行\n第二行"})
    assert record.pop("id")
    assert record == {
        "source": "src",
        "kind": "text",
        "text": "第一行\n第二行",
        "meta": {"at": "part.jsonl:1"},
        "language": "zh",
    }


def test_wanjuan_text_and_exam(tmp_path):
    exam = {"id": "e", "q_main": "1+1=?", "option_a": "1", "option_b": "2", "option_c": None}
    exam |= {"std_ans": "B", "answer_detail": None, "grade": "小学"}
    done = convert(tmp_path, "wanjuan", {"a.jsonl": jsonl({"id": "x", "content": "正文"}, exam)})
    assert [r["text"] for r in done.records] == ["正文", "1+1=?\nA. 1\nB. 2\n答案：B"]
    assert done.records[1]["meta"]["grade"] == "小学"


def test_wikipedia_array(tmp_path):
    body = json.dumps([{"completion": f"条目{i}", "source": "w"} for i in range(3)], indent=2).encode()
    done = convert(tmp_path, "wikipedia_cn", {"w.json": body})
    assert [r["text"] for r in done.records] == ["条目0", "条目1", "条目2"]


def test_baike_keeps_entries_without_a_summary_and_separates_parts(tmp_path):
    sections = [
        {"title": "简介", "content": "甲"},
        {"title": "空", "content": ""},
        {"title": None, "content": "乙"},
    ]
    done = convert(
        tmp_path,
        "baidu_baike",
        {
            "b.json": jsonl(
                {"title": "题", "summary": None, "sections": sections},
                {"title": "题", "summary": "摘要", "sections": None},
                {"title": "题", "summary": " ", "sections": []},
            )
        },
    )
    assert [r["text"] for r in done.records] == ["题\n\n简介\n甲\n\n乙", "题\n摘要"]
    assert done.account["quarantined"] == {"empty text": 1}


def test_baidu_qa_uses_the_description(tmp_path):
    done = convert(
        tmp_path,
        "baidu_qa",
        {
            "q.json": jsonl(
                {"qid": "1", "category": "c", "title": "问", "desc": "细节", "answer": "答"},
                {"title": "问", "desc": "问 ", "answer": "答"},
                {"title": "问", "desc": None, "answer": "答二"},
            )
        },
    )
    assert [said(r)[0][1] for r in done.records] == ["问\n细节", "问", "问"]
    assert done.records[0]["meta"]["category"] == "c"


@pytest.mark.parametrize(
    ("value", "votes"),
    [
        ("赞同 15", 15),
        ("赞同 1.6 万", 16000),
        ("赞同 2万", 20000),
        ("赞同 1,024", 1024),
        ("赞同", 0),
        ("赞同 3k", 3000),
        ("赞同 ..", 0),
        (7, 7),
        (None, 0),
        (["赞同 3"], 0),
    ],
)
def test_zhihu_votes(value, votes):
    from tasks.convert.readers.zhihu import upvotes

    assert upvotes(json.dumps({"upvotes": value})) == votes


def test_zhihu_min_votes_and_broken_metadata(tmp_path):
    rows = [
        {"INSTRUCTION": "问", "RESPONSE": f"答{i}", "SOURCE": "Zhihu", "METADATA": metadata}
        for i, metadata in enumerate(
            ['{"upvotes": "赞同 1.6 万"}', '{"upvotes": "赞同 99"}', "{broken", None]
        )
    ]
    done = convert(tmp_path, "zhihu", {"a.parquet": parquet(rows)})
    assert [r["meta"]["votes"] for r in done.records] == [16000, 99, 0, 0]
    done = convert(tmp_path, "zhihu", {"a.parquet": parquet(rows)}, {"min_votes": 100})
    assert [r["meta"]["votes"] for r in done.records] == [16000]
    assert done.account["dropped"] == {"min-votes": 3}
    assert done.account["steps"][0]["operator"] == "min-votes"
    assert (done.account["chars_in"], done.account["chars_out"]) == (12, 3)


def test_an_unwanted_twin_does_not_make_a_duplicate(tmp_path):
    rows = [
        {"INSTRUCTION": "问", "RESPONSE": "答", "METADATA": f'{{"upvotes": "赞同 {votes}"}}'}
        for votes in (1, 200)
    ]
    done = convert(tmp_path, "zhihu", {"a.parquet": parquet(rows)}, {"min_votes": 100})
    assert [r["meta"]["votes"] for r in done.records] == [200]
    assert done.account["dropped"] == {"min-votes": 1}


@pytest.mark.parametrize("reader", ["belle_2m", "alpaca", "ruozhiba"])
def test_instructions(tmp_path, reader):
    done = convert(
        tmp_path,
        reader,
        {
            "a.json": jsonl(
                {"instruction": "译", "input": "狗", "output": "dog"},
                {"instruction": "问", "output": "答 end"},
            )
        },
    )
    assert [said(r) for r in done.records] == [
        [("user", "译\n狗"), ("assistant", "dog")],
        [("user", "问"), ("assistant", "答 end")],
    ]


def test_alpaca_system_and_history(tmp_path):
    item = {"instruction": "c", "output": "d", "system": "s", "history": [["a", "b"]]}
    roles = [("system", "s"), ("user", "a"), ("assistant", "b"), ("user", "c"), ("assistant", "d")]
    assert said(one(tmp_path, "alpaca", item)) == roles


@pytest.mark.parametrize("reader", ["belle_3_5m", "sharegpt"])
def test_conversations_keep_every_turn(tmp_path, reader):
    turns = [("human", "a"), ("human", "b"), ("assistant", "my friend"), ("human", "c"), ("assistant", "d")]
    item = {"id": "7", "conversations": [{"from": role, "value": text} for role, text in turns]}
    names = {"human": "user", "assistant": "assistant"}
    assert said(one(tmp_path, reader, item)) == [(names[role], text) for role, text in turns]


def test_sharegpt_messages(tmp_path):
    item = {"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]}
    assert said(one(tmp_path, "sharegpt", item)) == [("user", "a"), ("assistant", "b")]


def test_moss_lines_and_folder(tmp_path):
    lines = {"conversation_id": 1, "category": "x", "conversation": [{"human": "a", "assistant": "b"}]}
    turn = {"Human": "<|Human|>: 问<eoh>\n", "Inner Thoughts": "<|Inner Thoughts|>: None<eot>\n"}
    turn |= {"MOSS": "<|MOSS|>: 答\n\n1. 甲<eom>\n"}
    whole = {
        "conversation_id": "9",
        "meta_instruction": "You are MOSS.",
        "chat": {"turn_1": turn, "turn_2": turn},
    }
    files = {"a.jsonl": jsonl(lines), "b/c.json": json.dumps(whole, ensure_ascii=False, indent=4).encode()}
    done = convert(tmp_path, "moss", files)
    assert said(done.records[0]) == [("user", "a"), ("assistant", "b")]
    assert said(done.records[1]) == [("user", "问"), ("assistant", "答\n\n1. 甲")] * 2


def test_firefly(tmp_path):
    record = one(tmp_path, "firefly", {"kind": "NLI", "input": "a", "target": "b"})
    assert said(record) == [("user", "a"), ("assistant", "b")]
    assert record["meta"]["kind"] == "NLI"


def test_starcoder_head_goes_to_meta(tmp_path):
    code = "    indented = 1\n\tx\n"
    row = {"max_stars_repo_name": "a/b", "max_stars_repo_path": "c.py", "max_stars_count": 3.0, "id": "0"}
    rows = [{**row, "content": "<reponame>a/b<filename>c.py\n" + code}, {**row, "content": "#include <x>\n"}]
    done = convert(tmp_path, "starcoder", {"python/train-0.parquet": parquet(rows)})
    assert [r["text"] for r in done.records] == [code, "#include <x>\n"]
    assert (done.records[0]["kind"], done.records[0]["language"]) == ("code", "code")
    meta = done.records[0]["meta"]
    assert (meta["language"], meta["stars"], meta["max_stars_repo_name"]) == ("python", 3, "a/b")


def test_self_cognition_names(tmp_path):
    done = convert(
        tmp_path,
        "self_cognition",
        {
            "a.json": jsonl(
                {"instruction": "你是谁", "output": "我是{{name}}，{{author}}的作品。"},
                {"instruction": "你是谁?", "output": "我是EmoLLM团队开发的EmoLLM。"},
                {"instruction": "who", "output": "<AUTHOR> made me."},
            )
        },
        {"name": "小钢", "author": "钢铁厂"},
    )
    answers = [said(r)[1][1] for r in done.records]
    assert answers == ["我是小钢，钢铁厂的作品。", "我是钢铁厂开发的小钢。", "钢铁厂 made me."]


def test_mc_en_letters(tmp_path):
    text = (
        "Please choose the correct answer to the question: Which is hot?\n\nAnswer1: ice Answer2: the sun\n\n"
    )
    item = {
        "instruction": text + "Answer format: answer1/answer2",
        "input": "",
        "output": "…",
        "answer": "answer2",
    }
    record = one(tmp_path, "mc_en", item, file="ARC-Easy/train.json", language="en")
    assert said(record) == [("user", "Which is hot?\nA. ice\nB. the sun"), ("assistant", "B. the sun")]
    assert record["meta"]["answer"] == "B"
    assert record["meta"]["set"] == "ARC-Easy"


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"answer": "answer3"}, "bad answer"),
        ({"answer": "42.0"}, "bad answer"),
        ({"instruction": "How many tiles?"}, "no choices"),
        ({"instruction": "Q? Answer1: a Answer3: b Answer format: x"}, "no choices"),
        ({"instruction": "Q? Answer1: a Answer format: x", "answer": "answer1"}, "no choices"),
    ],
)
def test_mc_en_refuses(tmp_path, change, reason):
    good = {"instruction": "Q? Answer1: a Answer2: b Answer format: x", "output": "", "answer": "answer2"}
    done = convert(tmp_path, "mc_en", {"t.json": jsonl(good, {**good, **change})})
    assert done.reasons == [(2, reason)]


def test_preferences(tmp_path):
    prompt = [{"from": "human", "value": "问"}]
    good = {
        "conversations": prompt,
        "chosen": {"from": "gpt", "value": "好"},
        "rejected": {"from": "gpt", "value": "坏"},
    }
    same = {**good, "rejected": good["chosen"]}
    no_question = {**good, "conversations": []}
    null = {**good, "chosen": None}
    human = {**good, "chosen": {"from": "human", "value": "x"}}
    done = convert(tmp_path, "dpo_sharegpt", {"a.json": jsonl(good, same, no_question, null, human)})
    (record,) = done.records
    assert (record["kind"], said(record)) == ("preference", [("user", "问")])
    assert (record["chosen"], record["rejected"]) == ("好", "坏")
    assert done.reasons == [
        (2, "equal replies"),
        (3, "incomplete dialogue"),
        (4, "null field"),
        (5, "unknown role"),
    ]


@pytest.mark.parametrize(
    ("conversations", "reason"),
    [
        ([], "incomplete dialogue"),
        ([{"from": "human", "value": "a"}], "incomplete dialogue"),
        ([{"from": "robot", "value": "a"}], "unknown role"),
        ([{"from": "human", "value": "a"}, {"from": "gpt", "value": None}], "null field"),
        ([{"from": "human", "value": "a"}, {"from": "gpt", "value": " "}], "empty text"),
        (["a", "b"], "wrong type"),
        (None, "null field"),
        ("ab", "wrong type"),
    ],
)
def test_dialogues_that_are_none(tmp_path, conversations, reason):
    good = [{"from": "human", "value": "a"}, {"from": "assistant", "value": "b"}]
    values = [{"conversations": good}, {"conversations": conversations}, {}]
    done = convert(tmp_path, "sharegpt", {"a.jsonl": jsonl(*values)})
    assert done.reasons == [(2, reason), (3, "missing field")]


def test_mixed_language_is_told_apart(tmp_path):
    values = [
        {"instruction": "x", "output": "Hello, how are you?"},
        {"instruction": "x", "output": "你好 Steel"},
    ]
    done = convert(tmp_path, "alpaca", {"a.jsonl": jsonl(*values)}, language="mixed")
    assert [r["language"] for r in done.records] == ["en", "zh"]


@pytest.mark.parametrize(
    ("turns", "language"),
    [
        ([("user", "What is 40 + 2?"), ("assistant", "42")], "en"),
        ([("user", "哪个是水？\nA. H2O\nB. CO2"), ("assistant", "A. H2O")], "zh"),
        ([("user", "水的化学式？"), ("assistant", "H2O"), ("user", "Thx"), ("assistant", "OK")], "zh"),
        (
            [
                ("system", "You are a helpful assistant who answers questions."),
                ("user", "你好"),
                ("assistant", "好"),
            ],
            "zh",
        ),
    ],
)
def test_the_language_is_told_by_the_whole_dialogue(tmp_path, turns, language):
    item = {"messages": [{"role": role, "content": content} for role, content in turns]}
    done = convert(tmp_path, "messages", {"a.jsonl": jsonl(item)}, language="mixed")
    assert [r["language"] for r in done.records] == [language]


def test_the_language_of_a_pair_is_told_by_its_replies_too(tmp_path):
    item = {"prompt": "1 + 1?", "chosen": "Two, of course.", "rejected": "Three."}
    done = convert(tmp_path, "pairs", {"a.jsonl": jsonl(item)}, language="mixed")
    assert [r["language"] for r in done.records] == ["en"]
