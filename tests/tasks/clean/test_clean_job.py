"""A source through its recipes: files, counts that add up, examples, determinism, bad luck in an operator."""

import json
from collections import Counter

import pytest

from tasks.clean import job
from tasks.clean.chain import Chain
from tasks.clean.join import join
from tasks.clean.recipe import load_set
from tasks.clean.shown import steps_table
from tasks.records.account import Accounting, StepCount, total
from tasks.report.funnel import chain as chain_of
from tasks.settings.config import Source
from tasks.settings.errors import NodeError
from tests.support.samples import dialogue, real_text, record, write

GOOD = [record(real_text(seed)) for seed in range(30)]
DIRTY = [
    record("<p>" + real_text(100) + "</p>"),
    record("這個國家的圖書館裡有很多書，大家都喜歡。"),
    record("短"),
    record("#$%^" * 20),
    record("龘靐齉爩鱻麤龗灪吁龖厵滟爨癵籱饢驫鲡鹂鸾麣纞虋讟钃骊郁龘靐齉爩鱻"),
    dialogue("网址？", "https://example.com/a"),
    dialogue("你好。", real_text(103)),
    record("#include <map>\nint main() {\n\treturn 0;\n}\n", "code"),
]


@pytest.fixture(scope="module")
def cleaned(models, tmp_path_factory):
    folder = tmp_path_factory.mktemp("clean")
    return folder, run(folder, [*GOOD, *DIRTY], models)


def run(folder, records, models, examples=2):
    path = write(folder / "in" / "records.jsonl", records)
    out = folder / "out"
    out.mkdir(exist_ok=True)
    steps = {kind: recipe.steps for kind, recipe in load_set("steel").items()}
    return job.clean_part(out, path, models, steps, examples, "test")


def lines(path):
    return [json.loads(line) for line in path.read_text("utf-8").splitlines()]


def test_every_record_is_kept_or_dropped_by_someone(cleaned):
    folder, account = cleaned
    kept, dropped = lines(folder / "out" / "records.jsonl"), lines(folder / "out" / "dropped.jsonl")
    assert account["records_in"] == len(GOOD) + len(DIRTY) == len(kept) + len(dropped)
    assert account["kept"] == len(kept)
    assert account["dropped"] == {
        "text_length_filter": 1,
        "alphanumeric_filter": 1,
        "steel_clean_links_mapper": 1,
        "perplexity_filter": 1,
    }
    assert {r["id"] for r in kept} | {d["id"] for d in dropped} == {r["id"] for r in [*GOOD, *DIRTY]}
    assert account["chars_out"] == sum(
        len(r["text"]) if "text" in r else sum(len(m["content"]) for m in r["messages"]) for r in kept
    )
    assert json.loads((folder / "out" / "accounting.json").read_text()) == account


def test_order_and_ids_stay_and_only_texts_change(cleaned):
    folder, _ = cleaned
    originals = {r["id"]: r for r in [*GOOD, *DIRTY]}
    kept = lines(folder / "out" / "records.jsonl")
    assert [r["id"] for r in kept] == [i for i in originals if i in {r["id"] for r in kept}]
    for item in kept:
        before = originals[item["id"]]
        assert {k: v for k, v in item.items() if k not in ("text", "messages")} == {
            k: v for k, v in before.items() if k not in ("text", "messages")
        }


def test_the_steps_of_a_kind_follow_on_each_other(cleaned):
    _, account = cleaned
    for kind in ("text", "dialogue", "code"):
        steps = [s for s in account["steps"] if s["recipe"] == kind]
        assert steps
        for before, after in zip(steps, steps[1:], strict=False):
            assert (before["out"], before["chars_out"]) == (after["in"], after["chars_in"])
        assert all(s["in"] == s["out"] + s["dropped"] for s in steps)
    assert sum(s["dropped"] for s in account["steps"]) == sum(account["dropped"].values())


def test_examples_show_the_change_and_are_limited(cleaned):
    folder, account = cleaned
    examples = json.loads((folder / "out" / "examples.json").read_text("utf-8"))
    assert all(len(found) <= 2 for found in examples.values())
    example = examples["text/steel_chinese_convert_mapper"][0]
    assert example["before"].startswith("這個國家")
    assert example["after"].startswith("这个国家")
    assert examples["text/text_length_filter"][0]["why"] == {"text_len": 1.0}
    assert account["skipped"] == [s for s in account["skipped"] if s["operator"] == "perplexity_filter"]


def test_the_same_input_makes_the_same_bytes(cleaned, models, tmp_path):
    folder, _ = cleaned
    run(tmp_path, [*GOOD, *DIRTY], models)
    for name in ("records.jsonl", "dropped.jsonl", "accounting.json", "examples.json"):
        assert (tmp_path / "out" / name).read_bytes() == (folder / "out" / name).read_bytes()


def test_batches_do_not_matter(cleaned, models, tmp_path, monkeypatch):
    folder, _ = cleaned
    monkeypatch.setattr(job, "BATCH_RECORDS", 3)
    run(tmp_path, [*GOOD, *DIRTY], models)
    for name in ("records.jsonl", "dropped.jsonl", "accounting.json"):
        assert (tmp_path / "out" / name).read_bytes() == (folder / "out" / name).read_bytes()


