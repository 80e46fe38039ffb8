"""What goes into fine-tuning: exact shares, the same choice every time, targets that are the replies."""

import hashlib
import re

import orjson
import pytest
from pydantic import ValidationError

from model.training.shards import ShardFile
from tasks.settings.config import Variant
from tasks.settings.errors import NodeError
from tasks.tokenize.chat import IM_END
from tasks.tokenize.encode import Encoder
from tasks.training import engine, examples, ratio, sft
from tasks.training.mixtures import take
from tests.support.sets import dialogue, record_id, write_set


def taken_ids(taken):
    return [record["id"] for record, _ in taken]


@pytest.mark.parametrize(
    ("n", "share", "expected"), [(100, 0.2, 20), (101, 0.5, 51), (7, 1.0, 7), (9, 0.0, 0)]
)
def test_shares_are_exact(tmp_path, n, share, expected):
    taken = take("a", write_set(tmp_path, "a", n), None, share, seed=1)
    assert len(taken_ids(taken)) == taken.counts["taken"] == expected


def test_a_share_is_the_same_every_time_and_part_of_a_larger_one(tmp_path):
    place = write_set(tmp_path, "a", 200)
    fifth = taken_ids(take("a", place, None, 0.2, seed=1))
    assert fifth == taken_ids(take("a", place, None, 0.2, seed=1))
    assert set(fifth) < set(taken_ids(take("a", place, None, 0.5, seed=1)))
    assert fifth != taken_ids(take("a", place, None, 0.2, seed=2))


def test_the_choice_does_not_depend_on_the_order_of_the_file(tmp_path):
    records = [dialogue("a", k) for k in range(50)]
    one = take("a", write_set(tmp_path / "1", "a", 0, records), None, 0.3, seed=1)
    two = take("a", write_set(tmp_path / "2", "a", 0, records[::-1]), None, 0.3, seed=1)
    assert set(taken_ids(one)) == set(taken_ids(two))


def test_dropped_and_repeated_records_are_left_out_and_counted(tmp_path):
    records = [dialogue("a", k) for k in (0, 1, 2, 2, 3)]
    place = write_set(tmp_path, "a", 0, records)
    drops = tmp_path / "drops"
    drops.mkdir()
    (drops / "drops.jsonl").write_bytes(
        orjson.dumps({"id": record_id("a", 1), "step": "decontaminate"}) + b"\n"
    )
    taken = take("a", place, drops, 1.0, seed=1)
    assert taken_ids(taken) == [record_id("a", k) for k in (0, 2, 3)]
    assert taken.counts == {"records": 5, "dropped": 1, "duplicates": 1, "held_out": 0, "taken": 3}


def test_a_set_is_never_taken_without_its_drops(tmp_path):
    (tmp_path / "drops").mkdir()
    with pytest.raises(FileNotFoundError, match="drops.jsonl"):
        take("a", write_set(tmp_path, "a", 3), tmp_path / "drops", 1.0, seed=1)


def test_a_share_above_one_is_refused(tmp_path):
    with pytest.raises(NodeError, match="between 0 and 1"):
        take("a", write_set(tmp_path, "a", 3), None, 1.5, seed=1)


def prepared(tmp_path, tokenizer, shares, name="out", **more):
    out = tmp_path / name
    out.mkdir()
    sets = tuple((s, tmp_path / s, None, share) for s, share in shares.items())
    fields = {"seed": 1, "max_tokens": 200, "packed_tokens": 255} | more
    return out, examples.prepare(examples.Work(tokenizer=tokenizer, sets=sets, out=out, **fields))


def test_a_prepared_mixture(tmp_path, tokenizer):
    write_set(tmp_path, "a", 100)
    write_set(tmp_path, "b", 40)
    out, accounting = prepared(tmp_path, tokenizer, {"b": 0.5, "a": 1.0})
    lines = [orjson.loads(x) for x in (out / "mixture.jsonl").read_bytes().splitlines()]
    assert [x["set"] for x in lines] == ["a"] * 100 + ["b"] * 20
    assert sum(x["split"] == "val" for x in lines) == 16
    assert accounting["mixture_digest"] == hashlib.sha256((out / "mixture.jsonl").read_bytes()).hexdigest()
    held_out = [each["held_out"] for each in accounting["sets"].values()]
    assert held_out == [13, 3]

    packed = {"train": [], "val": []}
    for part, ids in packed.items():
        shard = ShardFile(out / "data" / f"{part}-00000.arrow")
        for row in map(shard.read, range(shard.rows)):
            ids += [i.hex() for i in row.doc_ids]
    assert sorted(packed["train"]) == sorted(x["id"] for x in lines if x["split"] == "train")
    assert sorted(packed["val"]) == sorted(x["id"] for x in lines if x["split"] == "val")


