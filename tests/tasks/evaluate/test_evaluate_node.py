"""The benchmarks room: splits, rows, declared nodes, and a whole node on a tiny model."""

from collections import Counter

import orjson
import pytest
import torch
from pydantic import ValidationError

from tasks.convert import readers
from tasks.evaluate import benchmarks, protocols, results
from tasks.evaluate.body import evaluate
from tasks.evaluate.node import nodes
from tasks.settings.config import SteelRun
from tasks.settings.errors import NodeError
from tests.support.tiny import artifact, byte_tokenizer, context, steel


def write_questions(folder, lines):
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "questions.jsonl").write_bytes(b"".join(orjson.dumps(line) + b"\n" for line in lines))
    return folder


def line(k, split="val", answer=0, **meta):
    return {
        "id": f"{split}{k}",
        "benchmark": "x",
        "subject": f"s{k % 3}",
        "split": split,
        "language": "zh" if k % 2 else "en",
        "question": f"q {k}?",
        "choices": [f"a{k}", "b", "c", "d"],
        "answer": answer,
        "meta": meta,
    }


def run_of(**more):
    sources = {
        "demo_exam": {"dataset": "demo/exam", "reader": "ceval", "use": "benchmark"},
        "mmlu": {"dataset": "mmlu", "reader": "mmlu", "use": "benchmark"},
    }
    base = {
        "profile": "test",
        "sources": sources,
        "evaluate": {"benchmarks": ["demo_exam", "mmlu"]},
        "sft": {"variants": {"exp1": {"mixture": {}}, "exp2": {"mixture": {}}}},
        "dpo": {"mixture": {"p": 1.0}},
    }
    return SteelRun.model_validate(base | more)


def test_nodes_of_the_stage():
    found = {n.name: n for n in nodes(run_of())}
    assert list(found) == [
        "evaluate:untrained",
        "evaluate:base",
        "evaluate:sft-exp1",
        "evaluate:sft-exp2",
        "evaluate:dpo",
    ]
    assert found["evaluate:untrained"].inputs["model"] == "pretrain"
    assert found["evaluate:sft-exp2"].inputs["model"] == "sft:exp2"
    assert found["evaluate:dpo"].inputs["model"] == "dpo:train"
    assert found["evaluate:base"].inputs["demo_exam"] == "convert:demo_exam"
    assert found["evaluate:base"].config.form == "plain"
    assert found["evaluate:dpo"].config.form == "chat"
    assert found["evaluate:sft-exp1"].config.model == "sft:exp1"
    assert found["evaluate:dpo"].config.benchmarks == {"demo_exam": "val", "mmlu": "test"}


def test_an_unknown_benchmark_is_one_clear_line():
    with pytest.raises(ValidationError, match="nonsense"):
        run_of(evaluate={"benchmarks": ["nonsense"]})


def test_only_the_reported_split_is_asked(tmp_path):
    lines = [line(k) for k in range(4)] + [line(9, "select"), line(1, "test", answer=None)]
    write_questions(tmp_path, lines)
    assert [q.id for q in benchmarks.reported(tmp_path, "x", "val")] == [f"val{k}" for k in range(4)]


def test_a_split_without_labels_is_refused(tmp_path):
    write_questions(tmp_path, [line(1, "test", answer=None)])
    with pytest.raises(NodeError, match="carry no answer"):
        benchmarks.reported(tmp_path, "x", "test")
    with pytest.raises(NodeError, match="no questions"):
        benchmarks.reported(tmp_path, "x", "val")


def test_selection_never_looks_at_the_reported_split(tmp_path):
    write_questions(tmp_path / "a", [line(1), line(2, "dev"), line(3, "select")])
    write_questions(tmp_path / "b", [line(1), line(2, "dev")])
    write_questions(tmp_path / "c", [line(1)])
    assert {q.split for q in benchmarks.selection(tmp_path / "a", "x", "val")} == {"select"}
    assert {q.split for q in benchmarks.selection(tmp_path / "b", "x", "val")} == {"dev"}
    with pytest.raises(NodeError, match="no labelled split"):
        benchmarks.selection(tmp_path / "c", "x", "val")


