"""Data that leaves nothing to train on: the error says what became of every record."""

import pytest

from tasks.settings.errors import NodeError
from tasks.training import examples, pairs
from tests.support.sets import dialogue, record_id, write_set


def work(tmp_path, tokenizer, records, **sizes):
    sets = (("a", write_set(tmp_path, "a", 0, records), None, 1.0),)
    return examples.Work(
        tokenizer=tokenizer,
        sets=sets,
        seed=1,
        out=tmp_path,
        **{"max_tokens": 200, "packed_tokens": 200} | sizes,
    )


def long_prompt(k):
    record = dialogue("a", k)
    record["messages"][0]["content"] = f"material {k} " * 100
    return record


def test_examples_whose_reply_lies_behind_the_cut(tmp_path, tokenizer):
    with pytest.raises(
        NodeError, match=r"a: 80 records \(80 without a token of the reply within max_tokens 200"
    ):
        examples.prepare(work(tmp_path, tokenizer, [long_prompt(k) for k in range(80)]))


def test_rows_shorter_than_examples_are_refused(tmp_path, tokenizer):
    with pytest.raises(NodeError, match="packed_tokens 20 is below max_tokens 200"):
        examples.prepare(work(tmp_path, tokenizer, [dialogue("a", 1)], packed_tokens=20))


def test_targets_counted_are_targets_written(tmp_path, tokenizer):
    account = examples.prepare(work(tmp_path, tokenizer, [dialogue("a", k) for k in range(200)]))
    written = sum(account[part]["targets"] for part in ("train", "val"))
    assert written == account["sets"]["a"]["targets"] > 0


def pair(k, language="zh", prompt="ask", chosen="Good.", rejected="Bad."):
    return {
        "id": record_id("p", k),
        "source": "p",
        "kind": "preference",
        "language": language,
        "messages": [{"role": "user", "content": f"{prompt} {k}"}],
        "chosen": chosen,
        "rejected": rejected,
        "meta": {},
    }


@pytest.mark.parametrize(
    ("records", "more", "words"),
    [
        ([pair(k, prompt="long " * 100) for k in range(9)], {}, "9 prompt leaves no room in max_tokens 200"),
        (
            [pair(k, chosen="same " * 50 + "a", rejected="same " * 50 + "b") for k in range(9)],
            {},
            "9 both replies",
        ),
        (
            [pair(k, "en") for k in range(9)],
            {"zh_per_en": 4.0},
            "9 English pairs thinned out by zh_per_en 4.0",
        ),
        ([pair(k) for k in range(9)], {"held_out": 20}, "left to train on: 9 pairs taken of p 9; 9 held out"),
    ],
)
def test_pairs_of_which_none_is_left(tmp_path, tokenizer, records, more, words):
    fields = {"seed": 1, "max_tokens": 200, "zh_per_en": None, "held_out": 2} | more
    sets = (("p", write_set(tmp_path, "p", 0, records), None, 1.0),)
    with pytest.raises(NodeError, match="no preference pair is left") as error:
        pairs.prepare(pairs.Work(tokenizer=tokenizer, sets=sets, out=tmp_path, **fields))
    assert words in str(error.value)
