"""Preference pairs: the split, the ratio of languages, what is cut, and the paired comparison."""

import orjson
import pyarrow as pa
import pytest
from scipy import stats

from tasks.settings.errors import NodeError
from tasks.tokenize.chat import render_chat
from tasks.tokenize.encode import Encoder
from tasks.training import on_policy, pairs, prompts
from tasks.training.trials import Score, compare
from tests.support.sets import preference, write_set


def prepared(tmp_path, tokenizer, sets, name="out", **more):
    out = tmp_path / name
    out.mkdir()
    places = tuple((s, write_set(tmp_path, s, 0, r), None, 1.0) for s, r in sets.items())
    fields = {"seed": 1, "max_tokens": 120, "zh_per_en": None, "held_out": 5} | more
    counts = pairs.prepare(pairs.Work(tokenizer=tokenizer, sets=places, out=out, **fields))
    language = {}
    for raw in (out / "pairs.jsonl").read_bytes().splitlines():
        line = orjson.loads(raw)
        language[line["id"]] = line["language"]
    read = {}
    for part in ("train", "held_out"):
        with pa.memory_map(str(out / f"{part}.arrow")) as file:
            rows = pa.ipc.open_file(file).read_all().to_pylist()
        read[part] = [row | {"language": language[row["id"]]} for row in rows]
    return read["train"], read["held_out"], counts


def test_pairs_are_split_and_the_split_is_stable(tmp_path, tokenizer):
    sets = {"zh": [preference("zh", k, "zh") for k in range(20)]}
    train, held_out, counts = prepared(tmp_path, tokenizer, sets, "1")
    assert (len(train), len(held_out)) == (15, 5) == (counts["train"], counts["held_out"])
    assert not {x["id"] for x in train} & {x["id"] for x in held_out}
    assert prepared(tmp_path, tokenizer, sets, "2")[:2] == (train, held_out)


def test_a_prompt_is_never_on_both_sides(tmp_path, tokenizer):
    sets = {"zh": [preference("zh", k, "zh", prompt=f"topic {k % 4}") for k in range(20)]}
    train, held_out, _ = prepared(tmp_path, tokenizer, sets)
    assert len(held_out) >= 5
    assert not {tuple(x["prompt"]) for x in train} & {tuple(x["prompt"]) for x in held_out}


def test_english_is_thinned_to_the_ratio(tmp_path, tokenizer):
    sets = {
        "zh": [preference("zh", k, "zh") for k in range(40)],
        "en": [preference("en", k, "en") for k in range(40)],
    }
    train, held_out, counts = prepared(tmp_path, tokenizer, sets, zh_per_en=4)
    languages = [x["language"] for x in train + held_out]
    assert (languages.count("zh"), languages.count("en")) == (40, 10)
    assert counts["thinned"] == 30


def test_tokens_are_those_of_the_chat_format(tmp_path, tokenizer):
    record = preference("zh", 1, "zh")
    [line], _, _ = prepared(tmp_path, tokenizer, {"zh": [record]}, held_out=0)
    turns = [*record["messages"], {"role": "assistant", "content": record["chosen"]}]
    ids, mask = render_chat(Encoder(tokenizer), turns)
    assert line["prompt"] + line["chosen"] == ids[: len(line["prompt"] + line["chosen"])]
    assert line["chosen"] == [i for i, m in zip(ids, mask, strict=True) if m]


def test_what_is_too_long_is_cut_or_dropped_and_counted(tmp_path, tokenizer):
    records = [
        preference("zh", 0, "zh"),
        preference("zh", 1, "zh", chosen="x" * 200),
        preference("zh", 2, "zh", prompt="p" * 200),
        preference("zh", 3, "zh", chosen="y" * 150 + "a", rejected="y" * 150 + "b"),
    ]
    train, _, counts = prepared(tmp_path, tokenizer, {"zh": records}, held_out=0)
    assert len(train) == 2
    assert all(len(x["prompt"]) + len(x[r]) <= 120 for x in train for r in ("chosen", "rejected"))
    assert (counts["pairs"], counts["cut"], counts["prompt_too_long"], counts["same_reply"]) == (4, 1, 1, 1)


def test_pairs_that_the_template_refuses_are_dropped_and_counted(tmp_path, alternating, turns):
    odd = {**preference("zh", 1, "zh"), "messages": turns("user", "assistant")}
    train, _, counts = prepared(tmp_path, alternating, {"zh": [preference("zh", 0, "zh"), odd]}, held_out=0)
    assert (len(train), counts["pairs"], counts["template"]) == (1, 2, 1)
    (tmp_path / "all").mkdir()
    with pytest.raises(
        NodeError, match="zh: none of its 1 records has a form: .*user, assistant, assistant: roles"
    ):
        prepared(tmp_path / "all", alternating, {"zh": [odd]}, held_out=0)


