"""Duplicates within and across sources: the first stays, near ones are checked, different ones stay."""

import json
import shutil

import numpy as np
import pytest

from tasks.clean import dedup, signatures
from tasks.clean.recipe import load_set
from tasks.records import record as records
from tasks.settings.errors import NodeError
from tests.support.samples import dialogue, real_text, record, write

DISTINCT = sorted({real_text(seed) for seed in range(400)}, key=len, reverse=True)
TEXT = "\n".join(DISTINCT[:4])
OTHER = "\n".join(DISTINCT[4:8])


def find(tmp_path, sources, recipe="steel", min_chars=100, **more):
    """(drops: {source: {id: line}}, report, accounts) of sources, each a list of records or of parts."""
    near = {kind: r.near_duplicates for kind, r in load_set(recipe).items()}
    hashed = []
    for name, items in sources.items():
        for number, part in enumerate(items if items and isinstance(items[0], list) else [items]):
            folder = tmp_path / name / str(number)
            path = write(folder / "records.jsonl", part)
            signatures.hash_part(folder, path, near, min_chars)
            hashed.append((name, path, folder / signatures.FILE))
    out = tmp_path / "dedup"
    shutil.rmtree(out, ignore_errors=True)
    accounts, report = dedup.decide(list(sources), hashed, near, out, **more)
    lines = {name: (out / name / "drops.jsonl").read_text().splitlines() for name in sources}
    drops = {name: {line["id"]: line for line in map(json.loads, found)} for name, found in lines.items()}
    return drops, report, accounts


def test_the_first_in_source_order_stays(tmp_path):
    a, b, c = record(TEXT, source="a"), record(OTHER, source="a"), record(TEXT, source="b")
    drops, *_ = find(tmp_path, {"b": [c], "a": [a, b]})
    assert set(drops["a"]) == {a["id"]}
    assert drops["a"][a["id"]] == {"id": a["id"], "duplicate_of": c["id"], "method": "exact"}
    assert not drops["b"]


@pytest.mark.parametrize(
    "copy",
    [
        TEXT.replace("，", ",").replace("。", ". "),
        TEXT.replace("\n", "\n\n  ") + "！",
        TEXT.replace("，", ""),
    ],
)
def test_punctuation_and_spaces_make_no_difference(tmp_path, copy):
    drops, *_ = find(tmp_path, {"a": [record(TEXT), record(OTHER), record(copy)]})
    assert list(drops["a"]) == [record(copy)["id"]]


def test_a_slightly_edited_long_text_is_a_near_duplicate(tmp_path):
    edited = TEXT.replace("小学生", "学生", 1) + "完。"
    drops, report, _ = find(tmp_path, {"a": [record(TEXT), record(OTHER), record(edited)]})
    assert [d["method"] for d in drops["a"].values()] == ["near"]
    assert report["largest_groups"][0]["size"] == 2


def test_records_not_compared_with_all_kept_ones_are_counted(tmp_path, monkeypatch):
    monkeypatch.setattr(dedup, "MAX_COMPARED", 3)
    near = {"text": load_set("steel")["text"].near_duplicates}
    path = write(tmp_path / "records.jsonl", [record(text) for text in (*DISTINCT[:6], DISTINCT[0] + "！")])
    signatures.hash_part(tmp_path, path, near, 0)
    rows = np.load(tmp_path / signatures.FILE)
    rows["simhash"], rows["exact"][:, 1] = (
        5,
        np.arange(len(rows)),
    )  # one cluster of different texts, and a copy
    np.save(tmp_path / signatures.FILE, rows)
    [account], report = dedup.decide(["a"], [("a", path, tmp_path / signatures.FILE)], near, tmp_path / "out")
    assert account["dropped"] == {"near": 1}
    assert report["not_compared_with_all"] == 2  # the fifth and the sixth


def test_texts_from_one_template_are_no_duplicates(tmp_path):
    form = "{0}是一个省，它的省会是{1}。{0}的经济、文化和交通都以{1}为中心，来往的旅客很多。如果有人问起{0}的省会在哪里，就应当回答：{1}。每年都有许多人到{1}去看风景，也有许多人从{1}出发，走遍{0}的山山水水。"
    places = [
        "河北 石家庄",
        "山西 太原",
        "辽宁 沈阳",
        "吉林 长春",
        "江苏 南京",
        "浙江 杭州",
        "安徽 合肥",
        "福建 福州",
        "江西 南昌",
        "山东 济南",
    ]
    items = [record(form.format(*place.split())) for place in places]
    drops, *_ = find(tmp_path, {"a": items})
    assert not drops["a"]


