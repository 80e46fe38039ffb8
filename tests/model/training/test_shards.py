"""The shard format: what is written comes back, as views; what is wrong is refused."""

import subprocess
import sys
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
import xxhash

from model.training.loader import BlockLoader
from model.training.shards import (
    Columns,
    Row,
    ShardError,
    ShardFile,
    ShardWriter,
    file_digest,
    look_over,
    verify,
    write_shard,
)
from tasks.settings.paths import ROOT
from tests.support.shard_helpers import make_file, make_rows

BLOCK = 8


def test_rows_come_back_as_views_of_the_file(tmp_path):
    rows = make_rows(2500, BLOCK)  # more than two record batches
    info = write_shard(tmp_path / "a.arrow", rows, BLOCK, {"source": "wiki"})
    shard = ShardFile(tmp_path / "a.arrow")
    assert (shard.rows, shard.block_size, shard.metadata["source"]) == (2500, BLOCK, "wiki")
    for i in (0, 1, 1023, 1024, 2499):
        row = shard.read(i)
        np.testing.assert_array_equal(row.input_ids, rows[i].input_ids)
        np.testing.assert_array_equal(row.doc_starts, [0, 3])
        assert row.doc_ids == rows[i].doc_ids
        assert row.input_ids.dtype == np.uint32
        assert not row.input_ids.flags.owndata
        assert not row.input_ids.flags.writeable
        assert row.loss_mask is None
    assert shard.totals() == {"rows": 2500, "tokens": 2500 * 9, "documents": 5000}
    assert (info.rows, info.tokens, info.documents) == (2500, 22500, 5000)
    with pytest.raises(IndexError, match="2500 rows"):
        shard.read(2500)


