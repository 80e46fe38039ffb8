"""The language-ratio study: its graph, the budgets of its cells, its statements, and its page."""

import json
import logging

import orjson
import pytest

from flows import spec
from tasks.ablation.language_ratio import node, table, train
from tasks.ablation.language_ratio.train import Cell
from tasks.settings import profiles
from tasks.settings.errors import NodeError
from tasks.stage.node import Artifact, Context
from tasks.training import examples, languages, mixtures
from tests.support.sets import dialogue, write_set
from tests.support.tiny import byte_tokenizer

STUDY = spec.studies()["language-ratio"]


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory):
    folder = tmp_path_factory.mktemp("tokenizer")
    byte_tokenizer().save_pretrained(folder)
    return folder


def test_every_share_gets_every_seed_in_both_arms_from_one_base():
    nodes = STUDY.build(profiles.load("demo"))
    mine = {name: n for name, n in nodes.items() if n.stage == node.STAGE}
    assert len(mine) == (6 + 5) * 3 + 1
    assert "ratio:chinese-0-s1" not in mine
    assert {n.inputs.get("base") for name, n in mine.items() if name != node.TABLE} == {"pretrain"}
    assert mine["ratio:total-40-s2"].config.languages == {"demo_qa_zh": "zh", "demo_qa_en": "en"}
    assert mine["ratio:total-40-s2"].trains
    assert "sft:exp1" not in nodes


def test_its_settings_change_nothing_of_the_pipeline():
    from tasks.stage.fingerprint import digest

    over = {"language_ratio": {"shares": [10, 90], "seeds": [7], "tokens": 5, "steps": 3}}
    plain, studied = (spec.PIPELINE.build(profiles.load("demo", o)) for o in ({}, over))
    assert {k: digest(n.config) for k, n in plain.items()} == {
        k: digest(n.config) for k, n in studied.items()
    }


@pytest.mark.parametrize(
    ("cell", "expected"),
    [
        (("total", 0), {"zh": 0, "en": 1000}),
        (("total", 40), {"zh": 400, "en": 600}),
        (("chinese", 20), {"zh": 200, "en": 800}),
        (("chinese", 40), {"zh": 200, "en": 300}),
        (("chinese", 100), {"zh": 200, "en": 0}),
    ],
)
def test_the_arms_hold_constant_what_they_say(cell, expected):
    arm, share = cell
    assert train.budgets(Cell(arm=arm, share=share), 20, 1000) == expected


@pytest.mark.parametrize(
    ("over", "reason"),
    [
        ({"zh": ["demo_dpo_zh"]}, "demo_dpo_zh is no source with use: sft"),
        ({"zh": ["demo_qa_en"]}, "demo_qa_en cannot be both"),
    ],
)
def test_data_sets_that_cannot_be_are_refused(over, reason):
    with pytest.raises(NodeError, match=reason):
        STUDY.build(profiles.load("demo", {"language_ratio": over}))


def test_a_profile_without_english_sets_has_to_name_some():
    with pytest.raises(NodeError, match=r"language_ratio\.en: no source"):
        STUDY.build(profiles.load("demo", {"sources": {"demo_qa_en": {"language": "mixed"}}}))


@pytest.fixture
def work(tmp_path, tokenizer):
    def make(**budgets):
        out = tmp_path / "out"
        out.mkdir(exist_ok=True)
        return languages.Work(
            tokenizer=tokenizer, sets=sets, seed=3, max_tokens=200, packed_tokens=200, out=out, holds_out=False,
            languages={"a": "zh", "b": "zh", "c": "en"}, budgets=budgets,
        )  # fmt: skip

    sets = tuple(
        mixtures.Share(name, write_set(tmp_path, name, 0, [dialogue(name, k) for k in range(30)]), None, 1.0)
        for name in "abc"
    )
    return make