def test_a_limit_draws_the_same_questions_of_each_subject(tmp_path):
    lines = [line(k, half="known-words" if k % 2 else "new-words") for k in range(30)]
    write_questions(tmp_path, lines)
    some = benchmarks.reported(tmp_path, "x", "val", limit=2)
    counts = Counter((q.row, q.subject) for q in some)
    assert counts == {
        (row, subject): 2 for row in ("demo-known-words", "demo-new-words") for subject in ("s0", "s1", "s2")
    }
    write_questions(tmp_path, list(reversed(lines)))
    assert {q.id for q in benchmarks.reported(tmp_path, "x", "val", limit=2)} == {q.id for q in some}


@pytest.fixture
def tiny(tmp_path):
    byte_tokenizer().save_pretrained(tmp_path / "tokenizer")
    steel().save_pretrained(tmp_path / "model" / "export")
    lines = [line(k, answer=k % 4, half="known-words" if k % 2 else "new-words") for k in range(10)]
    lines += [line(50 + k, answer=0, half="known-words", held_out_fact=True) for k in range(4)]
    write_questions(tmp_path / "exam", lines)
    return {
        "model": artifact("pretrain", tmp_path / "model"),
        "tokenizer": artifact("tokenize:tokenizer", tmp_path / "tokenizer"),
        "demo_exam": artifact("convert:demo_exam", tmp_path / "exam"),
    }


def asked(tmp_path, inputs, model="base", seed=7, **settings):
    run = run_of(evaluate={"benchmarks": ["demo_exam"], **settings})
    [node] = [n for n in nodes(run) if n.name == f"evaluate:{model}"]
    out = tmp_path / f"out-{model}-{seed}"
    out.mkdir()
    outcome = evaluate(context(out, node.config, inputs, seed=seed))
    return out, outcome


def test_a_whole_node(tmp_path, tiny, pool_here):
    out, outcome = asked(tmp_path, tiny)
    table = orjson.loads((out / "results.json").read_bytes())
    keys = {(r["benchmark"], r["protocol"], r.get("scoring")) for r in table}
    controls = {("options-only", "cloze"), ("options-only", "paper-first-token")}
    expected = {
        (b, p, s)
        for b in ("demo-known-words", "demo-new-words", "demo-held-out-facts")
        for p, s in {("cloze", None), ("paper-first-token", None)} | controls
    }
    assert keys == expected
    for row in table:
        assert row["n"] == {"demo-held-out-facts": 4}.get(row["benchmark"], 5)
        assert row["ci95"][0] <= row["accuracy"] <= row["ci95"][1]
        assert row["model"] == "base"
        assert ("subset" in row) == (row["benchmark"] == "demo-held-out-facts")
    lines = [orjson.loads(x) for x in (out / "answers.jsonl").read_bytes().splitlines()]
    assert len(lines) == outcome.counts["answers"] == 14 * 4
    assert outcome.headline.startswith("cloze ")
    assert "held-out" not in outcome.headline
    again, _ = asked(tmp_path, tiny, seed=8)
    assert (again / "answers.jsonl").read_bytes() == (out / "answers.jsonl").read_bytes()


def test_every_protocol_in_one_node(tmp_path, tiny, pool_here):
    lines = [line(k, answer=k % 4) for k in range(3)]
    lines += [line(10 + k, "dev", answer=k % 4) | {"subject": f"s{s}"} for k in range(5) for s in range(3)]
    lines = [{**x, "id": f"{x['split']}-{at}"} for at, x in enumerate(lines)]
    write_questions(tmp_path / "exam", lines)
    names = list(protocols.PROTOCOLS)
    out, outcome = asked(tmp_path, tiny, protocols=names, shuffles=2)
    table = {(r["protocol"], r.get("scoring")): r for r in orjson.loads((out / "results.json").read_bytes())}
    for name in names:
        row = table[name, None]
        protocol = protocols.of(name)
        assert (row["version"], row["protocol_hash"], row["n"]) == (protocol.version, protocol.digest, 3)
        assert row["form"] == protocol.form("plain")
        assert ("unparsed" in row) == protocol.generates
        assert ("letters" in row) == protocol.shows_options
        assert (("options-only", name) in table) == (not protocol.generates)
        assert (("options-shuffled", name) in table) == protocol.shows_options
    assert set(table["cloze", None]["readings"]) == {"per-token", "per-byte", "pmi"}
    assert 0 <= table["paper-gen", None]["agreement"] <= 1
    assert table["lm-eval-compat", None]["average"] == "micro"
    assert table["official-5shot", None]["average"] == "macro"
    assert outcome.extra["protocols"]["cloze"] == {"version": 1, "digest": protocols.of("cloze").digest}
    assert "unparsed/x/paper-gen" not in outcome.metrics
    assert "unparsed/demo_exam/paper-gen" in outcome.metrics


