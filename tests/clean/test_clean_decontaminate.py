"""Benchmark questions in training text are found; facts, phrases and short ordinary words are not."""

import json

import pytest

from tasks.clean import decontaminate
from tasks.clean.overlap import Index
from tests.clean.samples import dialogue, real_text, record, write


def question(stem, choices=("甲", "乙", "丙", "丁"), benchmark="exam", number=0):
    return {"id": f"{benchmark}-{number}", "benchmark": benchmark, "question": stem, "choices": list(choices)}


LONG_ZH = "下列各省中，哪一个省的省会城市位于长江下游并且曾经是六朝古都？"
SHORT_ZH = "福建的省会是哪座城市"
LONG_EN = "Which of the following metals is liquid at room temperature and is used in old thermometers?"
SHORT_EN = "What is the capital of Peru?"


@pytest.fixture(scope="module")
def index():
    built = Index(13)
    choices = {SHORT_ZH: ("福州", "厦门", "泉州", "南平"), SHORT_EN: ("Lima", "Quito", "La Paz", "Bogota")}
    for number, stem in enumerate((LONG_ZH, SHORT_ZH, LONG_EN, SHORT_EN)):
        built.add("exam", question(stem, choices.get(stem, "甲乙丙丁"), number=number))
    built.add("exam", question("首都是", ("巴黎", "罗马", "柏林", "伦敦"), number=4))
    built.add("exam", question("（    ）", number=5))
    return built


@pytest.mark.parametrize(
    ("text", "hit"),
    [
        ("练习一：下列各省中，哪一个省的省会城市，位于长江下游，并且曾经是六朝古都？答案是江苏。", LONG_ZH),
        ("问：福建的省会，是哪座城市？\n答：福州。", SHORT_ZH),
        (
            "quiz - which of the following METALS is liquid at room temperature, and is used in old thermometers",
            LONG_EN,
        ),
        ("Peru: what is the capital of Peru? Lima.", SHORT_EN),
    ],
)
def test_a_question_in_a_text_is_found(index, text, hit):
    found = index.search(text)
    assert [index.questions[n].grams & found[n] == index.questions[n].grams for n in found] == [True]
    assert (
        index.questions[next(iter(found))].id == f"exam-{(LONG_ZH, SHORT_ZH, LONG_EN, SHORT_EN).index(hit)}"
    )


@pytest.mark.parametrize(
    "text",
    [
        "江苏的省会南京位于长江下游，曾经是六朝古都。",
        "福建的省会是福州。",
        "Mercury is a metal that is liquid at room temperature.",
        "The capital of Peru is Lima. What is it like?",
        "法国的首都是巴黎。",
        "有人问：福建的省会是哪座城市？没有人回答。",
        real_text(1),
    ],
)
def test_the_fact_in_other_words_is_not_a_leak(index, text):
    assert not index.search(text)


def test_a_stem_of_ordinary_words_needs_its_choices(index):
    assert not index.search("法国的首都是巴黎，意大利的首都是罗马。")
    assert index.search("首都是：A. 巴黎 B. 罗马 C. 柏林 D. 伦敦")


def search(tmp_path, sources, questions, ngram=13):
    path = write(tmp_path / "questions.jsonl", questions)
    benchmarks = {"exam": str(path)}
    found = {
        name: decontaminate.search_records(
            write(tmp_path / name / "records.jsonl", items), None, benchmarks, ngram
        )
        for name, items in sources.items()
    }
    built = Index(ngram)
    for item in questions:
        built.add("exam", item)
    return (*decontaminate.decide(built, found), built, found)


def test_half_of_a_questions_ngrams_are_needed(tmp_path):
    quote = record("他引用了一句话：位于长江下游并且曾经是六朝古都。")  # holds a fifth of them
    copy = record("哪一个省的省会城市位于长江下游并且曾经是六朝古都")
    hits, *_ = search(tmp_path, {"a": [quote, copy]}, [question(LONG_ZH)])
    assert list(hits["a"]) == [copy["id"]]


def test_a_phrase_of_the_exam_is_no_evidence(tmp_path):
    phrase = "请根据所学的知识判断下列哪一项说法是正确的"
    items = [record(f"{phrase}：{real_text(seed)}") for seed in range(decontaminate.GENERIC + 1)]
    copy = record(f"{phrase}：关于月亮绕着地球转动的周期和潮汐之间的关系")
    questions = [
        question(phrase),
        question(f"{phrase}：关于月亮绕着地球转动的周期和潮汐之间的关系", number=1),
    ]
    hits, ignored, *_ = search(tmp_path, {"a": [*items, copy]}, questions)
    assert list(hits["a"]) == [copy["id"]]
    assert ignored


def test_every_kind_of_record_is_searched(tmp_path):
    stem = "福建的省会是哪座城市"
    pair = dialogue(stem) | {"kind": "preference", "chosen": "福州", "rejected": "厦门"}
    late = dialogue("你好") | {"kind": "preference", "chosen": f"我想问：{stem}？福州。", "rejected": "好"}
    sources = {
        "text": [record(stem + "福州")],
        "chat": [dialogue("你好", stem + "厦门"), dialogue("你好", "好")],
        "pairs": [pair, late],
    }
    hits, *_ = search(tmp_path, sources, [question(stem, ("福州", "厦门", "泉州", "南平"))])
    assert {name: len(ids) for name, ids in hits.items()} == {"text": 1, "chat": 1, "pairs": 2}


def test_drops_are_the_union_with_dedup_and_are_not_counted_twice(tmp_path):
    stem = "福建的省会是哪座城市"
    twice, once, good = record(stem + "福州甲"), record(stem + "福州乙"), record(real_text(5))
    path = write(tmp_path / "records.jsonl", [twice, once, good])
    dedup = write(tmp_path / "dedup.jsonl", [{"id": twice["id"], "duplicate_of": "00", "method": "exact"}])
    asked = question(stem, ("福州甲", "福州乙", "丙", "丁"))
    questions = write(tmp_path / "questions.jsonl", [asked])
    found = decontaminate.search_records(path, dedup, {"exam": str(questions)}, 13)
    built = Index(13)
    built.add("exam", asked)
    hits, _ = decontaminate.decide(built, {"a": found})
    account = decontaminate._write(tmp_path / "out", "a", dedup, found, hits["a"], built)
    assert (account["records_in"], account["kept"], account["dropped"]) == (2, 1, {"decontaminate": 1})
    lines = [json.loads(line) for line in (tmp_path / "out" / "drops.jsonl").read_text().splitlines()]
    assert [(line["id"], line["step"]) for line in lines] == [
        (twice["id"], "dedup"),
        (once["id"], "decontaminate"),
    ]
    assert lines[1]["questions"] == [["exam", asked["id"]]]