def scores(*each):
    """(chosen, rejected) per token, of replies of two tokens."""
    return [Score(str(i), 2 * chosen, 2, 2 * rejected, 2) for i, (chosen, rejected) in enumerate(each)]


def test_the_comparison_is_paired():
    before = [(-2.0, -1.0)] * 6 + [(-1.0, -2.0)] * 4
    after = [(-1.0, -2.0)] * 9 + [(-2.0, -1.0)]
    got = compare(scores(*before), scores(*after))
    assert (got["accuracy_before"], got["accuracy_after"], got["n"]) == (0.4, 0.9, 10)
    assert (got["gained"], got["lost"]) == (6, 1)
    assert got["p_value"] == pytest.approx(stats.binomtest(1, 7).pvalue)
    # the reward asks who gained more; pairs that did not move are ties, neither right nor wrong
    assert (got["reward_accuracy"], got["reward_ties"]) == (0.6, 3)
    assert got["reward_p_value"] == pytest.approx(stats.binomtest(1, 7).pvalue)
    assert got["chosen_change"] == pytest.approx(0.5)


def test_a_tie_is_no_preference():
    same = scores((-1.0, -1.0))
    got = compare(same, same)
    assert (got["accuracy_before"], got["reward_accuracy"], got["reward_ties"]) == (0.0, 0.0, 1)
    with pytest.raises(ValueError, match="or others"):
        compare(same, [same[0]._replace(id="x")])


def line(n, answer, about=""):
    prompt = [1, n]
    return prompts.Line(
        id=f"{n:032x}", set="q", language="zh", about=about, prompt=prompt, answer=answer, reward="exact"
    )


def test_the_commonest_wrong_reply_is_rejected(tokenizer):
    encoder = Encoder(tokenizer)
    end = encoder.special_id("<|im_end|>")
    lines = [line(1, "a"), line(2, "b"), line(3, "c")]
    found = [
        [("x", True), ("y", True), ("x", True), ("z", False), ("z", False), ("z", False)],
        [("b", True), ("b.", True)],
        [("long", False), (" ", True)],
    ]
    (pair,) = on_policy.on_policy(encoder, lines, found)
    assert (pair["set"], pair["prompt"]) == ("on-policy", [1, 1])
    assert pair["chosen"] == [*encoder.encode("a"), end]
    assert pair["rejected"] == [*encoder.encode("x"), end]


def test_keep_pairs_set_an_answer_against_one_that_is_alike(tokenizer):
    encoder = Encoder(tokenizer)
    lines = [line(n, f"a{n % 5}", "one") for n in range(20)] + [line(99, "alone", "two")]
    pairs_made = list(on_policy.keep(encoder, lines, 1.0, seed=1))
    assert len(pairs_made) == 20, "what has nothing alike gives no pair"
    answers = {tuple(x["prompt"]): x["answer"] for x in lines}
    for each in pairs_made:
        chosen, rejected = (bytes(encoder.encode(t)) for t in (answers[tuple(each["prompt"])], "a"))
        assert bytes(each["chosen"][:-1]) == chosen
        assert each["rejected"][:1] == list(rejected)
        assert each["rejected"] != each["chosen"]
    half = list(on_policy.keep(encoder, lines, 0.5, seed=1))
    assert [x["id"] for x in half] == [x["id"] for x in pairs_made[: len(half)]]
    assert len(half) <= 10


def test_pairs_that_a_model_made_are_held_out_apart(tmp_path, tokenizer):
    encoder = Encoder(tokenizer)
    made = [
        *on_policy.on_policy(encoder, [line(n, "a") for n in range(12)], [[("x", True)]] * 12),
        *on_policy.keep(encoder, [line(n, f"a{n}") for n in range(12)], 1.0, 0),
    ]
    (tmp_path / "own").mkdir()
    (tmp_path / "own" / "pairs.jsonl").write_bytes(b"".join(orjson.dumps(x) + b"\n" for x in made))
    sets = {"zh": [preference("zh", k, "zh") for k in range(20)]}
    train, held_out, counts = prepared(tmp_path, tokenizer, sets, extra=tmp_path / "own", zh_per_en=4)
    assert counts["extra"] == 24
    assert len(train) + len(held_out) == 44
    own = [x for x in held_out if x["prompt"][0] == 1 and len(x["prompt"]) == 2]
    assert len(own) == 6, "whole prompts, each with both of its pairs"
    assert len(held_out) - len(own) == 5