def test_numbers_are_told_apart(tmp_path):
    items = [record(f"计算的结果等于{n}。") for n in ("3.14", "314", "-314", "3:14", "314%")]
    drops, *_ = find(tmp_path, {"a": items})
    assert not drops["a"]


def test_dialogues_and_short_texts_are_compared_exactly(tmp_path):
    items = [
        dialogue("你好", "你好！"),
        dialogue("你好。", "你好"),
        dialogue("你好", "你也好！"),
        record("你好\n你好！"),
    ]
    drops, *_ = find(tmp_path, {"a": items})
    assert list(drops["a"]) == [items[1]["id"], items[3]["id"]]


def test_code_differs_by_its_signs(tmp_path):
    body = (
        "def f(values):\n    total = 0\n    for value in values:\n        total {} value\n    return total\n"
    )
    items = [record(body.format(sign), "code") for sign in ("+=", "-=", "*=")]
    copy = record(body.format("+=").replace("\n", "  \n") + "\n\n", "code")
    drops, *_ = find(tmp_path, {"a": [*items, copy]}, min_chars=1000)
    assert list(drops["a"]) == [copy["id"]]


def test_the_papers_setting_takes_all_texts_of_few_words_for_one(tmp_path):
    items = [record(text) for text in DISTINCT[:20]]
    drops, report, _ = find(tmp_path, {"a": items}, recipe="paper")
    assert len(drops["a"]) == 19
    assert report["hash_zero"] == 20


def test_files_and_counts_per_source(tmp_path):
    edited = TEXT + "完。"
    items = [record(TEXT), record(OTHER), record(TEXT + "！"), record(edited)]
    _, _, [account] = find(tmp_path, {"a": items})
    assert account["dropped"] == {"exact": 1, "near": 1}
    assert (account["records_in"], account["kept"]) == (4, 2)
    assert account["chars_out"] == len(TEXT) + len(OTHER)
    assert json.loads((tmp_path / "dedup" / "a" / "accounting.json").read_text()) == account
    assert not (tmp_path / "dedup" / ".work").exists()
    written = [
        json.loads(line) for line in (tmp_path / "dedup" / "a" / "drops.jsonl").read_text().splitlines()
    ]
    assert written == [
        {"id": items[2]["id"], "duplicate_of": items[0]["id"], "method": "exact"},
        {"id": items[3]["id"], "duplicate_of": items[0]["id"], "method": "near"},
    ]


def test_the_first_copies_are_shown_beside_what_is_kept(tmp_path):
    copies = [record(TEXT + "！" * n, source="b") for n in range(5)]
    edited = record(OTHER.replace("小学生", "学生", 1) + "完。", source="b")
    sources = {"a": [record(TEXT, source="a"), record(OTHER, source="a")], "b": [*copies, edited]}
    drops, *_ = find(tmp_path, sources, examples=3)
    shown = json.loads((tmp_path / "dedup/examples.json").read_text())
    assert {method: len(found) for method, found in shown["b"].items()} == {"exact": 3, "near": 1}
    assert "a" not in shown
    kept = sources["a"][0]
    for example in shown["b"]["exact"]:
        assert example == {"dropped": TEXT[:160], "kept": TEXT[:160], "duplicate_of": kept["id"]}
    assert shown["b"]["near"][0]["dropped"] == edited["text"][:160]
    assert len(drops["b"]) == 6


def test_drops_that_were_not_written_as_counted_are_refused(tmp_path, monkeypatch):
    items = [record(TEXT), record(OTHER), record(TEXT + "！"), record(OTHER + "！")]
    dump = records.dump
    monkeypatch.setattr(records, "dump", lambda line: b"" if line["id"] == items[2]["id"] else dump(line))
    with pytest.raises(NodeError, match=r"{'exact': 2} were dropped, but drops.jsonl lists {'exact': 1}"):
        find(tmp_path, {"a": items})


def test_a_record_dropped_twice_or_not_at_all_is_refused(tmp_path, monkeypatch):
    items = [record(TEXT), record(OTHER), record(TEXT + "！"), record(OTHER + "！")]
    by_rank = dedup.Spill.by_rank
    for times, told in ((2, "a: a record was dropped twice"), (0, "2 copies were found, but 0 written down")):

        def written(self, at, total, rows, times=times):
            by_rank(self, np.repeat(at, times), total, np.repeat(rows, times))

        monkeypatch.setattr(dedup.Spill, "by_rank", written)
        with pytest.raises(NodeError, match=told):
            find(tmp_path, {"a": items})
