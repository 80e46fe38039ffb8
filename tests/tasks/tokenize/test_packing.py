"""Packing loses no token, keeps documents apart, and pads only where it must."""

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from model.training.shards import ROWS_PER_BATCH
from tasks.tokenize.packing import OPEN_ROWS, Document, Documents, PackCounts, Packer, pack_whole

SEPARATOR = 999
BLOCK = 8


def documents(lengths, mask=False):
    made = []
    for i, length in enumerate(lengths):
        tokens = (np.arange(length) % 50 + 100 * (i % 9)).astype(np.uint32)
        made.append(Document(i.to_bytes(16, "big"), tokens, (tokens % 2).astype(np.uint8) if mask else None))
    return made


def beside(docs):
    """The documents as arrays."""
    ids = np.frombuffer(b"".join(d.id for d in docs), np.uint8).reshape(-1, 16)
    tokens = np.concatenate([d.tokens for d in docs]) if docs else np.zeros(0, np.uint32)
    return Documents(ids, tokens, np.cumsum([0, *(len(d.tokens) for d in docs)], dtype=np.int64))


def pack_plainly(docs):
    """The definition: (tokens, starts, ids, valid) of every row, one token after the other."""
    rows, width = [], BLOCK + 1
    for doc in docs:
        for i, token in enumerate([*doc.tokens.tolist(), SEPARATOR]):
            if not rows or len(rows[-1][0]) == width:
                rows.append(([], [], []))
            tokens, starts, ids = rows[-1]
            if i == 0 or not tokens:
                starts.append(len(tokens))
                ids.append(doc.id)
            tokens.append(token)
    return [(t + [SEPARATOR] * (width - len(t)), starts, ids, len(t)) for t, starts, ids in rows]


def pack(docs, rows=3, at_once=4):
    """What Packer makes of them, in the same form; every batch but the last holds `rows` rows."""
    packer, batches = Packer(BLOCK, SEPARATOR, rows), []
    for i in range(0, len(docs), at_once):
        batches += packer.add(beside(docs[i : i + at_once]))
    assert all(len(batch.valid) == rows for batch in batches)
    batches += packer.close()
    made = []
    for batch in batches:
        batch.check(BLOCK)
        for i in range(len(batch.valid)):
            part = slice(batch.offsets[i], batch.offsets[i + 1])
            ids = [id.tobytes() for id in batch.doc_ids[part]]
            made.append((batch.input_ids[i].tolist(), batch.starts[part].tolist(), ids, batch.valid[i]))
    return made


@settings(max_examples=150, deadline=None)
@given(
    lengths=st.lists(st.integers(1, 70), max_size=20),
    rows=st.sampled_from([1, 2, 3, ROWS_PER_BATCH]),
    at_once=st.integers(1, 7),
)
def test_the_stream_cut_in_bulk_is_the_one_cut_token_by_token(lengths, rows, at_once):
    docs = documents(lengths)
    assert pack(docs, rows, at_once) == pack_plainly(docs)


@settings(max_examples=100, deadline=None)
@given(lengths=st.lists(st.integers(1, 40), min_size=1, max_size=20))
def test_the_stream_is_the_documents_and_their_separators(lengths):
    docs = documents(lengths)
    rows = pack(docs)
    stream = [token for tokens, _, _, valid in rows for token in tokens[:valid]]
    assert stream == [t for d in docs for t in [*d.tokens.tolist(), SEPARATOR]]
    assert all(valid == BLOCK + 1 for *_, valid in rows[:-1])  # only the last one is padded
    owners = []  # every token lies in the document it came from
    for _, starts, ids, valid in rows:
        for begin, end, id in zip(starts, [*starts[1:], valid], ids, strict=True):
            owners += [id] * int(end - begin)
    assert owners == [d.id for d in docs for _ in range(len(d.tokens) + 1)]


def test_a_separator_that_falls_on_a_new_row_still_belongs_to_its_document():
    rows = pack(documents([9, 2]))
    assert rows[1][0][0] == SEPARATOR
    assert rows[1][1] == [0, 1]
    assert rows[1][2] == [(0).to_bytes(16, "big"), (1).to_bytes(16, "big")]


@given(chosen=st.lists(st.booleans(), min_size=1, max_size=9))
def test_some_of_the_documents(chosen):
    docs = documents(range(1, len(chosen) + 1))
    found, due = (
        beside(docs).select(np.array(chosen)),
        beside([d for d, c in zip(docs, chosen, strict=True) if c]),
    )
    for name in ("ids", "tokens", "bounds"):
        np.testing.assert_array_equal(getattr(found, name), getattr(due, name))


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


def test_no_documents_no_rows():
    assert pack([]) == []
    assert list(Packer(BLOCK, SEPARATOR, 3).add(beside([]))) == []
    assert list(pack_whole([], BLOCK, SEPARATOR)) == []