def test_targets_are_the_replies_and_their_end(tmp_path, tokenizer):
    write_set(tmp_path, "a", 5)
    out, accounting = prepared(tmp_path, tokenizer, {"a": 1.0})
    encoder = Encoder(tokenizer)
    shard = ShardFile(out / "data" / "train-00000.arrow")
    seen = []
    for row in map(shard.read, range(shard.rows)):
        for start, end in zip(row.doc_starts, [*row.doc_starts[1:], row.valid], strict=True):
            mask = row.loss_mask[start:end].astype(bool)
            seen.append(row.input_ids[start:end][mask].tolist())
        assert not row.loss_mask[row.valid :].any()
    due = [[*encoder.encode(f"It is {k * 7}."), encoder.special_id(IM_END)] for k in range(5)]
    assert sorted(seen) == sorted(due)
    assert accounting["sets"]["a"]["targets"] == sum(map(len, due))
    assert accounting["val"]["rows"] == 0  # too few to spare any
    assert "⟦It is 7.<|im_end|>⟧" in (out / "sample.txt").read_text()


def test_long_examples_keep_their_head_and_are_counted(tmp_path, tokenizer):
    long_prompt = dialogue("a", 2)
    long_prompt["messages"][0]["content"] = "x" * 300
    write_set(tmp_path, "a", 0, [dialogue("a", 0), dialogue("a", 1, reply="y" * 300), long_prompt])
    _, accounting = prepared(tmp_path, tokenizer, {"a": 1.0})
    counts = accounting["sets"]["a"]
    assert counts["truncated"] == 2
    assert counts["reply_cut_off"] == 1
    assert counts["examples"] == 2
    assert counts["tokens"] < 400


def test_long_examples_can_be_left_out_instead_and_are_counted(tmp_path, tokenizer):
    write_set(tmp_path, "a", 0, [dialogue("a", 0), dialogue("a", 1, reply="y" * 300)])
    _, accounting = prepared(tmp_path, tokenizer, {"a": 1.0}, too_long="drop")
    counts = accounting["sets"]["a"]
    assert (counts["taken"], counts["examples"], counts["too_long"], counts["truncated"]) == (2, 1, 1, 0)


def test_only_the_last_reply_can_be_learned(tmp_path, tokenizer):
    talk = dialogue("a", 0)
    talk["messages"] = [
        *talk["messages"], {"role": "user", "content": "And?"}, {"role": "assistant", "content": "More."},
        {"role": "assistant", "content": "Not this.", "loss": False},
    ]  # fmt: skip
    write_set(tmp_path, "a", 0, [talk])
    for last_turn, learned in ((False, ["It is 0.", "More."]), (True, ["More."])):
        out, accounting = prepared(tmp_path, tokenizer, {"a": 1.0}, str(last_turn), last_turn=last_turn)
        text = (out / "sample.txt").read_text()
        assert re.findall("⟦(.*?)<", text) == learned
        assert accounting["sets"]["a"]["targets"] == sum(len(t) + 1 for t in learned)


def test_dialogues_that_the_template_refuses_are_left_out_and_counted(tmp_path, alternating, turns):
    bad = [("user", "assistant", "assistant"), ("user", "tool", "assistant")]
    records = [{**dialogue("a", 80 + k), "messages": turns(*roles)} for k, roles in enumerate(bad)]
    write_set(tmp_path, "a", 0, [*records, *(dialogue("a", k) for k in range(70))])
    out, accounting = prepared(tmp_path, alternating, {"a": 1.0})
    counts = accounting["sets"]["a"]
    assert (counts["taken"], counts["template"], counts["examples"]) == (72, 2, 70)
    assert "refuses a dialogue of user, " in counts["refusal"]
    assert (out / "sample.txt").read_text().count("──") == examples.SAMPLE
    sft_table = sft._outcome(engine.Trained([{"step": 1, "loss": 1.0, "val_loss": 1.0}], {}), accounting)
    assert sft_table.counts["template"] == 2
    assert "| 72 | 2 | 0 |" in sft_table.summary
    assert f"a, no form: {counts['refusal']}" in sft_table.summary


@pytest.mark.parametrize("more", [{}, {"zh_share": 0.5}])
def test_a_set_of_which_no_dialogue_has_a_form_is_one_line(tmp_path, alternating, turns, more):
    records = [{**dialogue("b", k), "messages": turns("user", "assistant", "assistant")} for k in range(3)]
    write_set(tmp_path, "a", 5)
    write_set(tmp_path, "b", 0, records)
    sets = tuple((name, tmp_path / name, None, 1.0) for name in ("a", "b"))
    work = (ratio.Work if more else examples.Work)(
        tokenizer=alternating, sets=sets, seed=1, max_tokens=200, packed_tokens=255, out=tmp_path, **more
    )
    with pytest.raises(
        NodeError, match=r"b: none of its 3 records has a form: .* user, assistant, assistant: roles"
    ):
        examples.prepare(work)