def test_open_questions_need_a_protocol_that_asks_them():
    sources = {"sums": {"dataset": "gsm8k", "reader": "arithmetic", "use": "benchmark"}}
    with pytest.raises(NodeError, match="sums has open questions.*open-exact"):
        nodes(run_of(sources=sources, evaluate={"benchmarks": ["sums"]}))
    assert nodes(run_of(sources=sources, evaluate={"benchmarks": ["sums"], "protocols": ["open-exact"]}))


def test_a_submission_is_one_of_ceval():
    settings = {"benchmarks": ["demo_exam", "mmlu"], "submissions": ["mmlu"]}
    with pytest.raises(NodeError, match="mmlu is no benchmark .* with the reader ceval"):
        nodes(run_of(evaluate=settings))
    with pytest.raises(NodeError, match="picks a letter"):
        nodes(run_of(evaluate=settings | {"submissions": ["demo_exam"], "protocols": ["cloze"]}))
    found = {
        n.name: n.config.submissions
        for n in nodes(run_of(evaluate=settings | {"submissions": ["demo_exam"]}))
    }
    assert found["evaluate:dpo"] == found["evaluate:base"] == ["demo_exam"]
    assert found["evaluate:untrained"] == found["evaluate:sft-exp1"] == []


def test_the_reported_split_of_a_source_may_be_another():
    sources = {"own": {"dataset": "own", "reader": "ceval", "use": "benchmark", "options": {"split": "dev"}}}
    run = run_of(sources=sources, evaluate={"benchmarks": ["own"]})
    assert nodes(run)[0].config.benchmarks == {"own": "dev"}
    options = readers.load("ceval").options
    assert options.model_validate(sources["own"]["options"]).split == "dev"
    with pytest.raises(ValidationError):
        options.model_validate({"split": "nonsense"})


def test_the_untrained_model_is_drawn_from_the_seed(tmp_path, tiny, pool_here):
    one, _ = asked(tmp_path, tiny, "untrained", seed=1)
    two, _ = asked(tmp_path, tiny, "untrained", seed=2)
    assert (one / "answers.jsonl").read_bytes() != (two / "answers.jsonl").read_bytes()
    assert orjson.loads((one / "results.json").read_bytes())[0]["model"] == "untrained"


def test_what_a_training_began_with_is_another_model_than_what_it_made(tmp_path, tiny, pool_here):
    # both are asked by way of the training's artifact, and what was answered is kept beside it
    began = steel()
    with torch.no_grad():
        for parameter in began.parameters():
            parameter.mul_(-2)
    began.save_pretrained(tmp_path / "began")
    (tmp_path / "model" / "CONFIG.json").write_bytes(orjson.dumps({"init_from": str(tmp_path / "began")}))
    [node] = [n for n in nodes(run_of(evaluate={"benchmarks": ["demo_exam"]})) if n.name == "evaluate:base"]
    scores = {}
    for name in ("base", "start", "base"):
        out = tmp_path / f"out-{name}-{len(scores)}"
        out.mkdir()
        evaluate(context(out, node.config.model_copy(update={"model": name}), tiny))
        lines = [orjson.loads(line) for line in (out / "answers.jsonl").read_bytes().splitlines()]
        found = [line["scores"] for line in lines]
        assert scores.setdefault(name, found) == found
    assert scores["start"] != scores["base"]


def test_by_subject_table(tmp_path):
    answers = [
        {"benchmark": "b", "protocol": "cloze", "subject": s, "correct": c, "id": str(i)}
        for i, (s, c) in enumerate([("x", True), ("x", False), ("y", True)])
    ]
    table = results.rows("base", answers)
    assert table[0]["accuracy"] == pytest.approx(2 / 3)
    assert table[0]["macro"] == 0.75
    results.write_by_subject(tmp_path / "t.csv", table)
    assert (tmp_path / "t.csv").read_text().splitlines()[1].startswith("base,b,cloze,,x,2,0.5000,")
