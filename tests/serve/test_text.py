"""Ids to text in pieces: whole characters, no special tokens, nothing from a stop string on."""

from types import SimpleNamespace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from model.tokenizer import TextTokenizer
from serve.engine import Engine
from serve.text import Writer
from tests.support import exports, foreign_tokenizers


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory):
    return TextTokenizer.open(exports.qwen_tokenizer(tmp_path_factory.mktemp("tokenizer")))


def written(tokenizer, ids, stops=()):
    """(pieces, whether it stopped)."""
    writer, pieces = Writer(tokenizer.whole, stops), []
    for number in ids:
        piece, stopped = writer.write(number)
        pieces.append(piece)
        if stopped:
            return pieces, True
    return [*pieces, writer.rest()], False


@settings(max_examples=25, deadline=None)
@given(text=st.text(max_size=20))
def test_the_pieces_are_the_text(tokenizer, text):
    ids = tokenizer.encode(text)
    assert "".join(written(tokenizer, ids)[0]) == tokenizer.decode(ids)


@settings(max_examples=40, deadline=None)
@given(text=st.text("ab。\n", max_size=20), stop=st.text("ab。\n", min_size=1, max_size=4))
def test_nothing_from_a_stop_on_is_ever_sent(tokenizer, text, stop):
    pieces, stopped = written(tokenizer, tokenizer.encode(text), [stop])
    before, found, _ = text.partition(stop)
    assert "".join(pieces) == before
    assert stopped == bool(found)


def test_half_a_character_waits_for_the_other_half(tokenizer):
    ids = tokenizer.encode("龘")
    assert len(ids) > 1
    assert written(tokenizer, ids)[0] == [*[""] * (len(ids) - 1), "龘", ""]
    assert written(tokenizer, ids[:-1])[0][-1] == "\ufffd"


def test_special_tokens_are_not_shown_and_their_names_are(tokenizer):
    end = tokenizer.special_id("<|im_end|>")
    ids = [*tokenizer.encode("a"), end, *tokenizer.encode("<|im_end|>")]
    assert "".join(written(tokenizer, ids)[0]) == "a<|im_end|>"


def test_an_answer_ends_where_its_tokenizers_turns_do(tmp_path):
    engine = object.__new__(Engine)
    engine.tokenizer = TextTokenizer.open(foreign_tokenizers.save(tmp_path, "llama3"))
    engine.model = SimpleNamespace(config=SimpleNamespace(eos_token_id=[1, 2]), generation_config=None)
    assert engine.ends >= {1, 2, engine.tokenizer.special_id("<|eot_id|>")}
