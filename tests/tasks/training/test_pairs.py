"""Preference pairs: the split, the ratio of languages, what is cut, and the paired comparison."""

import orjson
import pyarrow as pa
import pytest
from scipy import stats

from model.rewards import REWARDS, Reply
from model.tokenizer import TextTokenizer
from model.training.pairs import Pair, write_pairs
from tasks.settings.errors import NodeError
from tasks.tokenize.chat import render_chat
from tasks.tokenize.encode import Encoder
from tasks.training import dpo_effect, on_policy, pairs, prompts
from tasks.training.trials import Score, compare
from tests.support import foreign_tokenizers
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


def line(n, said, about="", reward="exact"):
    turns = [{"role": "user", "content": f"{n}?"}, {"role": "assistant", "content": said}]
    return prompts.Question(
        id=f"{n:032x}", set="q", language="zh", about=about, prompt=[1, n], answer=REWARDS[reward].gold(said),
        reward=reward, messages=turns,
    )  # fmt: skip


def as_data_have_it(lines):
    return [each["messages"][-1]["content"] for each in lines]


def text_of(encoder, ids):
    return TextTokenizer.open(encoder).decode(ids[:-1])


def test_the_commonest_wrong_reply_is_rejected(tokenizer):
    encoder = Encoder(tokenizer)
    end = encoder.special_id("<|im_end|>")
    lines = [line(1, "a"), line(2, "b"), line(3, "c")]
    cut, odd = Reply("z", False), Reply("w", True, whole=False)
    found = [
        [Reply("x", True), Reply("y", True), Reply("x", True), cut, cut, cut, odd, odd, odd],
        [Reply("b", True), Reply("b.", True)],
        [Reply("long", False), Reply(" ", True), odd],
    ]
    (pair,) = on_policy.on_policy(encoder, lines, as_data_have_it(lines), found)
    assert (pair["set"], pair["prompt"]) == ("on-policy", [1, 1])
    assert pair["chosen"] == [*encoder.encode("a"), end]
    assert pair["rejected"] == [*encoder.encode("x"), end]


@pytest.mark.parametrize(
    ("reward", "said"),
    [
        ("exact", "北京，上海（全部）。"),
        ("exact", "等等..."),
        ("exact", "Cafe\u0301"),
        ("arithmetic", "48/2=24\n#### 24"),
        ("arithmetic", "1,234"),
        ("letter", "B. 北京。"),
    ],
)
def test_what_is_chosen_stands_as_the_data_have_it(tokenizer, reward, said):
    lines = [line(1, said, reward=reward)]
    wrong = Reply("no", True)
    (pair,), unchosen = on_policy.build(str(tokenizer), lines, [[wrong]], 0.0, 1, 100)
    assert text_of(tokenizer, pair["chosen"]) == said
    assert REWARDS[reward](Reply(text_of(tokenizer, pair["chosen"]), True), pair["answer"]) == 1
    assert (pair["reward"], unchosen) == (reward, 0)


def test_where_the_data_cannot_be_chosen_a_right_reply_of_the_model_is(tokenizer):
    """`format` wants a thought, which the data's answers have not; others are too long."""
    wrong, right, rare = (
        Reply("no", True),
        Reply("<think>a</think>巴黎", True),
        Reply("<think>b</think>巴黎", True),
    )
    lines = [line(1, "巴黎", reward="format"), line(2, "巴黎", reward="format")]
    lines += [line(n, "x" * 200 + "\n#### 7", reward="arithmetic") for n in (3, 4)]
    found = [
        [wrong, rare, right, right],
        [wrong, Reply("巴黎", True)],
        [wrong, Reply("7", True)],
        [wrong, wrong],
    ]
    pairs_made, unchosen = on_policy.build(str(tokenizer), lines, found, 1.0, 1, 100)
    assert [text_of(tokenizer, x["chosen"]) for x in pairs_made if x["set"] == "on-policy"] == [
        right.text,
        "7",
    ]
    assert unchosen == 2
    for each in pairs_made:
        said, other = (Reply(text_of(tokenizer, each[side]), True) for side in ("chosen", "rejected"))
        assert REWARDS[each["reward"]](said, each["answer"]) == 1
        assert REWARDS[each["reward"]](other, each["answer"]) == 0


def test_pairs_end_as_the_template_of_the_tokenizer_does(tmp_path):
    encoder = Encoder(foreign_tokenizers.save(tmp_path / "llama3", "llama3"))
    lines = [line(1, "a"), line(2, "b")]
    pairs_made, _ = on_policy.build(str(tmp_path / "llama3"), lines, [[Reply("x", True)]] * 2, 1.0, 1, 100)
    assert [x["set"] for x in pairs_made] == ["on-policy", "on-policy", "keep", "keep"]
    for each in pairs_made:
        assert {each["chosen"][-1], each["rejected"][-1]} == {encoder.special_id("<|eot_id|>")}
    assert pairs_made[0]["rejected"][:-1] == encoder.encode("x")


def test_keep_pairs_set_an_answer_against_one_that_is_alike(tokenizer):
    encoder = Encoder(tokenizer)
    lines = [line(n, f"a{n % 5}", "one") for n in range(20)] + [line(99, "alone", "two")]
    best = as_data_have_it(lines)
    pairs_made = list(on_policy.keep(encoder, lines, best, 1.0, seed=1))
    assert len(pairs_made) == 20, "what has nothing alike gives no pair"
    answers = {tuple(x["prompt"]): x["answer"] for x in lines}
    for each in pairs_made:
        chosen, rejected = (bytes(encoder.encode(t)) for t in (answers[tuple(each["prompt"])], "a"))
        assert bytes(each["chosen"][:-1]) == chosen
        assert each["rejected"][:1] == list(rejected)
        assert each["rejected"] != each["chosen"]
    half = list(on_policy.keep(encoder, lines, best, 0.5, seed=1))
    assert [x["id"] for x in half] == [x["id"] for x in pairs_made[: len(half)]]
    assert len(half) <= 10


