"""The sentences follow the numbers."""

import dataclasses
import logging
from concurrent.futures import Future
from pathlib import Path
from types import SimpleNamespace

import pytest
from huggingface_hub import ModelCard

from tasks.figures.history import thin
from tasks.report import model_card, reading
from tasks.report import node as report
from tasks.settings.config import Export, PipelineRecipe, Runtime
from tasks.stage.node import Context
from tests.support.fake_run import config


def row(accuracy, model="dpo", benchmark="ceval", protocol="cloze", n=1000, **extra):
    ci = [accuracy - 0.03, accuracy + 0.03]
    return {
        "model": model,
        "benchmark": benchmark,
        "protocol": protocol,
        "accuracy": accuracy,
        "n": n,
        "ci95": ci,
    } | extra


def test_chance_is_called_chance_only_when_the_interval_holds_it():
    text = " ".join(reading.about_benchmarks([row(0.26), row(0.24, protocol="paper-first-token")], "dpo"))
    assert text.count("stays at chance") == 2
    assert "above chance" not in text
    assert "knows the answers" not in text
    text = " ".join(reading.about_benchmarks([row(0.95), row(0.24, protocol="paper-first-token")], "dpo"))
    assert "By cloze, dpo is above chance" in text
    assert "By paper-first-token, dpo stays at chance" in text
    assert "knows the answers (see cloze) but not the letters" in text


def test_a_control_that_betrays_the_answer_is_named():
    fine = [row(0.27, protocol="options-only", scoring="cloze")]
    bad = [row(0.55, protocol="options-only", scoring="cloze")]
    assert "do not betray" in " ".join(reading.about_benchmarks(fine, "dpo"))
    assert "give something away" in " ".join(reading.about_benchmarks(bad, "dpo"))


def test_dpo_without_effect_is_not_praised():
    text = reading.about_dpo({"accuracy_before": 0.6, "accuracy_after": 0.58, "n": 300, "p_value": 0.4})
    assert "fell from 60.0 % to 58.0 %" in text
    assert "may be chance" in text
    text = reading.about_dpo({"accuracy_before": 0.49, "accuracy_after": 0.49, "n": 100, "p_value": 1.0})
    assert "stayed at 49.0 % (McNemar p = 1.000, so this may be chance)" in text
    text = reading.about_dpo({"accuracy_before": 0.6, "accuracy_after": 0.8, "n": 300, "p_value": 1e-6})
    assert "rose" in text
    assert "McNemar p < 0.001)" in text


def test_variants_with_overlapping_intervals_are_not_ranked():
    table = [
        {
            "variant": v,
            "benchmark": "ceval",
            "protocol": "cloze",
            "accuracy": a,
            "n": 9,
            "ci95": [a - 0.05, a + 0.05],
            "p_vs_base": p,
        }
        for v, a, p in (("a", 0.50, 0.2), ("b", 0.53, 0.001))
    ]
    first, second = reading.about_ablation(table)
    assert first.startswith("1 of 2 comparisons")
    assert "do not rank variants there" in second


def test_thinning_keeps_both_ends():
    points = [(i, float(i)) for i in range(9999)]
    few = thin(points, 100)
    assert len(few) == 100
    assert (few[0], few[-1]) == (points[0], points[-1])


def test_model_card_has_scores_intervals_and_licences(seen):
    card = model_card.write(seen)
    data = ModelCard(card).data
    assert (data.library_name, data.language, data.license) == ("transformers", ["zh"], None)
    scores = {(r.dataset_name, r.metric_args["protocol"]): r for r in data.eval_results}
    row = next(r for r in seen.benchmarks if r["model"] == "dpo" and r["benchmark"] == "demo-known-words")
    known = scores["demo-known-words", row["protocol"]]
    assert known.metric_value == pytest.approx(row["accuracy"], abs=1e-4)
    assert known.metric_args["n"] == row["n"]
    assert known.metric_args["ci95"] == pytest.approx(row["ci95"], abs=1e-4)
    assert "| demo-known-words | cloze |" in card
    assert "demo_qa_zh (sft): CC0-1.0" in card
    assert "skypile (pretrain): not stated" in card
    assert "| pre-training | 1,000 steps | 8 |" in card
    assert "instruction tuning, exp4" in card
    assert "small generated world" in card
    assert "`make run PROFILE=demo`, seed 1234" in card


def test_a_card_tells_of_its_model_and_of_nothing_that_came_later(seen):
    base = model_card.write(model_card.of(seen, "base"))
    assert "## Scores of base" in base
    assert "continues texts" in base
    assert not any(word in base for word in ("DPO", "GRPO", "instruction tuning"))
    sft = model_card.write(model_card.of(seen, "sft"))
    assert "instruction tuning, exp4" in sft
    assert "DPO" not in sft
    assert "instruction tuning, exp1" in model_card.write(model_card.of(seen, "sft:exp1"))
    rl = model_card.write(model_card.of(seen, "rl"), changed=["pretrain.steps=7"])
    assert "GRPO" in rl
    assert "DPO" not in rl, "it started from the chosen variant"
    assert "make run PROFILE=demo SET='pretrain.steps=7'" in rl


def test_a_continued_model_names_what_it_went_on_from(seen):
    model = seen.config.model.model_copy(update={"pretrained": Path("/secret/place")})
    export = Export(licence="apache-2.0", base_model="some/model")
    config = seen.config.model_copy(update={"model": model, "export": export})
    card = model_card.write(dataclasses.replace(seen, config=config), "gguf")
    data = ModelCard(card).data
    assert (data.license, data.base_model, data.library_name) == ("apache-2.0", "some/model", "gguf")
    assert "from the weights of `some/model`" in card
    assert "from scratch" not in card
    assert "/secret" not in card


def test_node_and_body(run, tmp_path, monkeypatch):
    (node,) = report.nodes(config(), list(run.nodes))
    assert dict(node.inputs) == {name: name for name in run.nodes}
    assert type(node.config) is PipelineRecipe
    asked = []

    def submit(function, export, prompts, tokens, chat, device):
        asked.append((function.__name__, export, tokens, chat))
        future = Future()
        future.set_result([f"answer to {p}" for p in prompts])
        return future

    monkeypatch.setattr("tasks.work.pool.submit", submit)
    ctx = Context(
        "report", tmp_path, node.config, run.nodes, Runtime(), 1, logging.getLogger(), SimpleNamespace()
    )
    outcome = node.body(ctx)
    assert asked == [("generate", str(run.nodes["dpo:train"].path / "export"), 48, True)]
    assert outcome.headline.startswith("dpo: demo-known-words")
    for name in outcome.files:
        assert (tmp_path / name).stat().st_size > 100
    assert "answer to 你是谁？" in (tmp_path / "report.html").read_text("utf-8")
    assert len(list((tmp_path / "figures").glob("*.svg"))) == 9


def test_where_a_pretrained_model_lies_is_not_in_the_reports_fingerprint(tmp_path):
    from tasks.report import node
    from tasks.settings.config import Model, SteelRun
    from tasks.stage.fingerprint import canonical

    def config(folder):
        return node.nodes(SteelRun(profile="x", model=Model(pretrained=folder)), [])[0].config

    here, there = (tmp_path / name / "smollm2" for name in ("a", "b"))
    assert canonical(config(here)) == canonical(config(there))
    assert canonical(config(here)) != canonical(config(tmp_path / "another"))
