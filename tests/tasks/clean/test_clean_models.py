"""The language model of clean:assets: well-formed, normalised, deterministic, and fed with good text only."""

import json
import math
import random

import pytest

from tasks.clean import assets, operators, seeds
from tasks.clean.kneser_ney import estimate
from tests.support.samples import real_text, record, shuffled, write

CORPUS = [list(real_text(seed)) for seed in range(120)]


@pytest.fixture(scope="module")
def arpa(tmp_path_factory):
    path = tmp_path_factory.mktemp("arpa") / "zh.arpa.bin"
    estimate(CORPUS, 3, path)
    return path


def test_kenlm_reads_the_model_and_its_probabilities_sum_to_one(arpa):
    model = operators.load_kenlm(arpa)
    vocabulary = sorted({c for sentence in CORPUS for c in sentence})
    for context in ("", "他 说", "说", "高 兴", "一 二 三"):
        words = context.split()
        # score() adds the words of the context too: take the differences
        total = 0.0
        for word in [*vocabulary, "</s>", "<unk>"]:
            if word == "</s>":
                p = model.score(context, bos=True, eos=True) - model.score(context, bos=True, eos=False)
            else:
                p = model.score(" ".join([*words, word]), bos=True, eos=False) - model.score(
                    context, bos=True, eos=False
                )
            total += 10**p
        assert total == pytest.approx(1, abs=2e-3), context


def test_seen_once_is_not_learnt(arpa):
    lines = arpa.read_text("utf-8").splitlines()
    bigrams = {
        line.split("\t")[1] for line in lines[lines.index("\\2-grams:") + 1 : lines.index("\\3-grams:") - 1]
    }
    counts: dict[str, int] = {}
    for sentence in CORPUS:
        padded = ["<s>", *sentence, "</s>"]
        for a, b in zip(padded, padded[1:], strict=False):
            counts[f"{a} {b}"] = counts.get(f"{a} {b}", 0) + 1
    assert bigrams == {gram for gram, n in counts.items() if n > 1}


def test_a_hand_counted_unigram(tmp_path):
    """Without singletons D falls back to 0.75; "a" ends two distinct bigrams of the four that predict."""
    path = tmp_path / "m.arpa"
    estimate([["a", "b"], ["a", "b"], ["b", "a"], ["b", "a"]], 2, path)
    unigrams = dict(
        line.split("\t")[1::-1]
        for line in path.read_text("utf-8").split("\\1-grams:\n")[1].split("\n\n")[0].splitlines()
    )
    # continuation counts: a after <s>, b; b after <s>, a; </s> after a, b. 6 in all, 3 types, 4 words share the rest
    expected = (2 - 0.75) / 6 + (3 * 0.75 / 6) / 4
    assert float(unigrams["a"]) == pytest.approx(math.log10(expected), abs=1e-4)
    assert float(unigrams["<unk>"]) == pytest.approx(math.log10((3 * 0.75 / 6) / 4), abs=1e-4)


def test_training_is_deterministic(tmp_path):
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        lines = sorted({real_text(seed) for seed in range(400)})
        assets.train_language("zh", lines, tmp_path / name, vocab_size=300, order=3)
    for file in ("zh.sp.model", "zh.arpa.bin"):
        assert (tmp_path / "a" / file).read_bytes() == (tmp_path / "b" / file).read_bytes()


def test_too_little_text_makes_no_model_and_says_so(tmp_path):
    info = assets.train_language("en", ["only a little text of the kind"] * 3, tmp_path, 300, 3)
    assert not info["usable"]
    assert "fewer than" in info["reason"]
    assert not list(tmp_path.iterdir())


def test_a_model_that_cannot_predict_its_own_kind_is_refused(tmp_path):
    rng = random.Random(1)
    noise = ["".join(chr(rng.randrange(0x4E00, 0x6E00)) for _ in range(60)) for _ in range(600)]
    info = assets.train_language("zh", noise, tmp_path, 300, 3)
    assert not info["usable"]
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("line", "good"),
    [
        ("小学生在院子里种了三棵苹果树，这让他感到非常高兴。", True),
        ("The teacher gave the old books to the library of the town.", True),
        ("<p>小学生在院子里种了三棵苹果树。</p>", False),
        ("更多内容见https://example.com，在这里。", False),
        ("锟斤拷烫屯锟斤拷烫屯锟斤拷烫屯锟斤拷烫屯锟斤拷烫屯锟斤拷烫屯锟斤拷", False),
        ("qwzx vbnk plmt rrtw zzkq wpls mmnb vvcx", False),
        ("==== 2024-01-01 12:30:00 ==== 99 99 99", False),
        ("短句。", False),
    ],
)
def test_seed_rules(line, good):
    assert list(seeds.good_lines(line)) == ([line] if good else [])


def test_the_seed_of_a_large_file_is_spread_over_it_and_bounded(tmp_path):
    items = [record(f"第{i}天，{real_text(i)}") for i in range(3000)]
    path = write(tmp_path / "records.jsonl", items)
    lines = seeds.seed_lines({"a": path}, 8000)["zh"]
    assert lines == seeds.seed_lines({"a": path}, 8000)["zh"]
    days = sorted(int(line[1 : line.index("天")]) for line in lines)
    assert days[0] < 300
    assert days[-1] > 2200
    assert 4000 < sum(map(len, lines)) < 8500


def test_gibberish_among_the_records_does_not_train_the_model(tmp_path):
    rng = random.Random(3)
    good = [record(real_text(seed)) for seed in range(900)]
    junk = [record("".join(chr(rng.randrange(0x4E00, 0x8000)) for _ in range(50))) for _ in range(90)]
    mixed = [*good, *junk]
    rng.shuffle(mixed)
    path = write(tmp_path / "records.jsonl", mixed)
    (tmp_path / "out").mkdir()
    training = assets.Training(vocab_size=400, order=3, max_chars=200_000)
    info = assets.train({"a": path}, tmp_path / "out", assets.Settings(assets=training, code_tokenizer=False))
    assert info["zh"]["usable"]
    assert json.loads((tmp_path / "out" / "assets.json").read_text())["zh"]["lines"] == info["zh"]["lines"]
    op = operators.load("perplexity_filter", {"lang": "zh", "max_ppl": 1500}, tmp_path / "out")

    def perplexity(text):
        return op.compute_stats_batched({"text": [text], "__dj__stats__": [{}]})["__dj__stats__"][0][
            "perplexity"
        ]

    worst_good = max(perplexity(item["text"]) for item in good[:100])
    best_junk = min(perplexity(item["text"]) for item in junk)
    assert best_junk > 10 * worst_good
    assert perplexity(shuffled(good[0]["text"], 1)) > 10 * worst_good