def test_reading_loads_no_pandas(tmp_path):
    """Each rank would pay for it at its start."""
    make_file(tmp_path / "a.arrow", 40, BLOCK)
    code = (
        "import sys; from model.training.shards import ShardFile; "
        f"assert ShardFile({str(tmp_path / 'a.arrow')!r}).read(3).valid; print('pandas' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=True, capture_output=True, text=True)
    assert done.stdout.strip() == "False"


def test_loss_mask_and_padding_come_back(tmp_path):
    mask = np.array([0, 1, 1, 0, 0, 1, 0, 0, 0], np.uint8)
    row = Row(np.arange(9, dtype=np.uint32), np.array([0], np.int32), [b"x" * 16], 6, mask)
    write_shard(tmp_path / "m.arrow", [row], BLOCK, loss_mask=True)
    back = ShardFile(tmp_path / "m.arrow").read(0)
    np.testing.assert_array_equal(back.loss_mask, mask)
    assert back.valid == 6


def test_a_document_that_goes_on_in_the_next_row_counts_once(tmp_path):
    tokens, one, two = np.arange(9, dtype=np.uint32), b"1" * 16, b"2" * 16
    rows = [
        Row(tokens, np.array([0, 4], np.int32), [one, two], 9),
        Row(tokens, np.array([0], np.int32), [two], 9),
        Row(tokens, np.array([0, 2], np.int32), [two, one], 5),
    ]
    assert write_shard(tmp_path / "d.arrow", rows, BLOCK).documents == 3


def test_same_rows_same_bytes(tmp_path):
    a = make_file(tmp_path / "a.arrow", 5)
    (tmp_path / "again").mkdir()
    b = make_file(tmp_path / "again" / "a.arrow", 5)
    assert a == b
    assert (tmp_path / "a.arrow").read_bytes() == (tmp_path / "again" / "a.arrow").read_bytes()
    assert make_file(tmp_path / "c.arrow", 5, base=1).digest != a.digest
    assert file_digest(tmp_path / "a.arrow") == a.digest
    assert sorted(p.name for p in tmp_path.iterdir()) == ["a.arrow", "again", "c.arrow"]


def test_it_is_a_plain_arrow_file(tmp_path):
    make_file(tmp_path / "a.arrow", 3)
    table = pa.ipc.open_file(str(tmp_path / "a.arrow")).read_all()
    assert table.column_names == ["input_ids", "doc_starts", "doc_ids", "valid"]
    assert table.schema.field("input_ids").type == pa.list_(pa.uint32(), BLOCK + 1)
    assert table["doc_starts"].to_pylist() == [[0, 3]] * 3


def test_what_is_no_shard_is_refused_in_one_line(tmp_path):
    with pytest.raises(ShardError, match="there is no shard"):
        ShardFile(tmp_path / "none.arrow")
    (tmp_path / "junk.arrow").write_bytes(b"junk" * 100)
    with pytest.raises(ShardError, match="not a readable Arrow file"):
        ShardFile(tmp_path / "junk.arrow")
    make_file(tmp_path / "cut.arrow", 300)
    data = (tmp_path / "cut.arrow").read_bytes()
    (tmp_path / "cut.arrow").write_bytes(data[: len(data) // 2])
    with pytest.raises(ShardError, match="not a readable Arrow file"):
        ShardFile(tmp_path / "cut.arrow")
    with pa.OSFile(str(tmp_path / "other.arrow"), "wb") as sink:
        table = pa.table({"a": [1]})
        with pa.ipc.new_file(sink, table.schema) as writer:
            writer.write_table(table)
    with pytest.raises(ShardError, match="shard format none"):
        ShardFile(tmp_path / "other.arrow")


def rewritten(path, change=None, metadata=None, rows=None, **options):
    """The shard `path` as another program may write it: `change` its columns, its metadata, rows of a record batch."""
    table = pa.ipc.open_file(pa.OSFile(str(path))).read_all().combine_chunks()
    table = (change or (lambda t: t))(table).replace_schema_metadata(metadata or table.schema.metadata)
    with (
        pa.OSFile(str(path.with_name("other.arrow")), "wb") as sink,
        pa.ipc.new_file(sink, table.schema, options=pa.ipc.IpcWriteOptions(**options)) as writer,
    ):
        for start in [0, *(rows or [])]:
            later = [r for r in (rows or []) if r > start]
            writer.write_batch(
                table.slice(start, (later or [len(table)])[0] - start).combine_chunks().to_batches()[0]
            )
    return path.with_name("other.arrow")


@pytest.mark.parametrize(
    ("how", "words"),
    [
        ({"change": lambda t: t.drop_columns(["doc_ids"])}, "needs one column doc_ids"),
        (
            {"change": lambda t: t.set_column(3, "valid", t["valid"].cast(pa.int64()))},
            "its column valid is int64, int32 is due",
        ),
        ({"metadata": {"steel_format": "1"}}, "block_size in its metadata is none, not a number"),
        ({"metadata": {"steel_format": "1", "block_size": "7"}}, "its column input_ids is"),
        ({"compression": "lz4"}, "is compressed"),
        ({"rows": [100, 150, 250]}, "record batch 1 has 50 rows, the first one 100"),
        ({"rows": [100]}, "record batch 1 has 200 rows, the first one 100"),
    ],
)
def test_what_calls_itself_a_shard_and_is_none_is_refused_in_one_line(tmp_path, how, words):
    make_file(tmp_path / "a.arrow", 300)
    with pytest.raises(ShardError, match=words) as error:
        look_over(rewritten(tmp_path / "a.arrow", **how))
    assert "other.arrow" in str(error.value)
    assert "\n" not in str(error.value)


def test_a_shard_of_another_program_is_read(tmp_path):
    """Its columns may allow nulls."""

    def nullable(table):
        fields = [pa.field(f.name, f.type, nullable=True) for f in table.schema]
        return pa.Table.from_arrays(table.columns, schema=pa.schema(fields))

    make_file(tmp_path / "a.arrow", 300)
    other = rewritten(tmp_path / "a.arrow", nullable, rows=[200])
    assert look_over(other) == look_over(tmp_path / "a.arrow") == (100_008, 300 * 7)


def test_targets_are_counted_as_the_trainer_sees_them(tmp_path):
    rows = [
        Row(np.arange(9, dtype=np.uint32), np.array([0, 4]), [bytes(16), bytes([1] * 16)], 7, mask)
        for mask in np.eye(9, dtype=np.uint8)
    ]
    write_shard(tmp_path / "a.arrow", rows, BLOCK, loss_mask=True)
    (batch,) = BlockLoader([{"path": str(tmp_path / "a.arrow")}], seed=0, batch_size=9).batch(0)
    assert look_over(tmp_path / "a.arrow")[1] == batch.targets == 5


@pytest.mark.parametrize(
    ("starts", "ids", "valid", "length"),
    [
        ([1], 1, 9, 9),  # does not begin with 0
        ([0, 3, 3], 3, 9, 9),  # a document of no tokens
        ([0, 7], 2, 7, 9),  # a document in the padding
        ([0, 3], 1, 9, 9),  # a document without id
        ([0], 1, 10, 9),  # more valid tokens than tokens
        ([0], 1, 9, 8),  # a short row
    ],
)
def test_a_row_that_breaks_the_invariants_is_not_written(tmp_path, starts, ids, valid, length):
    row = Row(np.zeros(length, np.uint32), np.array(starts, np.int32), [b"i" * 16] * ids, valid)
    with pytest.raises(ShardError):
        write_shard(tmp_path / "bad.arrow", [row], BLOCK)
    assert not (tmp_path / "bad.arrow").exists()


def test_a_flipped_bit_anywhere_is_found(tmp_path):
    """Header, schema with its metadata, every column's data, padding between buffers, footer, magic."""
    info = make_file(tmp_path / "a.arrow", 1100)
    path, good = tmp_path / "a.arrow", (tmp_path / "a.arrow").read_bytes()
    verify(path, info.digest)
    named = [good.index(word) for word in (b"steel_format", b"source", b"tokens", b"ARROW1")]
    footer = int.from_bytes(good[-10:-6], "little")
    named += [*range(len(good) - 10 - footer, len(good), 29), 0, len(good) - 1]
    data = np.random.default_rng(0).integers(0, len(good), 150).tolist()
    for place in [*named, *data]:
        bad = bytearray(good)
        bad[place] ^= 1 << (place % 8)
        path.write_bytes(bad)
        with pytest.raises(ShardError, match=r"a\.arrow has changed since it was written"):
            verify(path, info.digest)
    for cut in (good[:-1], good + b"\0", b""):
        path.write_bytes(cut)
        with pytest.raises(ShardError, match="has changed"):
            verify(path, info.digest)
    path.unlink()
    with pytest.raises(ShardError, match="cannot be read: No such file"):
        verify(path, info.digest)


def test_batches_of_a_writer_are_full_but_for_the_last(tmp_path):
    rows = make_rows(30, BLOCK)
    writer = ShardWriter(tmp_path / "b.arrow", BLOCK)
    writer.write_batch(Columns.of(rows[:10]))
    with pytest.raises(ShardError, match="only the last one may have fewer"):
        writer.write_batch(Columns.of(rows[10:]))


def test_another_program_can_read_it(tmp_path):
    """What docs/shards.md says of a shard is enough: no code of Steel is used to read it."""
    tokens, one, two = np.arange(9, dtype=np.uint32) + 10, b"1" * 16, b"2" * 16
    rows = [
        Row(tokens, np.array([0, 4], np.int32), [one, two], 9),
        Row(tokens, np.array([0, 1, 5], np.int32), [two, one, two], 7),
    ]
    info = write_shard(tmp_path / "d.arrow", rows * 600, BLOCK, {"source": "wiki", "separator": "999"})
    # -- the reader
    file = pa.ipc.open_file(pa.memory_map(str(tmp_path / "d.arrow")))
    metadata = {key.decode(): value.decode() for key, value in file.schema.metadata.items()}
    assert metadata["steel_format"] == "1"
    width = int(metadata["block_size"]) + 1
    last = file.get_batch_with_custom_metadata(file.num_record_batches - 1).custom_metadata
    read, count = [], 0
    for number in range(file.num_record_batches):
        batch = file.get_batch(number)
        ids = batch["input_ids"].flatten().to_numpy().reshape(-1, width)
        for i in range(batch.num_rows):
            starts = batch["doc_starts"][i].as_py()
            ends = [*starts[1:], batch["valid"][i].as_py()]
            for start, end, document in zip(starts, ends, batch["doc_ids"][i].as_py(), strict=True):
                read.append((document, ids[i, start:end].tolist()))
                count += end - start
    # -- what it found
    assert read[:5] == [
        (one, [10, 11, 12, 13]),
        (two, [14, 15, 16, 17, 18]),
        (two, [10]),
        (one, [11, 12, 13, 14]),
        (two, [15, 16]),
    ]
    assert len(read) == 3000
    assert (int(last[b"tokens"]), int(last[b"rows"])) == (count, 1200) == (info.tokens, info.rows)
    digest = xxhash.xxh3_128(Path(tmp_path / "d.arrow").read_bytes()).hexdigest()
    assert info.digest == f"xxh3:{digest}"
