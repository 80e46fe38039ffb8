"""The paper's tables beside the run's numbers, and what stands beside the scores."""

import math

import pytest

from tasks.report import page, paper, protocol_facts, view
from tests.support.fake_run import FakeRun


def row(model, family, protocol="paper-first-token", accuracy=0.4, n=100, **more):
    return {
        "model": model,
        "benchmark": family,
        "family": family,
        "protocol": protocol,
        "accuracy": accuracy,
        "score": accuracy,
        "n": n,
        "ci95": [accuracy - 0.05, accuracy + 0.05],
        **more,
    }


def test_the_published_numbers_and_their_noise():
    assert [line.scores["ceval"] for line in paper.TABLE_3] == [32.35, 38.57, 39.21, 40.43, 41.90]
    assert len(paper.TABLE_4) == 14
    assert 100 * paper.standard_error(0.404, 1346) == pytest.approx(1.34, abs=0.005)
    assert "+1.22, +1.47, +0.14 points" in paper.noise()
    assert "of two of 1.9" in paper.noise()


def test_this_runs_rows_stand_below_with_their_errors():
    rows = [
        row("sft:exp4", "ceval", n=1346),
        row("sft:exp4", "mmlu"),
        row("dpo", "cmmlu"),
        row("untrained", "ceval"),
    ]
    three, four = paper.beside(rows, {"exp4": {"note": "80 : 20"}})
    assert three.benchmarks == ["ceval", "cmmlu", "mmlu"]
    [mine] = [line for line in three.lines if line.ours]
    assert (mine.name, mine.note, mine.protocol) == ("sft:exp4", "80 : 20", "paper-first-token")
    whole, none, part = mine.cells
    assert whole.score == 40.0
    assert whole.error == pytest.approx(100 * math.sqrt(0.24 / 1346))
    assert (whole.part, none, part.part) == ("", None, "100 of 14,042 questions")
    assert [line.name for line in four.lines if line.ours] == ["sft:exp4", "dpo"]
    assert four.benchmarks == ["ceval", "cmmlu"]


def test_other_benchmarks_are_not_set_beside_the_paper():
    own = row("dpo", "ceval") | {"benchmark": "demo-known-words"}
    del own["family"]
    assert paper.beside([own], {}) == []
    assert paper.beside([row("dpo", "ceval", "options-only", scoring="cloze")], {}) == []


def test_letters_replies_and_other_orders():
    rows = [
        row("dpo", "ceval", letters={"A": 95, "B": 5}),
        row("dpo", "ceval", "paper-gen", letters={"A": 30, "B": 30}, unparsed=40, agreement=0.5),
        row("dpo", "ceval", "options-shuffled", scoring="paper-first-token", same=0.25),
        row("base", "ceval", letters={"A": 100}),
    ]
    first, generated = protocol_facts.letters(rows, "dpo")
    assert (first["collapsed"], first["same"], first["unparsed"]) == ("A", 0.25, None)
    assert (generated["collapsed"], generated["unparsed"], generated["agreement"]) == ("", 0.4, 0.5)
    assert generated["letters"][0] == ("A", 30, 0.3)


def test_the_page_shows_them(tmp_path):
    run = FakeRun(tmp_path).build("dpo")
    more = {
        "macro": 0.41,
        "average": "macro",
        "version": 1,
        "protocol_hash": "ab" * 32,
        "form": "plain",
        "chance": 0.25,
    }
    rows = [
        row("base", "ceval", **more, letters={"A": 100}),
        row("base", "ceval", "cloze", **more, readings={"per-token": 0.4, "per-byte": 0.3, "pmi": 0.2}),
        row("base", "ceval", "options-shuffled", **more, scoring="paper-first-token", same=0.125),
        row("base", "cmmlu", "paper-gen", **more, letters={"A": 60}, unparsed=40, agreement=0.75),
    ]
    rows[0]["categories"] = {"hard": {"accuracy": 0.31, "macro": 0.32, "n": 8}}
    run.add("evaluate:base", {"results.json": rows, "answers.jsonl": []})
    curve = [
        {"step": s, "tokens": 1000 * s, "n": {"ceval": 40}, "accuracy/ceval/cloze": 0.3} for s in (10, 20)
    ]
    run.add("evaluate:checkpoints", {"curve.jsonl": curve})
    seen = view.assemble(run.config, run.nodes)
    drawings = page.draw(seen)
    html = page.render(seen, drawings)
    for text in (
        "Beside the paper",
        "Qwen1.5-1.8B-Chat",
        "abababababababab",
        "always A",
        "Cloze by normalisation",
    ):
        assert text in html
    for text in ("Score against tokens", "40 questions of ceval", "hard", "Options in other orders", "12.5"):
        assert text in html
    assert "accuracy, %" in drawings["pretrain"]
    assert seen.summary()["benchmarks"][0]["protocol_hash"] == "ab" * 32
