"""Benchmark questions in training text are found; facts, phrases and short ordinary words are not."""

import json

import pytest

from tasks.clean import decontaminate
from tasks.clean.overlap import Index
from tasks.settings.errors import NodeError
from tests.support.samples import dialogue, real_text, record, write


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


def search(tmp_path, sources, questions, ngram=13, dedup=None):
    """(hits, ignored n-grams, index, parts searched) of sources, each a list of records."""
    benchmarks = {"exam": str(write(tmp_path / "questions.jsonl", questions))}
    searched = {}
    for name, items in sources.items():
        path = write(tmp_path / name / "records.jsonl", items)
        decontaminate.search_part(path.parent, path, benchmarks, ngram)
        searched[name] = [decontaminate.Searched(path, path.parent)]
    built = Index(ngram)
    for item in questions:
        built.add("exam", item)
    return (*decontaminate.decide(built, searched, dedup or {}), built, searched)


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


def test_a_question_copied_into_many_records_is_found_in_all(tmp_path):
    copies = [record(f"{seed}、{LONG_ZH}{real_text(seed)}") for seed in range(60)]
    quote = record(f"{LONG_ZH[:-10]}。{real_text(99)}")  # most of its n-grams, all of them generic now
    hits, ignored, *_ = search(tmp_path, {"a": [*copies, quote]}, [question(LONG_ZH)])
    assert len(ignored) > 10
    assert list(hits["a"]) == [copy["id"] for copy in copies]


def test_questions_that_nothing_can_find_are_counted(tmp_path):
    short = "福建省的省会城市是下列的哪一座城市"  # an n-gram and more, but not two
    items = [record(f"{short}？{real_text(seed)}") for seed in range(60)]
    asked = [question(short), question(LONG_ZH, number=1), question("（    ）", number=2)]
    hits, ignored, built, _ = search(tmp_path, {"a": items}, asked)
    assert not hits["a"]
    report = decontaminate.Report(built, ignored, True, 2)
    part = report.content["benchmarks"]["exam"]
    assert (part["questions"], part["questions_not_testable"], part["questions_hit"]) == (3, 2, 0)
    assert "| exam | 3 | 0 | 2 | – |" in report.table()
    assert len(report.content["ignored_ngrams"]["examples"]) == 2


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


@pytest.mark.parametrize("action", ["drop", "report"])
def test_drops_are_the_union_with_dedup_and_are_not_counted_twice(tmp_path, action):
    stem = "福建的省会是哪座城市"
    twice, once, good = record(stem + "福州甲"), record(stem + "福州乙"), record(real_text(5))
    dedup = tmp_path / "dedup"
    write(dedup / "drops.jsonl", [{"id": twice["id"], "duplicate_of": "00", "method": "exact"}])
    kept = {"records_in": 3, "kept": 2, "chars_out": len(once["text"]) + len(good["text"])}
    write(dedup / "accounting.json", [kept])
    asked = question(stem, ("福州甲", "福州乙", "丙", "丁"))
    hits, _, built, searched = search(tmp_path, {"a": [twice, once, good]}, [asked], dedup={"a": dedup})
    totals = decontaminate.totals_of("a", searched["a"], dedup)
    dropping = action == "drop"
    account = decontaminate.write(tmp_path / "out", "a", dedup, totals, hits["a"], built, dropping)
    lines = [json.loads(line) for line in (tmp_path / "out" / "drops.jsonl").read_text().splitlines()]
    assert lines[0] == {"id": twice["id"], "step": "dedup", "duplicate_of": "00", "method": "exact"}
    assert account["records_in"] == 2
    if dropping:
        assert (account["kept"], account["dropped"]) == (1, {"decontaminate": 1})
        assert account["chars_out"] == len(good["text"])
        assert lines[1:] == [{"id": once["id"], "step": "decontaminate", "questions": [["exam", "exam-0"]]}]
    else:
        assert (account["kept"], account["dropped"]) == (2, {})
        assert lines[1:] == []
    hit = [json.loads(line) for line in (tmp_path / "out" / "hits.jsonl").read_text().splitlines()]
    assert hit == [{"id": once["id"], "questions": [["exam", "exam-0"]]}]
    report = decontaminate.Report(built, [], dropping, 10)
    report.add("a", hits["a"])
    part = report.content["benchmarks"]["exam"]
    assert (part["held"], part["dropped"]) == ({"a": 1}, {"a": 1} if dropping else {})
    assert part["examples"] == [
        {"source": "a", "id": once["id"], "question": "exam-0", "excerpt": once["text"]}
    ]


def test_counts_that_disagree_with_dedup_are_refused(tmp_path):
    asked = question("福建的省会是哪座城市")
    *_, searched = search(tmp_path, {"a": [record(real_text(5))]}, [asked])
    write(tmp_path / "dedup" / "accounting.json", [{"records_in": 2, "kept": 2, "chars_out": 9}])
    with pytest.raises(NodeError, match="1 records were searched, but clean:dedup counted 2"):
        decontaminate.totals_of("a", searched["a"], tmp_path / "dedup")


@pytest.mark.parametrize(
    ("listed", "told"),
    [
        (["copy"], None),
        ([], "3 records 2 are left by clean:dedup and 1 held questions, but drops.jsonl lists"),
        (["copy", "copy"], "but drops.jsonl lists {'dedup': 2, 'decontaminate': 1}"),
        (["leak"], "was dropped by clean:dedup already"),
    ],
)
def test_drops_that_do_not_add_up_are_refused(tmp_path, listed, told):
    items = {"copy": record(real_text(1)), "leak": record(LONG_ZH), "good": record(real_text(5))}
    hits, _, built, searched = search(tmp_path, {"a": items.values()}, [question(LONG_ZH)])
    dedup = tmp_path / "dedup"
    gone = [{"id": items[name]["id"], "duplicate_of": "00", "method": "exact"} for name in listed]
    write(dedup / "drops.jsonl", gone)
    write(dedup / "accounting.json", [{"records_in": 3, "kept": 2, "chars_out": 200}])
    totals = decontaminate.totals_of("a", searched["a"], dedup)

    def written():
        return decontaminate.write(tmp_path / "out", "a", dedup, totals, hits["a"], built, True)

    if told is None:
        account = written()
        assert (account["records_in"], account["kept"]) == (2, 1)
    else:
        with pytest.raises(NodeError, match=told):
            written()
