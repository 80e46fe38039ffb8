"""Accounts add up, are written as they were, and say so when they do not."""

from collections import Counter

import orjson
import pytest

from tasks.records import account
from tasks.records.account import Accounting, SplitAccount, StepCount, TokenizeAccount
from tasks.settings.errors import NodeError


def cleaned(**changes):
    steps = [StepCount("f", "text", 5, 3, 1, 2, 50, 30)]
    whole = {"records_in": 5, "chars_in": 50, "kept": 3, "chars_out": 30, "dropped": Counter(f=2)}
    return Accounting("web", **{**whole, "steps": steps, **changes})


def tokenized(**changes):
    train, val = (SplitAccount(documents=n, rows=1, tokens=9, shards=[]) for n in (6, 1))
    whole = TokenizeAccount(
        source="web",
        records_in=10,
        dropped={"drops": 2, "empty": 1},
        characters=100,
        tokenizer_digest="d",
        encoder="e",
        warnings=[],
        train=train,
        val=val,
    )
    return whole | changes


@pytest.mark.parametrize("counted", [cleaned().as_json(), cleaned(steps=[]).without_steps(), tokenized()])
def test_an_account_is_written_and_read(tmp_path, counted):
    account.write(tmp_path, counted, b"\n")
    assert account.read(tmp_path) == counted
    raw = (tmp_path / account.FILE).read_bytes()
    assert raw == orjson.dumps(counted, option=orjson.OPT_INDENT_2) + b"\n"
    account.write(tmp_path, counted)
    assert (tmp_path / account.FILE).read_bytes() == raw[:-1]


@pytest.mark.parametrize(
    ("counted", "message"),
    [
        (
            cleaned().as_json() | {"kept": 4},
            r"web: 5 records came in, but 4 kept \+ 0 quarantined \+ 2 dropped",
        ),
        (cleaned().as_json() | {"quarantined": {"o": 1}}, r"3 kept \+ 1 quarantined \+ 2 dropped"),
        (tokenized(records_in=11), r"web: 11 records came in, but 7 kept \+ 0 quarantined \+ 3 dropped"),
        (tokenized(dropped={"drops": 2}), "10 records came in, but 7 kept"),
    ],
)
def test_records_that_are_lost_are_never_written(tmp_path, counted, message):
    with pytest.raises(NodeError, match=message):
        account.write(tmp_path, counted)
    assert not (tmp_path / account.FILE).exists()


def test_the_keys_and_their_order():
    """accounting.json is content of an artifact: its bytes are part of digests."""
    assert list(cleaned().as_json()) == [
        "source",
        "records_in",
        "chars_in",
        "kept",
        "chars_out",
        "quarantined",
        "dropped",
        "changed",
        "steps",
        "skipped",
    ]
    assert list(cleaned().as_json()["steps"][0]) == [
        "operator",
        "recipe",
        "changed",
        "dropped",
        "chars_in",
        "chars_out",
        "quarantined",
        "in",
        "out",
    ]
    assert list(tokenized())[-2:] == ["train", "val"]


def test_reasons_are_sorted_and_those_of_nobody_left_out():
    counted = cleaned(
        kept=0, chars_out=0, dropped=Counter(z=1, b=3, a=0), quarantined=Counter(q=1, o=0), steps=[]
    )
    counted = counted.without_steps()
    assert list(counted["dropped"].items()) == [("b", 3), ("z", 1)]
    assert counted["quarantined"] == {"q": 1}
    assert account.headline([counted, cleaned().as_json()]) == "3 of 10 kept"
