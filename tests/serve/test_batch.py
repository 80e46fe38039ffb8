"""Rows in company compute what they compute alone, whoever joins and leaves beside them."""

import threading

import pytest
import torch

from model.export.stock import write_stock
from serve.batch import batchable
from serve.engine import Busy, Engine, Limits
from serve.rows import Ask
from tests.support import exports
from tests.support.serving import wait_for

KINDS = {
    "dense": {"ffn": "dense"},
    "token": {},
    "prefix": {"ffn": "prefix"},
    "merge": {"ffn": "merge", "merge_segment": 4},
    "qwen2_moe": {"expert": "swiglu", "router": "linear"},
}


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory):
    return exports.qwen_tokenizer(tmp_path_factory.mktemp("tokenizer"))


@pytest.fixture(scope="module", params=KINDS)
def engine(request, tokenizer, tmp_path_factory):
    work = tmp_path_factory.mktemp(request.param)
    folder = exports.export(work / "own", tokenizer, num_key_value_heads=2, **KINDS[request.param])
    if request.param == "qwen2_moe":
        write_stock(folder, folder := work / "stock")
    engine = Engine(folder, Limits(slots=4), "cpu")
    engine.ready()
    yield engine
    engine.stop()


def together(engine, asks):
    """Ids of each answer."""
    done = threading.Semaphore(0)
    rows = engine.submit(asks, lambda _, event: done.release() if event.reason or event.error else None)
    for _ in rows:
        assert done.acquire(timeout=60)
    return [row.made for row in rows]


def prompts(count):
    rng = torch.Generator().manual_seed(1)
    lengths = [3, 17, 1, 40, 9, 26][:count]
    return [tuple(torch.randint(0, 400, (n,), generator=rng).tolist()) for n in lengths]


def test_answers_do_not_depend_on_their_neighbours(engine):
    assert batchable(engine.model)
    asks = [Ask(ids, max_tokens=5 + 3 * i, temperature=0) for i, ids in enumerate(prompts(6))]  # 4 slots
    beyond = list(range(engine.known, engine.model.config.vocab_size))  # rows of the table without a token
    for ask, made in zip(asks, together(engine, asks), strict=True):
        settings = {"max_new_tokens": ask.max_tokens, "do_sample": False, "suppress_tokens": beyond}
        alone = engine.model.generate(torch.tensor([ask.ids]), **settings)[0, len(ask.ids) :]
        assert made == alone.tolist()
    wait_for(lambda: engine.load == 0)
    assert engine._batch.cache is None


def test_a_seed_fixes_an_answer_in_any_company(engine):
    asks = [Ask(ids, max_tokens=12, temperature=1.3, top_p=0.9, seed=i) for i, ids in enumerate(prompts(4))]
    company = together(engine, asks)
    assert [together(engine, [ask])[0] for ask in asks] == company
    assert together(engine, [Ask(asks[1].ids, 12, 1.3, 0.9, seed=77)])[0] != company[1]


def test_a_full_queue_takes_nothing(engine):
    wait_for(lambda: engine.load == 0)
    limits, engine.limits = engine.limits, Limits(slots=1, queue=1)
    try:
        with pytest.raises(Busy):
            engine.submit([Ask((1,), 1)] * 3, lambda *_: None)
        assert engine.load == 0
    finally:
        engine.limits = limits


def test_nothing_is_computed_for_who_has_left(engine, monkeypatch):
    monkeypatch.setattr(Engine, "ends", frozenset())
    first = threading.Event()
    rows = engine.submit([Ask((1, 2), 200, temperature=0)] * 2, lambda *_: first.set())
    assert first.wait(60)
    for row in rows:
        row.leave()
    wait_for(lambda: engine.load == 0)
    assert all(len(row.made) < 150 for row in rows)
    steps = engine.steps
    assert together(engine, [Ask((1, 2), 1)])
    assert engine.steps == steps + 1, "only the new row"


def test_an_error_is_told_and_the_engine_goes_on(engine, monkeypatch):
    events = []
    monkeypatch.setattr(engine._batch, "step", lambda: 1 / 0)
    engine.submit([Ask((1, 2), 5, temperature=0)], lambda _, event: events.append(event))
    wait_for(lambda: events and events[-1].error)
    assert events[-1].error == "ZeroDivisionError"
    assert together(engine, [Ask((1, 2), 2, temperature=0)])
