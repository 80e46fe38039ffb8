"""Packing loses no token, keeps documents apart, and pads only where it must."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tasks.tokenize.packing import OPEN_ROWS, Document, PackCounts, pack, pack_whole

SEPARATOR = 999
BLOCK = 8


def documents(lengths, mask=False):
    made = []
    for i, length in enumerate(lengths):
        tokens = (np.arange(length) % 50 + 100 * (i % 9)).astype(np.uint32)
        made.append(Document(i.to_bytes(16, "big"), tokens, (tokens % 2).astype(np.uint8) if mask else None))
    return made


@settings(max_examples=150, deadline=None)
@given(lengths=st.lists(st.integers(1, 40), min_size=1, max_size=20))
def test_the_stream_is_the_documents_and_their_separators(lengths):
    docs = documents(lengths)
    rows = list(pack(docs, BLOCK, SEPARATOR))
    stream = np.concatenate([row.input_ids[: row.valid] for row in rows]).tolist()
    assert stream == [t for d in docs for t in [*d.tokens.tolist(), SEPARATOR]]
    assert all(len(row.input_ids) == BLOCK + 1 for row in rows)
    assert all(row.valid == BLOCK + 1 for row in rows[:-1])  # only the last one is padded
    assert (rows[-1].input_ids[rows[-1].valid :] == SEPARATOR).all()
    # every token lies in the document it came from
    owners = []
    for row in rows:
        ends = [*row.doc_starts[1:], row.valid]
        for begin, end, id in zip(row.doc_starts, ends, row.doc_ids, strict=True):
            owners += [id] * int(end - begin)
        assert row.doc_starts[0] == 0
    assert owners == [d.id for d in docs for _ in range(len(d.tokens) + 1)]


def test_a_separator_that_falls_on_a_new_row_still_belongs_to_its_document():
    rows = list(pack(documents([9, 2]), BLOCK, SEPARATOR))
    assert rows[1].input_ids[0] == SEPARATOR
    assert rows[1].doc_starts.tolist() == [0, 1]
    assert rows[1].doc_ids == [(0).to_bytes(16, "big"), (1).to_bytes(16, "big")]


def test_masks_travel_with_their_tokens():
    rows = list(pack(documents([6, 7], mask=True), BLOCK, SEPARATOR, loss_mask=True))
    for row in rows:
        real = row.input_ids[: row.valid]
        assert row.loss_mask[: row.valid].tolist() == [int(t == SEPARATOR or t % 2) for t in real]
        assert not row.loss_mask[row.valid :].any()


@settings(max_examples=150, deadline=None)
@given(lengths=st.lists(st.integers(0, 14), max_size=60), limit=st.sampled_from([None, 5]))
def test_whole_documents_are_never_split(lengths, limit):
    docs, counts = documents(lengths, mask=True), PackCounts()
    rows = list(pack_whole(docs, BLOCK, SEPARATOR, max_tokens=limit, counts=counts))
    most = limit or BLOCK + 1
    found = {}
    for row in rows:
        ends = [*row.doc_starts[1:], row.valid]
        for begin, end, id in zip(row.doc_starts, ends, row.doc_ids, strict=True):
            assert id not in found
            found[id] = (row.input_ids[begin:end].tolist(), row.loss_mask[begin:end].tolist())
        assert (row.input_ids[row.valid :] == SEPARATOR).all()
        assert not row.loss_mask[row.valid :].any()
    assert found == {d.id: (d.tokens[:most].tolist(), d.mask[:most].tolist()) for d in docs if len(d.tokens)}
    assert counts.documents == len(found)
    assert counts.truncated == sum(length > most for length in lengths)
    assert counts.tokens + counts.tokens_cut == sum(lengths)
    assert counts.rows == len(rows)


def test_whole_documents_fill_their_rows_well_in_bounded_memory():
    rng = np.random.default_rng(0)
    lengths = rng.integers(3, 120, 3000)
    pulled = 0

    def stream():
        nonlocal pulled
        for document in documents(lengths):
            pulled += 1
            yield document

    first = next(rows := pack_whole(stream(), 255, SEPARATOR, loss_mask=False))
    assert pulled < OPEN_ROWS * 100
    filled = [first.valid, *(row.valid for row in rows)]
    assert np.mean(filled) / 256 > 0.97


@pytest.mark.parametrize(
    "way", [lambda d: pack(d, BLOCK, SEPARATOR), lambda d: pack_whole(d, BLOCK, SEPARATOR)]
)
def test_no_documents_no_rows(way):
    assert list(way([])) == []
