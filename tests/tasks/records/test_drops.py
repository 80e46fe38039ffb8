"""What was dropped, and its subtraction."""

import os

import orjson
import pytest

from tasks.records import drops
from tasks.records.drops import Copy, Hit, NotClean, NotConverted
from tasks.records.record import dump, id_bytes

IDS = [f"{i:032x}" for i in range(6)]
RECORDS = [{"id": one, "kind": "text", "text": f"text {one}"} for one in IDS]
LINES = {
    "convert": NotConverted(id=IDS[1], operator="duplicate-id", at="a:1", excerpt="x"),
    "clean": NotClean(id=IDS[1], operator="text_length_filter", why={"text_len": 1.0}, excerpt="x"),
    "quarantined": NotClean(id=IDS[1], operator="o", why={}, excerpt="", quarantined="operator failed: o"),
    "dedup": Copy(id=IDS[1], duplicate_of=IDS[0], method="exact"),
    "decontaminate": Hit(id=IDS[1], step="decontaminate", questions=[["exam", IDS[5]]]),
}


def write(path, lines):
    path.write_bytes(b"".join(map(dump, lines)))
    return path


@pytest.mark.parametrize("line", LINES.values(), ids=LINES)
def test_every_kind_of_line_is_subtracted(tmp_path, line):
    path = write(tmp_path / drops.DROPS, [line])
    assert list(drops.read_ids(path)) == [bytes.fromhex(IDS[1])]
    left = list(drops.without(RECORDS, drops.ids(path)))
    assert [r["id"] for r in left] == [one for one in IDS if one != IDS[1]]


def test_nothing_dropped_leaves_everything(tmp_path):
    assert list(drops.without(RECORDS, drops.ids(None))) == RECORDS
    assert list(drops.without(RECORDS, drops.ids(write(tmp_path / "d", [])))) == RECORDS


def test_a_missing_file_is_an_error(tmp_path):
    with pytest.raises(FileNotFoundError):
        drops.ids(tmp_path / "absent.jsonl")


def test_a_part_is_told_its_own_drops_only(tmp_path):
    """In the order of the part, 16 bytes each; those of other parts are no business of its key."""
    part = write(tmp_path / "records-00000.jsonl", RECORDS[:4])
    listed = write(tmp_path / drops.DROPS, [{"id": one} for one in (IDS[5], IDS[3], IDS[0])])
    joined = drops.of_part(part, listed)
    assert joined == bytes.fromhex(IDS[0] + IDS[3])
    assert drops.unpacked(joined) == {bytes.fromhex(IDS[0]), bytes.fromhex(IDS[3])}
    assert [r["id"] for r in drops.without(RECORDS[:4], drops.unpacked(joined))] == [IDS[1], IDS[2]]
    assert drops.of_part(part, write(tmp_path / "none.jsonl", [])) == b""
    assert drops.unpacked(b"") == frozenset()


def test_only_the_first_bytes_of_a_record_are_read(tmp_path):
    """A part of records is not parsed: what stands behind the id may be anything."""
    part = tmp_path / "records.jsonl"
    part.write_bytes(b'{"id":"%b", not JSON\n' % IDS[2].encode())
    listed = write(tmp_path / drops.DROPS, [{"id": IDS[2]}])
    assert drops.of_part(part, listed) == bytes.fromhex(IDS[2])


def test_a_rewritten_file_is_read_again(tmp_path):
    path = write(tmp_path / drops.DROPS, [{"id": IDS[0]}])
    assert drops.ids(path) == {bytes.fromhex(IDS[0])}
    write(path, [{"id": IDS[1]}, {"id": IDS[2]}])
    os.utime(path, ns=(1, 1))
    assert drops.ids(path) == {bytes.fromhex(one) for one in IDS[1:3]}


def test_ids_are_held_as_bytes():
    assert {len(one) for one in map(id_bytes, RECORDS)} == {16}
    assert orjson.loads(dump(RECORDS[0]))["id"] == id_bytes(RECORDS[0]).hex()
