"""Counts of tokens do not depend on what a tokenizer's file carries beside its vocabulary."""

import pytest

from tasks.clean.fast.tokens import Counter
from tests.support.tiny import byte_tokenizer

TEXTS = ["a", "hello world", "x" * 700, "北京" * 40, ""]


@pytest.mark.parametrize("state", ["truncation", "padding", "both"])
def test_truncation_and_padding_change_no_count(state, caplog):
    tokenizer = byte_tokenizer()
    due = Counter(tokenizer)(TEXTS)
    raw = tokenizer.backend_tokenizer
    if state != "padding":
        raw.enable_truncation(5)
    if state != "truncation":
        raw.enable_padding(length=900, pad_id=256, pad_token="<|endoftext|>")
    counter = Counter(tokenizer)
    assert counter(TEXTS) == due == [1, 11, 700, 240, 0]
    assert counter._slowly(TEXTS) == due
    assert "switched off" in caplog.text
