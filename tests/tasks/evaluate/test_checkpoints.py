"""The exports of chosen steps are asked the same questions, never those that are reported."""

import orjson
import pytest

from tasks.evaluate import checkpoints
from tasks.evaluate.node import nodes
from tasks.settings.config import SteelRun
from tasks.settings.errors import NodeError
from tests.support.tiny import Silent, artifact, byte_tokenizer, context, steel


def line(k, split):
    return {
        "id": f"{split}{k}",
        "subject": f"s{k % 2}",
        "split": split,
        "language": "en",
        "question": f"q {k}?",
        "choices": ["a", "b", "c", "d"],
        "answer": k % 4,
    }


@pytest.fixture
def inputs(tmp_path):
    byte_tokenizer().save_pretrained(tmp_path / "tokenizer")
    trained = tmp_path / "trained"
    for folder in ("export", "exports/step-000002", "exports/step-000004.partial"):
        steel().save_pretrained(trained / folder)
    logged = [{"step": s, "loss": 1.0, "tokens": 100 * s} for s in (2, 4, 6)]
    (trained / "metrics.jsonl").write_bytes(b"".join(orjson.dumps(x) + b"\n" for x in logged))
    exam = tmp_path / "exam"
    exam.mkdir()
    lines = [line(k, split) for k in range(6) for split in ("dev", "val")]
    (exam / "questions.jsonl").write_bytes(b"".join(orjson.dumps(x) + b"\n" for x in lines))
    return {
        "model": artifact("pretrain", trained),
        "tokenizer": artifact("tokenize:tokenizer", tmp_path / "tokenizer"),
        "exam": artifact("convert:exam", exam),
    }


def node(checkpoints=2):
    run = SteelRun.model_validate(
        {
            "profile": "test",
            "sources": {"exam": {"dataset": "exam", "reader": "ceval", "use": "benchmark"}},
            "evaluate": {"benchmarks": ["exam"], "checkpoints": checkpoints},
        }
    )
    return {n.name: n for n in nodes(run)}.get("evaluate:checkpoints")


def test_it_is_off_by_default():
    assert node(0) is None
    assert node().inputs["model"] == "pretrain"


def test_a_curve_of_scores_by_step(tmp_path, inputs, pool_here, monkeypatch):
    asked = []
    run = checkpoints.scorer.run
    monkeypatch.setattr(
        checkpoints.scorer, "run", lambda task, **more: asked.append(task) or run(task, **more)
    )
    out = tmp_path / "out"
    out.mkdir()
    told = []
    ctx = context(out, node().config, inputs, progress=lambda *said: told.append(said))
    outcome = checkpoints.evaluate(ctx)
    assert told[-1] == (1.0, "8 of 8 questions to 2 exports")
    curve = [orjson.loads(x) for x in (out / "curve.jsonl").read_bytes().splitlines()]
    assert [(p["step"], p["tokens"]) for p in curve] == [(2, 200), (6, 600)]  # not the half-written one
    assert all({"accuracy/exam/cloze", "accuracy/exam/paper-first-token"} <= p.keys() for p in curve)
    assert curve[0]["n"] == {"exam": 4}
    assert {q.split for task in asked for q in task.questions} == {"dev"}
    assert isinstance(ctx.track, Silent)
    assert [step for step, _ in ctx.track.seen] == [2, 6]
    assert outcome.counts == {"steps": 2, "questions": 4}


def test_a_training_without_such_exports_is_one_clear_line(tmp_path, inputs, pool_here):
    import shutil

    shutil.rmtree(inputs["model"].path / "exports")
    out = tmp_path / "out"
    out.mkdir()
    with pytest.raises(NodeError, match="set runtime.export_every or runtime.export_steps"):
        checkpoints.evaluate(context(out, node().config, inputs))