def test_refused_dialogues_have_no_tokens_for_a_share_and_are_counted_once(tmp_path, alternating, turns):
    chinese = [{**dialogue("zh", k), "language": "zh"} for k in range(20)]
    records = [{**chinese[0], "messages": turns("user", "assistant", "assistant")}, *chinese[1:]]
    write_set(tmp_path, "zh", 0, records)
    write_set(tmp_path, "en", 20)
    sets = tuple((name, tmp_path / name, None, 1.0) for name in ("zh", "en"))
    counts = examples.prepare(
        ratio.Work(
            tokenizer=alternating,
            sets=sets,
            seed=1,
            max_tokens=200,
            packed_tokens=255,
            out=tmp_path,
            zh_share=0.5,
        )
    )["sets"]["zh"]
    assert counts["template"] == 1
    assert counts["taken"] == counts["examples"] + 1


def test_what_ends_with_the_user_and_replies_in_a_row_are_counted(tmp_path, tokenizer, turns):
    roles = [("user", "assistant", "user"), ("user", "assistant", "assistant"), ("user", "assistant")]
    write_set(tmp_path, "a", 0, [{**dialogue("a", k), "messages": turns(*r)} for k, r in enumerate(roles)])
    out, accounting = prepared(tmp_path, tokenizer, {"a": 1.0})
    counts = accounting["sets"]["a"]
    assert (counts["examples"], counts["ends_with_user"], counts["replies_in_a_row"]) == (3, 1, 1)
    assert (out / "sample.txt").read_text().count("⟦") == 4, "every reply is learned, no turn of the user"


def test_an_example_without_a_target_fails_loudly(tmp_path, tokenizer):
    mute = dialogue("a", 0)
    mute["messages"] = mute["messages"][:1]
    write_set(tmp_path, "a", 0, [mute])
    with pytest.raises(NodeError, match="0 targets"):
        prepared(tmp_path, tokenizer, {"a": 1.0})


def test_the_same_mixture_gives_the_same_bytes_and_another_one_another_manifest(tmp_path, tokenizer):
    write_set(tmp_path, "a", 80)
    write_set(tmp_path, "b", 30)
    first, one = prepared(tmp_path, tokenizer, {"a": 1.0}, "1")
    again, two = prepared(tmp_path, tokenizer, {"a": 1.0}, "2")
    _, other = prepared(tmp_path, tokenizer, {"a": 0.5, "b": 1.0}, "3")
    for name in ("mixture.jsonl", "accounting.json", "sample.txt", "data/train-00000.arrow"):
        assert (first / name).read_bytes() == (again / name).read_bytes()
    assert one["mixture_digest"] == two["mixture_digest"] != other["mixture_digest"]


def test_held_out_examples_are_the_same_across_variants_that_share_a_set(tmp_path):
    place = write_set(tmp_path, "a", 400)
    held = []
    for share in (0.5, 1.0):
        taken = take("a", place, None, share, seed=3)
        taken.hold_out(10)
        held.append([r["id"] for r, out in taken if out])
    assert held[0] == held[1]
    assert len(held[0]) == 10


# --------------------------------------------------------------------- numbers, and shares of Chinese
def test_a_number_of_records_is_exact_and_part_of_a_larger_one(tmp_path):
    place = write_set(tmp_path, "a", 50)
    some = taken_ids(take("a", place, None, 1.0, 1, 7))
    assert len(some) == 7
    assert set(some) < set(taken_ids(take("a", place, None, 1.0, 1, 8)))
    assert len(taken_ids(take("a", place, None, 1.0, 1, 50))) == 50


def test_more_records_than_there_are_is_one_line(tmp_path):
    records = [dialogue("a", k) for k in (0, 1, 2, 2)]
    with pytest.raises(
        NodeError, match=r"^counts: 4 records of a .* there are 3 \(4 less 0 .* and 1 repeated\)$"
    ):
        take("a", write_set(tmp_path, "a", 0, records), None, 1.0, 1, 4)


def bilingual(tmp_path, sizes):
    """Sets whose names say their language; replies of different lengths."""
    for name, n in sizes.items():
        records = [dialogue(name, k, "x" * (5 + k % 11)) for k in range(n)]
        for k, record in enumerate(records):
            record["language"] = {"mixed": ("zh", "en")[k % 2]}.get(name[:5], name[:2])
        write_set(tmp_path, name, 0, records)


