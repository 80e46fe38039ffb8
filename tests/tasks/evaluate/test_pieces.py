"""Answers in pieces: the same as in one go, kept over a failure, with the time that is left."""

from dataclasses import replace

import pytest

from tasks.evaluate import pieces, scorer
from tests.support.inline import inline_pool  # noqa: F401  (a fixture)
from tests.support.questions import question
from tests.support.tiny import byte_tokenizer, context, steel


@pytest.fixture
def task(tmp_path):
    byte_tokenizer().save_pretrained(tmp_path / "tokenizer")
    steel(hidden_size=16).save_pretrained(tmp_path / "export")
    questions = tuple(question(k, answer=k % 4, benchmark="x" if k < 9 else "y") for k in range(15))
    return scorer.Task(
        export=tmp_path / "export",
        tokenizer=tmp_path / "tokenizer",
        questions=questions,
        protocols=("cloze", "paper-first-token"),
        form="plain",
        controls=True,
        batch_tokens=2048,
        device="cpu",
        shuffles=1,
    )


def same(some, others):
    assert [a["id"] for a in some] == [b["id"] for b in others]
    for a, b in zip(some, others, strict=True):
        assert a.pop("scores") == pytest.approx(b.pop("scores"), abs=1e-5)
        assert a == b


@pytest.mark.usefixtures("inline_pool")
def test_pieces_give_what_one_go_gives(tmp_path, task, monkeypatch):
    whole = scorer.run(task)
    monkeypatch.setattr(pieces, "PIECE", 4)
    (tmp_path / "stage" / "node").mkdir(parents=True)
    told = []
    ctx = context(tmp_path / "stage" / "node", progress=lambda share, text: told.append((share, text)))
    cost = pieces.Cost()
    same(pieces.answers(ctx, task, ["model"], cost), whole)
    assert cost.tokens > 1000
    assert cost.seconds > 0
    assert len(list(pieces.split(task))) == 2 * (3 + 2)
    assert told[-1][0] == 1.0


@pytest.mark.parametrize("shown", ["cloze", "paper-first-token", "paper-gen", "open-exact"])
@pytest.mark.parametrize("more", [{}, {"controls": False, "prior": True}, {"shuffles": 0, "prior": True}])
def test_a_model_that_is_asked_tells_how_far_it_is(task, monkeypatch, shown, more):
    opened, askers, told = scorer.opened, [], []

    def kept(task):
        askers.append(opened(task))
        return askers[-1]

    monkeypatch.setattr(scorer, "opened", kept)
    asked = ("cloze", shown) if shown != "cloze" else (shown,)
    task = replace(task, protocols=asked, questions=task.questions[:4], batch_tokens=64, **more)
    scorer.run(task, None, lambda done, of: told.append(done / of))
    assert told == sorted(told)
    assert told[-1] == 1.0
    assert told[0] < 0.5
    assert len(set(told)) > 4
    passes = sum(scorer._passes(task, scorer.protocols.of(name)) for name in task.protocols)
    assert askers[0].begun == passes


@pytest.mark.usefixtures("inline_pool")
def test_what_is_answered_outlives_a_failure(tmp_path, task, monkeypatch):
    monkeypatch.setattr(pieces, "PIECE", 4)
    (tmp_path / "stage" / "node").mkdir(parents=True)
    ctx = context(tmp_path / "stage" / "node")
    run, asked = scorer.run, []

    def dies(part, *more):
        asked.append(part.questions[0].id)
        if len(asked) == 4:
            raise RuntimeError("killed")
        return run(part, *more)

    monkeypatch.setattr(scorer, "run", dies)
    with pytest.raises(RuntimeError, match="killed"):
        pieces.answers(ctx, task, ["model"])
    before = len(asked)
    answers = pieces.answers(ctx, task, ["model"])
    assert len(asked) - before == 1, "only the piece that died is asked again"
    monkeypatch.setattr(scorer, "run", run)
    same(answers, run(task))
    pieces.answers(ctx, replace(task, form="chat"), ["another model"])
    assert len(list((tmp_path / "stage" / ".partitions").iterdir())) == 20