class Fragile:
    """An operator that fails on some texts."""

    def __init__(self, op, trigger):
        self.op, self.trigger = op, trigger

    def process_batched(self, samples):
        if any(self.trigger in text for text in samples["text"]):
            raise ValueError("cannot stand this text")
        return self.op.process_batched(samples)


def test_a_record_that_breaks_an_operator_is_quarantined_alone(models):
    steps = load_set("steel")["text"].steps[:3]
    chain = Chain("text", steps, models, 2)
    chain.steps[1] = (steps[1], Fragile(chain.steps[1][1], "怪物"))
    items = [*GOOD[:20], record("一个怪物。" + real_text(1)), record("一个好人。" + real_text(1))]
    rows = chain.run(items)
    assert [row.record["id"] for row in rows if row.gone] == [items[20]["id"]]
    assert rows[20].why == {"error": "ValueError: cannot stand this text"}
    assert rows[20].quarantined == "operator failed: " + steps[1].operator
    assert (chain.counts[1].dropped, chain.counts[1].quarantined) == (0, 1)


@pytest.mark.parametrize("error", [OSError(5, "Input/output error"), MemoryError(), NodeError("no model")])
def test_what_is_no_fault_of_the_record_is_raised(models, error):
    class Fails:
        def process_batched(self, samples):
            raise error

    steps = load_set("steel")["text"].steps[:1]
    chain = Chain("text", steps, models, 2)
    chain.steps[0] = (steps[0], Fails())
    with pytest.raises(type(error)) as raised:
        chain.run(GOOD)
    assert raised.value is error


@pytest.fixture
def fragile(monkeypatch):
    """Every first operator fails on texts with 怪物 in them."""

    class FragileChain(Chain):
        def __init__(self, *args):
            super().__init__(*args)
            self.steps[0] = (self.steps[0][0], Fragile(self.steps[0][1], "怪物"))

    monkeypatch.setattr(job, "Chain", FragileChain)


@pytest.mark.usefixtures("fragile")
def test_the_quarantined_are_counted_and_named(models, tmp_path):
    bad = record("一个怪物。" + real_text(1))
    account = run(tmp_path, [*GOOD, bad], models)
    reason = "operator failed: steel_chinese_convert_mapper"
    assert account["quarantined"] == {reason: 1}
    assert account["records_in"] == account["kept"] + sum(account["dropped"].values()) + 1
    [line] = [line for line in lines(tmp_path / "out" / "dropped.jsonl") if "quarantined" in line]
    assert (line["id"], line["quarantined"]) == (bad["id"], reason)
    assert line["why"] == {"error": "ValueError: cannot stand this text"}
    assert total("test", [account, account])["quarantined"] == {reason: 2}
    assert f"Quarantined: {reason}: 1" in steps_table(account)
    source = Source(dataset="x", reader="skypile")
    funnel = chain_of("test", source, [("clean", account)])
    assert (funnel.quarantined, funnel.by_hop["clean"]) == ({reason: 1}, sum(account["dropped"].values()))


@pytest.mark.usefixtures("fragile")
@pytest.mark.parametrize(("bad", "good", "parts"), [(10, 0, 1), (6, 5, 1), (11, 20, 2)])
def test_a_source_that_an_operator_cannot_stand_fails(models, tmp_path, bad, good, parts):
    items = [*(record(f"怪物{seed}" + real_text(seed)) for seed in range(bad)), *GOOD[:good]]
    folders = []
    for part in range(parts):
        run(tmp_path / str(part), items[part::parts], models)
        folders.append(tmp_path / str(part) / "out")
    (tmp_path / "joined").mkdir()
    with pytest.raises(
        NodeError, match=f"test: {bad} of {bad + good} records are quarantined: operator failed"
    ):
        join("test", folders, tmp_path / "joined", 2)


def test_an_operator_that_fails_often_stops_the_node(models):
    steps = load_set("steel")["text"].steps[:1]
    chain = Chain("text", steps, models, 2)
    chain.steps[0] = (steps[0], Fragile(chain.steps[0][1], "。"))
    with pytest.raises(NodeError, match="steel_chinese_convert_mapper failed on 11 of 30 records"):
        chain.run(GOOD)


def test_an_empty_source_is_no_failure(models, tmp_path):
    account = run(tmp_path, [], models)
    assert (account["records_in"], account["kept"], account["dropped"]) == (0, 0, {})


def test_sums_that_disagree_are_refused():
    with pytest.raises(NodeError, match="2 records came in, but 1 kept"):
        Accounting("test", records_in=2, kept=1).as_json()


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"records_out": 4}, "records in are not those out"),
        ({"records_in": 5, "records_out": 4}, "left the step before"),
        ({"chars_in": 41}, "left the step before"),
        ({"dropped": 0, "quarantined": 1}, "the steps dropped"),
        ({"chars_out": 29}, "took 2 records and 21 characters away, the source lost 2 and 20"),
    ],
)
def test_steps_that_do_not_follow_on_each_other_are_refused(wrong, message):
    def account(**changed):
        last = {"records_in": 4, "records_out": 3, "dropped": 1, "chars_in": 40, "chars_out": 30, **changed}
        steps = [StepCount("a", "text", 5, 4, 0, 1, 50, 40), StepCount("b", "text", **last)]
        return Accounting("test", 6, 60, 4, 40, Counter(a=1, b=1), steps)

    account().as_json()
    with pytest.raises(NodeError, match=message):
        account(**wrong).as_json()