def share_work(tmp_path, tokenizer, sizes, share, name="out", **more):
    bilingual(tmp_path, sizes)
    out = tmp_path / name
    out.mkdir()
    fields = {"seed": 1, "max_tokens": 200, "packed_tokens": 255} | more
    sets = tuple((s, tmp_path / s, None, 1.0) for s in sizes)
    return ratio.Work(tokenizer=tokenizer, sets=sets, out=out, zh_share=share, **fields)


@pytest.mark.parametrize("share", [0.0, 0.2, 0.5, 0.9, 1.0])
def test_the_share_of_chinese_holds_in_supervised_tokens(tmp_path, tokenizer, share):
    work = share_work(
        tmp_path, tokenizer, {"zh1": 120, "zh2": 60, "en1": 200, "en2": 100, "mixed": 80}, share
    )
    accounting = examples.prepare(work)
    languages = {"zh": 0, "en": 0}
    for counted in accounting["sets"].values():
        for language, targets in counted["languages"].items():
            languages[language] += targets
    assert languages["zh"] / sum(languages.values()) == pytest.approx(share, abs=0.005)
    targets = {name: each["targets"] for name, each in accounting["sets"].items()}
    for one, other, its in (("zh1", "zh2", share), ("en1", "en2", 1 - share)):
        if its:  # both sets of a language lose the same part, to a record's 16 tokens or so
            assert abs(targets[one] / 2 - targets[other]) <= 24
    lines = [orjson.loads(x) for x in (work.out / "mixture.jsonl").read_bytes().splitlines()]
    assert len(lines) == sum(each["taken"] for each in accounting["sets"].values())
    assert sum(x["split"] == "val" for x in lines) == max(16, round(0.02 * len(lines)))


def test_only_the_language_above_its_share_is_thinned(tmp_path, tokenizer):
    taken = share_work(tmp_path, tokenizer, {"zh1": 40, "en1": 200}, 0.5).taken()
    assert {each.name: each.counts["taken"] for each in taken}["zh1"] == 40
    assert 30 < {each.name: each.counts["taken"] for each in taken}["en1"] < 50


def test_a_share_of_chinese_is_the_same_every_time(tmp_path, tokenizer):
    sizes = {"zh1": 40, "en1": 200}
    one = examples.prepare(share_work(tmp_path, tokenizer, sizes, 0.5))
    two = examples.prepare(share_work(tmp_path, tokenizer, sizes, 0.5, "again"))
    other = examples.prepare(share_work(tmp_path, tokenizer, sizes, 0.5, "other", seed=2))
    assert one == two
    assert one["mixture_digest"] != other["mixture_digest"]


@pytest.mark.parametrize(
    ("sizes", "share", "words"),
    [
        ({"en1": 30}, 0.5, "no Chinese supervised tokens"),
        ({"zh1": 30}, 0.5, "nothing but Chinese"),
        ({"zh1": 30}, 0.0, "nothing but Chinese"),
        ({"en1": 30}, 1.0, "no Chinese"),
        ({"zh1": 1, "en1": 3}, 0.9, "cannot be had .* in whole records"),
    ],
)
def test_a_share_that_cannot_be_had_is_one_line(tmp_path, tokenizer, sizes, share, words):
    with pytest.raises(NodeError, match=f"^zh_share .*{words}"):
        share_work(tmp_path, tokenizer, sizes, share).taken()


def test_examples_that_are_left_out_do_not_count_for_the_share(tmp_path, tokenizer):
    work = share_work(tmp_path, tokenizer, {"zh1": 40, "en1": 40}, 0.5, too_long="drop", max_tokens=60)
    write_set(tmp_path, "zh1", 0, [{**dialogue("zh1", k, "x" * 90), "language": "zh"} for k in range(40)])
    with pytest.raises(NodeError, match="no Chinese"):
        work.taken()


@pytest.mark.parametrize(
    ("variant", "words"),
    [
        ({"mixture": {"a": 1.0}, "counts": {"a": 5}}, "Choose one"),
        ({"note": "nothing"}, "mixture is missing"),
        ({"counts": {"a": 0}}, "greater than 0"),
        ({"counts": {"a": 1.5}}, "valid integer"),
        ({"mixture": {"a": 1.0}, "zh_share": 60}, "less than or equal to 1"),
        ({"mixture": {"a": 1.0}, "zh_share": -0.1}, "greater than or equal to 0"),
        ({"mixture": {"a": -0.5}}, "greater than 0"),
        ({"mixture": {"a": 100}}, "less than or equal to 1"),
    ],
)
def test_a_variant_that_says_nothing_clear_is_refused(variant, words):
    with pytest.raises(ValidationError, match=words):
        Variant.model_validate(variant)
