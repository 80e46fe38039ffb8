"""What DPO and reinforcement learning have changed, as the report shows it."""

import re

import pytest

from tasks.report import page, post_training


def test_reinforcement_learning_is_shown_with_the_benchmarks_of_its_start(seen):
    rows = post_training.rl_rows(seen.nodes)
    assert rows[0]["cases"] == "all open questions"
    assert {row["measure"] for row in rows[1:]} == {
        r["protocol"] for r in seen.benchmarks if r["model"] == "rl"
    } - {"options-only"}
    for row in rows[1:]:
        assert row["after"] - row["before"] == pytest.approx((row["gained"] - row["lost"]) / row["n"])


def test_held_out_prompts_that_were_learned_before_are_said(seen, monkeypatch):
    found = seen.nodes["rl:train"].read_json("rl.json")
    found["rows"] = [{**found["rows"][0], "questions": "held-out prompts", "in_fine_tuning": 7}]
    monkeypatch.setattr(type(seen.nodes["rl:train"]), "read_json", lambda *_: found)
    monkeypatch.setattr(post_training, "_benchmarks", lambda *_: [])
    (row,) = post_training.rl_rows(seen.nodes)
    assert row["cases"] == "held-out prompts (7 of them in the start model's fine-tuning)"
    assert "questions" not in row


def test_pairs_are_shown_by_their_source(seen):
    rows = post_training.dpo_rows(seen.nodes)
    assert [(row["cases"], row["measure"]) for row in rows] == [
        ("demo_dpo_zh", "chosen likelier per token"),
        ("demo_dpo_zh", "reward accuracy, 3 ties apart"),
        ("on-policy", "chosen likelier per token"),
        ("on-policy", "reward accuracy, 3 ties apart"),
        ("on-policy", "right answers"),
    ]
    assert rows[1]["before"] is None


def test_a_run_without_either_has_no_rows():
    assert post_training.dpo_rows({}) == post_training.rl_rows({}) == []


def test_the_page_has_both_tables(seen):
    html = page.render(seen, {})
    for name, rows in (("rl", post_training.rl_rows), ("dpo-by-set", post_training.dpo_rows)):
        table = re.search(rf'<table data-table="{name}">.*?</table>', html, re.S)
        assert table is not None
        assert table[0].count("<tr>") == 1 + len(rows(seen.nodes))