def test_budgets_are_met_as_nearly_as_whole_records_allow(work):
    there = languages.available(work(zh=0, en=0))
    budgets = {"zh": there["zh"] // 3, "en": there["en"] // 2}
    accounting = examples.prepare(work(**budgets))
    got = train.supervised(accounting, {"a": "zh", "b": "zh", "c": "en"})
    for language, budget in budgets.items():
        assert abs(got[language] - budget) <= 10, "half of a reply of some 15 bytes"
    assert accounting["val"]["rows"] == 0
    assert accounting["sets"]["a"]["taken"]
    assert accounting["sets"]["b"]["taken"]


def test_a_smaller_budget_is_part_of_a_larger_one(work):
    def ids(n):
        return {r["id"] for s in work(zh=n, en=0).taken() for r, _ in s}

    assert ids(100) < ids(400)
    assert ids(0) == set()


def test_more_than_there_is_is_refused(work):
    with pytest.raises(NodeError, match="are asked for, and the sets hold"):
        work(zh=0, en=10**9).taken()


def test_control_questions_are_not_asked(tmp_path):
    config = STUDY.build(profiles.load("demo"))["ratio:total-40-s2"].config
    asked = [
        {
            "id": str(i), "subject": "s", "split": "val", "language": "en", "question": "?", "choices": ["a", "b"],
            "answer": 0, "meta": {"half": "known-words", "held_out_fact": i == 2},
        }
        for i in range(3)
    ]  # fmt: skip
    (tmp_path / "questions.jsonl").write_bytes(b"".join(orjson.dumps(each) + b"\n" for each in asked))
    inputs = {"demo_exam": Artifact("convert:demo_exam", tmp_path, "d", "f", {})}
    ctx = Context("ratio:x", tmp_path, config, inputs, profiles.load("demo").runtime, 0, None, None)
    assert [question.id for question in train._questions(ctx, config)] == ["0", "1"]


# ------------------------------------------------------------------------------------- what it says
def made(tmp_path, name, right, targets):
    folder = tmp_path / name
    folder.mkdir()
    lines = [
        {"benchmark": "exam", "id": str(i), "language": language, "correct": ok}
        for language, each in right.items()
        for i, ok in enumerate(each)
    ]
    (folder / train.ANSWERS).write_bytes(b"".join(orjson.dumps(line) + b"\n" for line in lines))
    return Artifact(f"ratio:{name}", folder, "d", "f", {"extra": {"targets": targets}, "counts": {"rows": 5}})


def test_the_table_says_where_the_curve_is_flat_and_where_not(tmp_path):
    n = 400
    alike = [i % 4 > 0 for i in range(n)]
    right = {0: {"zh": [i % 4 == 0 for i in range(n)], "en": alike}, 50: {"zh": alike, "en": alike},
             100: {"zh": alike, "en": alike}}  # fmt: skip
    inputs = {
        Cell(arm="total", share=share).unit(seed): made(
            tmp_path, f"t{share}{seed}", answers, {"zh": 10 * share, "en": 1000 - 10 * share}
        )
        for share, answers in right.items()
        for seed in (1, 2)
    }
    out = tmp_path / "out"
    out.mkdir()
    recipe = table.Recipe(
        arms=["total"], shares={"total": [0, 50, 100]}, seeds=[1, 2], margin=0.03, profile="demo"
    )
    log = logging.getLogger("test")
    ctx = Context(node.TABLE, out, recipe, inputs, profiles.load("demo").runtime, 0, log, None)
    outcome = table.body(ctx)
    numbers = json.loads((out / table.NUMBERS).read_text())
    zh, en = numbers["curves"]
    assert zh["flat"] == [50, 100]
    assert en["flat"] == [0, 50, 100]
    assert zh["differences"][0]["mean"] == pytest.approx(0.5)
    assert zh["differences"][0]["ci95"][0] > 0.3
    assert numbers["rows"][1]["accuracy"]["zh"]["mean"] == 0.75
    assert "flat from 50 to 100 % Chinese" in outcome.summary
    page = (out / table.PAGE).read_text()
    assert "flat from 0 to 100 % Chinese" in page
    assert "data:image/svg+xml" in page
    latest = tmp_path / "latest"
    node.publish(latest, out)
    assert (latest / table.PAGE).is_file()


def test_few_questions_are_no_proof_of_flatness():
    noisy = {0: [[1, 0, 1, 0, 1, 1]], 100: [[0, 1, 1, 0, 1, 0]]}
    found = table.curve("total", "zh", noisy, 0.03)
    assert found["flat"] == []
    assert found["no_difference_seen"] == [0, 100]
    assert "none is ruled out" in found["statement"]


def test_one_share_is_compared_with_nothing():
    found = table.curve("chinese", "zh", {100: [[1, 0, 1]]}, 0.03)
    assert found["statement"].endswith(": one share, nothing to compare")


def test_an_interval_counts_questions_and_seeds():
    questions = [[1.0, 0.0] * 50, [1.0, 0.0] * 50]
    one = table.estimate(questions)
    assert one["mean"] == 0.5
    assert one["ci95"][1] - 0.5 == pytest.approx(1.96 * (0.25 / 99) ** 0.5, rel=1e-3)
    seeds = table.estimate([[1.0] * 100, [0.0] * 100])
    assert seeds["ci95"][1] - 0.5 == pytest.approx(1.96 * 0.5, rel=1e-3)


def test_different_questions_are_not_compared(tmp_path):
    one = made(tmp_path, "a", {"zh": [True]}, {})
    two = made(tmp_path, "b", {"zh": [True, False]}, {})
    with pytest.raises(NodeError, match="different questions"):
        table.answers([one, two])
