"""The record: its kinds, the texts in it, and the bytes that its readers rely on."""

import orjson
import pytest

from model.training.shards import ID_BYTES as SHARD_ID_BYTES
from tasks.records import record as records
from tasks.records.record import ID_BYTES, dump, id_bytes, id_of, line_start

ID = "0123456789abcdef0123456789abcdef"
HEAD = {"id": ID, "source": "s"}
TAIL = {"meta": {"at": "a.jsonl:1"}, "language": "zh"}
TURNS = [{"role": "user", "content": "问"}, {"role": "assistant", "content": "答案"}]
KINDS = {
    "text": {**HEAD, "kind": "text", "text": "一二三", **TAIL},
    "code": {**HEAD, "kind": "code", "text": 'x = "{\\"id\\":"', **TAIL},
    "dialogue": {**HEAD, "kind": "dialogue", "messages": TURNS, **TAIL},
    "preference": {
        **HEAD,
        "kind": "preference",
        "messages": TURNS[:1],
        "chosen": "好的",
        "rejected": "坏",
        **TAIL,
    },
    "question": {
        "id": ID,
        "benchmark": "b",
        "subject": "s",
        "split": "test",
        "question": "几？",
        "choices": ["一", "二二"],
        "answer": 0,
        **TAIL,
    },
}


@pytest.mark.parametrize("kind", KINDS)
def test_a_line_begins_with_its_id(kind):
    line = dump(KINDS[kind])
    assert line.startswith(b'{"id":"' + ID.encode() + b'",')
    assert line.endswith(b"}\n")
    assert line.count(b"\n") == 1
    assert id_of(line) == id_bytes(KINDS[kind]) == bytes.fromhex(ID)
    assert len(id_of(line)) == ID_BYTES == SHARD_ID_BYTES
    assert orjson.loads(line) == KINDS[kind]


@pytest.mark.parametrize("digits", [ID[:8], ID[:31], ID])
def test_a_line_is_searched_for_by_the_digits_of_its_id(digits):
    assert dump(KINDS["text"]).startswith(line_start(digits))
    assert not dump(KINDS["text"] | {"id": "f" * 32}).startswith(line_start(digits))


def test_an_id_ends_where_it_ends():
    """A longer id that begins with the digits is another one."""
    assert not b'{"id":"'.join([b"", ID.encode() + b'0"}']).startswith(line_start(ID))


@pytest.mark.parametrize(
    "line",
    [
        b'{"source":"s","id":"%b"}\n' % ID.encode(),
        b'{ "id": "%b", "text": "x"}\n' % ID.encode(),
        b'{"text":"{\\"id\\":\\"%b\\"}","id":"%b"}\n' % (b"f" * 32, ID.encode()),
    ],
)
def test_a_line_in_another_order_has_its_id_too(line):
    assert id_of(line) == bytes.fromhex(ID)


@pytest.mark.parametrize(
    ("line", "error"),
    [
        (b'{"id":"%b"}\n' % (b"g" * 32), ValueError),
        (b'{"id":"abc"}\n', ValueError),
        (b'{"text":"x"}\n', KeyError),
        (b'{"id":"0123\n', ValueError),
    ],
)
def test_a_line_without_an_id_is_refused(line, error):
    with pytest.raises(error):
        id_of(line)


@pytest.mark.parametrize(
    ("kind", "texts", "whole", "chars"),
    [
        ("text", ["一二三"], "一二三", 3),
        ("dialogue", ["问", "答案"], "问\n答案", 3),
        ("preference", ["问"], "问\n好的\n坏", 4),
        ("question", ["几？"], "几？\n一\n二二", 5),
    ],
)
def test_the_texts_of_a_record(kind, texts, whole, chars):
    record = KINDS[kind]
    assert records.texts(record) == texts
    assert records.whole_text(record) == whole
    assert records.chars(record) == chars
    assert records.opening(record) == "\n".join(texts)


def test_an_opening_is_short_whatever_the_record():
    long = {"kind": "dialogue", "messages": [{"role": "user", "content": "长" * 500}] * 3}
    assert records.opening(long) == "长" * records.EXCERPT
    short = {"kind": "dialogue", "messages": [{"role": "user", "content": "短" * 90}] * 5}
    assert records.opening(short) == "\n".join(["短" * 90] * 5)[: records.EXCERPT]


@pytest.mark.parametrize("kind", ["text", "code", "dialogue", "preference"])
def test_other_texts_leave_the_rest_as_it_is(kind):
    record = KINDS[kind]
    new = [text + "!" for text in records.texts(record)]
    changed = records.with_texts(record, new)
    assert records.texts(changed) == new
    assert list(changed) == list(record)
    assert changed["id"] == record["id"]
    assert records.with_texts(changed, records.texts(record)) == record


def test_a_message_too_few_is_refused():
    with pytest.raises(ValueError, match="shorter"):
        records.with_texts(KINDS["dialogue"], ["only one"])


def test_the_id_comes_from_source_and_content_alone():
    content = {kind: records.content(KINDS[kind]) for kind in ("text", "code", "dialogue", "preference")}
    ids = {records.stable_id(source, c) for source in ("a", "b") for c in content.values()}
    assert len(ids) == 8
    assert {len(one) for one in ids} == {ID_BYTES}
    other = KINDS["text"] | {"meta": {"at": "b.jsonl:9"}, "language": "en", "id": "f" * 32}
    assert records.content(other) == content["text"]
