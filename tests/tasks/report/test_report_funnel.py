"""The funnel adds up, and says so when it does not."""

import pytest

from tasks.report import funnel
from tasks.settings.config import Source
from tasks.settings.errors import NodeError
from tests.support.fake_run import FakeRun

SOURCE = Source(dataset="d", reader="skypile")


def account(records_in, kept, dropped=None, quarantined=None):
    return {
        "records_in": records_in,
        "kept": kept,
        "chars_in": 10 * records_in,
        "chars_out": 10 * kept,
        "dropped": dropped or {},
        "quarantined": quarantined or {},
        "changed": {},
    }


def test_hops_are_chained_and_operators_kept_apart():
    joined = funnel.chain(
        "zhihu",
        SOURCE,
        [
            ("convert", account(100, 90, {"too few votes": 6}, {"broken JSON": 4})),
            ("clean", account(90, 70, {"text_length_filter": 15, "perplexity_filter": 5})),
            ("dedup", account(70, 60, {"exact": 4, "near": 6})),
            ("decontaminate", account(60, 58, {"decontaminate": 2, "unused": 0})),
        ],
    )
    row = joined.row()
    assert row["records_in"] == row["quarantined"] + sum(row["dropped"].values()) + row["kept"] == 100
    assert row["dropped"] == {
        "too few votes": 6,
        "text_length_filter": 15,
        "perplexity_filter": 5,
        "dedup-exact": 4,
        "dedup-near": 6,
        "decontaminate": 2,
    }
    assert joined.by_hop == {"convert": 6, "clean": 20, "dedup": 10, "decontaminate": 2}
    assert (joined.chars_in, joined.chars_out) == (1000, 580)


def test_a_hop_that_does_not_add_up_is_refused():
    with pytest.raises(NodeError, match="zhihu, clean: 10 records came in, but 7 kept"):
        funnel.chain("zhihu", SOURCE, [("convert", account(10, 10)), ("clean", account(10, 7, {"f": 2}))])


def test_records_lost_between_two_hops_are_refused():
    with pytest.raises(NodeError, match="convert kept 9 records, but clean counted 8 in"):
        funnel.chain("zhihu", SOURCE, [("convert", account(10, 9, {"f": 1})), ("clean", account(8, 8))])


def test_every_source_of_a_run_adds_up(run):
    rows = funnel.collect(run.nodes, run.config.sources, "pretrain")
    assert [f.source for f in rows] == list(run.config.using("pretrain"))
    total = funnel.totals(rows)
    for f in [*rows, total]:
        assert f.records_in == f.quarantined_total + f.dropped_total + f.kept > 0
        assert f.dropped_total == sum(f.by_hop.values())
    assert total.kept == sum(f.kept for f in rows)


def used(tmp_path, node, **change):
    """A run up to cleaning, and one node that used the records of a source or set as they were left."""
    run = FakeRun(tmp_path).build("clean")
    source = "zhihu" if node.startswith("tokenize") else "demo_qa_zh"
    (f,) = funnel.collect(run.nodes, {source: run.config.sources[source]}, "pretrain", "sft")
    gone = f.by_hop.get("dedup", 0) + f.by_hop["decontaminate"]
    if node.startswith("tokenize"):
        counts = {
            "records_in": f.kept + gone,
            "drops": gone,
            "empty": 2,
            "train": f.kept - 5,
            "val": 3,
        } | change
        dropped = {"drops": counts["drops"], "empty": counts["empty"]}
        splits = {split: {"documents": counts[split]} for split in ("train", "val")}
        files = {"accounting.json": {"records_in": counts["records_in"], "dropped": dropped, **splits}}
        run.add(node, files)
    else:
        sets = {source: {"records": f.kept + gone, "dropped": gone, "taken": 7} | change}
        if node.startswith("dpo"):
            run.add(node, {}, extra={"sets": sets})
        else:
            run.add(node, {"accounting.json": {"sets": sets}})
    return funnel.collect(run.nodes, {source: run.config.sources[source]}, "pretrain", "sft")[0]


def test_tokenized_documents_join_the_funnel(tmp_path):
    found = used(tmp_path, "tokenize:zhihu")
    assert found.documents == found.kept - 2


@pytest.mark.parametrize("change", [{"records_in": 1}, {"drops": 0}, {"empty": 1}, {"train": 9}])
def test_tokenization_counted_other_records(tmp_path, change):
    with pytest.raises(NodeError, match=r"zhihu: .*(tokenize:zhihu counted|were tokenized)"):
        used(tmp_path, "tokenize:zhihu", **change)


@pytest.mark.parametrize("node", ["sft:exp1", "dpo:reference"])
def test_a_mixture_counted_other_records(tmp_path, node):
    assert used(tmp_path / "a", node).kept
    with pytest.raises(NodeError, match=f"demo_qa_zh: {node} counted"):
        used(tmp_path / "b", node, records=5)


def test_files_that_brought_nothing_are_noted():
    from types import SimpleNamespace

    from tasks.report.notes import caveats

    convert = account(3, 3) | {"files_ignored": 7, "ignored": ["x.pdf", "y.docx"]}
    convert |= {"files_without_records": 1, "without_records": ["e.txt"]}
    mine = funnel.chain("mine", SOURCE, [("convert", convert), ("clean", account(3, 3))])
    other = funnel.chain("other", SOURCE, [("convert", account(2, 2))])
    assert (mine.idle, mine.idle_total) == (["x.pdf", "y.docx", "e.txt"], 8)
    config = SimpleNamespace(sources={"mine": SOURCE}, evaluate=SimpleNamespace(chat=True))
    view = SimpleNamespace(
        benchmarks=[], ablation=[], curves=[], unigram=None, config=config, funnels=[mine, other],
        total=funnel.totals([mine, other]),
    )  # fmt: skip
    notes = caveats(view)
    assert "Files that brought no record: mine: x.pdf, y.docx, e.txt, and 5 more." in notes
