"""Records in one file or in parts: found in order, read as one, digests taken from the manifest."""

import os

import pytest

from tasks.records import parts
from tasks.stage.node import Artifact
from tasks.stage.store import file_digest

PIECES = [b"a\nbb\n", b"", b"ccc\n", b"d\n" * 5]


@pytest.fixture
def cut(tmp_path):
    for number, content in enumerate(PIECES):
        (tmp_path / parts.name(number)).write_bytes(content)
    (tmp_path / parts.name(0, "dropped")).write_bytes(b"x\n")
    (tmp_path / "records-notes.jsonl").write_bytes(b"not a part\n")
    return tmp_path


def test_parts_in_order_of_their_numbers(cut):
    assert [p.name for p in parts.parts(cut)] == [parts.name(i) for i in range(4)]
    (cut / "records-100000.jsonl").write_bytes(b"last\n")
    (cut / "records-99999.jsonl").write_bytes(b"last but one\n")
    assert [p.name for p in parts.parts(cut)][-2:] == ["records-99999.jsonl", "records-100000.jsonl"]
    assert list(parts.lines(cut, "dropped")) == [b"x\n"]


def test_one_file_is_one_part(tmp_path):
    path = tmp_path / "records.jsonl"
    path.write_bytes(b"a\n")
    assert parts.parts(tmp_path) == parts.parts(path) == [path]
    assert list(parts.lines(tmp_path)) == [b"a\n"]


def test_nothing_and_both_are_refused(cut, tmp_path_factory):
    with pytest.raises(FileNotFoundError, match=r"holds no records\.jsonl"):
        parts.parts(tmp_path_factory.mktemp("empty"))
    (cut / "records.jsonl").write_bytes(b"")
    with pytest.raises(ValueError, match=r"records\.jsonl and parts of it"):
        parts.parts(cut)


def test_all_parts_read_as_one_file(cut):
    whole = b"".join(PIECES)
    assert b"".join(parts.lines(cut)) == whole
    assert parts.size(cut) == len(whole)
    with parts.open_all(cut) as file:
        assert file.read() == whole
        for at in range(len(whole) + 1):
            file.seek(at)
            assert file.tell() == at
            assert file.readline() == whole[at:].split(b"\n")[0] + (b"\n" if at < len(whole) else b"")
        assert file.seek(-2, os.SEEK_END) == len(whole) - 2


def test_digests_come_from_the_manifest_where_it_has_them(cut):
    files = [{"path": f"web/{parts.name(0)}", "sha256": "known"}]
    found = parts.digested(Artifact("clean:all#web", cut, "", "", {"files": files}))
    assert [digest for _, digest in found] == ["known", *(file_digest(p) for p in parts.parts(cut)[1:])]