@pytest.mark.parametrize(
    ("reward", "said"),
    [("letter", ("B", "B. x")), ("arithmetic", ("42", "42.0", "so\n#### 42")), ("exact", ("巴黎", "巴黎。"))],
)
def test_a_keep_pair_rejects_no_right_answer(tokenizer, reward, said):
    lines = [line(n, text, reward=reward) for n, text in enumerate(said)]
    found = [[Reply(text, True)] for text in said]
    pairs_made, _ = on_policy.build(str(tokenizer), lines, found, 1.0, 1, 100)
    for each in pairs_made:
        rejected = Reply(text_of(tokenizer, each["rejected"]), True)
        assert REWARDS[reward](rejected, each["answer"]) == 0


def test_pairs_that_a_model_made_are_held_out_apart(tmp_path, tokenizer):
    encoder = Encoder(tokenizer)
    made = [
        *on_policy.on_policy(
            encoder, [line(n, "a") for n in range(12)], ["a"] * 12, [[Reply("x", True)]] * 12
        ),
        *on_policy.keep(encoder, [line(n, f"a{n}") for n in range(12)], [f"a{n}" for n in range(12)], 1.0, 0),
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


def own_pairs(folder, prompted):
    """Pairs that a model made, to these prompts."""
    folder.mkdir()
    made = [
        pairs.PairLine(id=f"{n:032x}", set="on-policy", language="zh", prompt=p, chosen=[5], rejected=[6])
        for n, p in enumerate(prompted)
    ]
    (folder / "pairs.jsonl").write_bytes(b"".join(orjson.dumps(x) + b"\n" for x in made))
    return folder


def prompts_of(lines):
    return {tuple(x["prompt"]) for x in lines}


def test_a_prompt_of_both_kinds_of_pairs_is_on_one_side(tmp_path, tokenizer):
    sets = {"zh": [preference("zh", k, "zh") for k in range(40)]}
    train, held_out, _ = prepared(tmp_path, tokenizer, sets, "none", held_out=8)
    free, held = ([x["prompt"] for x in part] for part in (train, held_out))
    # more of the prompts are held out for the data sets than a quarter of the model's own pairs
    few, many = [*held, *free[:12]], [*free, *held, *([1, n] for n in range(200))]
    for name, prompted in (("few", few), ("many", many), ("free", free)):
        own = own_pairs(tmp_path / f"own-{name}", prompted)
        train, held_out, counts = prepared(tmp_path, tokenizer, sets, name, held_out=8, extra=own)
        assert not prompts_of(train) & prompts_of(held_out)
        assert len(train) + len(held_out) == 40 + len(prompted)
        assert counts["extra_held_out"] == sum(x["chosen"] == [5] for x in held_out) >= 8
        assert prepared(tmp_path, tokenizer, sets, name + "2", held_out=8, extra=own)[:2] == (train, held_out)


@pytest.mark.parametrize(("number", "held"), [(1, 0), (3, 0), (8, 2), (20, 5), (400, 5)])
def test_few_pairs_of_the_model_are_not_all_held_out(tmp_path, tokenizer, number, held):
    sets = {"zh": [preference("zh", k, "zh") for k in range(20)]}
    own = own_pairs(tmp_path / "own", [[1, n] for n in range(number)])
    train, held_out, counts = prepared(tmp_path, tokenizer, sets, extra=own)
    assert counts["extra_held_out"] == held
    assert (len(train), len(held_out)) == (15 + number - held, 5 + held)


def test_behaviour_is_graded_by_the_reward_of_the_source(tmp_path, tokenizer, monkeypatch):
    """What the reward pays is a right answer, in whatever form it allows."""
    lines = [
        line(0, "42"), line(1, "42", reward="arithmetic"), line(2, "B. text", reward="letter"),
        line(3, "北京，上海"), line(4, "巴黎"), line(5, "巴黎"),
    ]  # fmt: skip
    replies = [
        Reply("42.", True), Reply("so\n#### 42.0", True), Reply("B", True),
        Reply("北京，上海", True), Reply("巴黎", False), Reply("not 巴黎", True),
    ]  # fmt: skip
    made, _ = on_policy.build(str(tokenizer), lines, [[Reply("x", True)]] * 6, 0.0, 0, 100)
    write_pairs(
        tmp_path / "held_out.arrow", [Pair(x["id"], x["prompt"], x["chosen"], x["rejected"]) for x in made]
    )
    extra = tmp_path / "own"
    extra.mkdir()
    (extra / "pairs.jsonl").write_bytes(b"".join(orjson.dumps(x) + b"\n" for x in made))
    sets = {"zh": [preference("zh", k, "zh") for k in range(20)]}
    prepared(tmp_path, tokenizer, sets, extra=extra)
    (tmp_path / "pairs.jsonl").write_bytes((tmp_path / "out" / "pairs.jsonl").read_bytes())
    said = {line["prompt"][1]: reply for line, reply in zip(lines, replies, strict=True)}
    monkeypatch.setattr(
        dpo_effect, "replies", lambda asking, asked, tell: [[said[prompt[1]]] for prompt in asked]
    )
    trial = dpo_effect.Trial(tmp_path, tokenizer, "cpu", 100, {}, 10, 10)
    found = dpo_effect.answer(trial, tmp_path)
    assert [found[x["id"]][1] for x in made] == [True, True, True, True, False, False]
