"""Preference pairs: the split, the ratio of languages, what is cut, and the paired comparison."""

import orjson
import pyarrow as pa
import pytest
from scipy import stats

from tasks.tokenize.chat import render_chat
from tasks.tokenize.encode import Encoder
from tasks.training import pairs
from tasks.training.trials import compare
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


def test_the_comparison_is_paired():
    before = [(-2.0, -1.0)] * 6 + [(-1.0, -2.0)] * 4
    after = [(-1.0, -2.0)] * 9 + [(-2.0, -1.0)]
    got = compare(before, after)
    assert (got["accuracy_before"], got["accuracy_after"], got["n"]) == (0.4, 0.9, 10)
    assert (got["gained"], got["lost"]) == (6, 1)
    assert got["p_value"] == pytest.approx(stats.binomtest(1, 7).pvalue)


def test_a_tie_is_no_preference():
    assert compare([(-1.0, -1.0)], [(-1.0, -1.0)])["accuracy_before"] == 0.0
