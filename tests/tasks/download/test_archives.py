"""Archives are unpacked, nothing leaves the folder, and what is wrong is said."""

from __future__ import annotations

import io
import tarfile

import pytest

from tasks.download.archives import unpack
from tasks.settings.errors import NodeError
from tests.support.downloads import content, zipped

FILES = {"set/dev/a.csv": b"a,b\n", "set/val/a.csv": b"c,d\n", "set/README.md": b"no"}
WANTED = ["**/dev/*.csv", "**/val/*.csv"]


def tarred(files, mode="w:gz", link=None):
    sink = io.BytesIO()
    with tarfile.open(fileobj=sink, mode=mode) as archive:
        for path, body in files.items():
            info = tarfile.TarInfo(path)
            info.size = len(body)
            archive.addfile(info, io.BytesIO(body))
        if link:
            info = tarfile.TarInfo(link)
            info.type, info.linkname = tarfile.SYMTYPE, "/etc/passwd"
            archive.addfile(info)
    return sink.getvalue()


def bad_checksum(packed):
    """A whole gzip stream that is not what its end says: gzip.BadGzipFile, an OSError, once all is read."""
    return packed[:-8] + b"\0\0\0\0" + packed[-4:]


@pytest.mark.parametrize(
    ("name", "body"),
    [
        ("x.zip", zipped(FILES)),
        ("x.tar.gz", tarred(FILES)),
        ("x.tar", tarred(FILES, "w", "set/dev/link.csv")),
    ],
)
def test_wanted_files_take_the_archives_place(tmp_path, name, body):
    (tmp_path / name).write_bytes(body)
    (tmp_path / "plain.csv").write_bytes(b"p")
    files = unpack(tmp_path, [name, "plain.csv"], WANTED)
    assert files == ["plain.csv", "set/dev/a.csv", "set/val/a.csv"]
    assert content(tmp_path) == {"plain.csv": b"p"} | {p: FILES[p] for p in files[1:]}


@pytest.mark.parametrize(
    ("name", "body", "message"),
    [
        ("x.zip", zipped(FILES)[:-30], "x.zip cannot be unpacked"),
        ("x.zip", zipped({"../dev/a.csv": b"x"}), "outside of itself"),
        ("x.tar", tarred({"set/../dev/a.csv": b"x"}, "w"), "outside of itself"),
        ("x.tar.gz", tarred(FILES)[:40], "x.tar.gz cannot be unpacked"),
        ("x.tar.gz", bad_checksum(tarred({"dev/a.csv": b"a,b\n" * 40_000})), "x.tar.gz cannot be unpacked"),
        ("x.zip", zipped({"README": b"x"}), r"no file in x.zip matches unpack: \*\*/dev"),
    ],
)
def test_what_is_wrong_with_an_archive(tmp_path, name, body, message):
    out = tmp_path / "out"
    out.mkdir()
    (out / name).write_bytes(body)
    with pytest.raises(NodeError, match=message):
        unpack(out, [name], WANTED)
    assert [p.name for p in tmp_path.iterdir()] == ["out"]
    assert (out / name).exists()


def test_two_archives_with_the_same_file(tmp_path):
    for name in ("a.zip", "b.zip"):
        (tmp_path / name).write_bytes(zipped(FILES))
    with pytest.raises(NodeError, match=r"b\.zip holds set/dev/a\.csv, and so does"):
        unpack(tmp_path, ["a.zip", "b.zip"], WANTED)
