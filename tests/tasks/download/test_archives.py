"""Archives are unpacked, nothing leaves the folder, and what is wrong is said."""

from __future__ import annotations

import io
import tarfile
import time
import zipfile

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


def with_names(encoding, *names, flag=0, system=0):
    """A zip whose names are in this encoding, without a word about it."""
    sink = io.BytesIO()
    with zipfile.ZipFile(sink, "w") as archive:
        for number, name in enumerate(names):
            archive.writestr(f"@{number}".ljust(len(name.encode(encoding)), "x"), b"q,a\n")
    packed = sink.getvalue()
    for number, name in enumerate(names):
        raw = name.encode(encoding)
        packed = packed.replace(f"@{number}".ljust(len(raw), "x").encode(), raw)
    return packed


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
        pytest.param("x.tar.gz", tarred(FILES)[:40], "x.tar.gz cannot be unpacked", id="cut tar.gz"),
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


# ------------------------------------------------------------------- what other systems pack
@pytest.mark.parametrize("encoding", ["gbk", "gb18030", "utf-8"])
def test_names_in_no_declared_encoding(tmp_path, encoding):
    names = [
        "题库/val/逻辑学_val.csv",
        "题库/val/誠信_val.csv",
        "题库/dev/a.csv",
    ]  # 誠 has the byte of a backslash
    (tmp_path / "x.zip").write_bytes(with_names(encoding, *names))
    assert unpack(tmp_path, ["x.zip"], ["题库/val/*.csv"]) == sorted(names[:2])


def test_names_of_dos_and_backslashes(tmp_path):
    (tmp_path / "x.zip").write_bytes(with_names("cp437", "caf\u00e9.csv"))
    assert unpack(tmp_path, ["x.zip"], ["*.csv"]) == ["café.csv"]
    packed = bytearray(with_names("utf-8", "set\\\\dev\\a.csv".replace("\\\\", "\\")))
    at = packed.index(b"PK\x01\x02")
    packed[at + 5] = 0  # made by DOS
    (tmp_path / "y.zip").write_bytes(packed)
    assert unpack(tmp_path, ["y.zip"], ["set/dev/*.csv"]) == ["set/dev/a.csv"]


def test_a_tar_with_names_of_windows(tmp_path):
    sink = io.BytesIO()
    with tarfile.open(fileobj=sink, mode="w", encoding="gbk", format=tarfile.GNU_FORMAT) as archive:
        info = tarfile.TarInfo("题库/逻辑学.csv")
        info.size = 3
        archive.addfile(info, io.BytesIO(b"a,b"))
    (tmp_path / "x.tar").write_bytes(sink.getvalue())
    assert unpack(tmp_path, ["x.tar"], ["题库/*.csv"]) == ["题库/逻辑学.csv"]


LITTER = {"__MACOSX/set/dev/._a.csv": b"\0\5", "set/dev/._a.csv": b"\0\5", "set/.DS_Store": b"\0"}


@pytest.mark.parametrize(("name", "pack"), [("x.zip", zipped), ("x.tar.gz", tarred)])
def test_litter_is_left_out_and_told(tmp_path, name, pack):
    (tmp_path / name).write_bytes(pack(FILES | LITTER))
    told = []
    assert unpack(tmp_path, [name], ["**"], told.append) == sorted(FILES)
    assert told == [f"{name}: left out 3 files of a desktop (__MACOSX, ._*, .DS_Store)"]


def test_links_and_devices_are_left_out_and_told(tmp_path):
    sink = io.BytesIO()
    with tarfile.open(fileobj=sink, mode="w") as archive:
        for name, kind in (
            ("a", tarfile.SYMTYPE),
            ("b", tarfile.LNKTYPE),
            ("c", tarfile.CHRTYPE),
            ("d", tarfile.FIFOTYPE),
        ):
            info = tarfile.TarInfo(name)
            info.type, info.linkname = kind, "/etc/passwd"
            archive.addfile(info)
        archive.addfile(tarfile.TarInfo("e"), io.BytesIO(b""))
    (tmp_path / "x.tar").write_bytes(sink.getvalue())
    told = []
    assert unpack(tmp_path, ["x.tar"], ["*"], told.append) == ["e"]
    assert told == ["x.tar: left out 2 devices and pipes, 2 links"]
    with zipfile.ZipFile(tmp_path / "x.zip", "w") as archive:
        info = zipfile.ZipInfo("link")
        info.create_system, info.external_attr = 3, 0o120777 << 16
        archive.writestr(info, "/etc/passwd")
        archive.writestr("f", b"")
    told.clear()
    assert unpack(tmp_path, ["x.zip"], ["*"], told.append) == ["f"]
    assert told == ["x.zip: left out 1 links"]


@pytest.mark.parametrize(
    ("files", "message"),
    [
        ({"a/x.csv": b"", "a": b""}, "a both as a file and as a folder"),
        ({"a": b"", "a/x.csv": b""}, "a both as a file and as a folder"),
        ({"x" * 256: b""}, "more than 255 bytes"),
        ({"/".join(["y" * 200] * 30): b""}, "too long"),
    ],
)
@pytest.mark.parametrize(("name", "pack"), [("x.zip", zipped), ("x.tar.gz", tarred)])
def test_members_that_cannot_be_written_are_one_line(tmp_path, name, pack, files, message):
    (tmp_path / name).write_bytes(pack(files))
    with pytest.raises(NodeError, match=message) as error:
        unpack(tmp_path, [name], ["**"])
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(("name", "pack"), [("x.zip", zipped), ("x.tar.gz", tarred)])
def test_a_bomb_is_refused_before_it_is_written(tmp_path, monkeypatch, name, pack):
    monkeypatch.setattr("tasks.download.archives.ALWAYS", 1 << 20)
    (tmp_path / name).write_bytes(pack({f"{i}.csv": b"\0" * 1_000_000 for i in range(9)}))
    with pytest.raises(
        NodeError, match=rf"{name} has .* would unpack to more than .* 200 times its size; .* are free"
    ):
        unpack(tmp_path, [name], ["*.csv"])
    assert sum(path.stat().st_size for path in tmp_path.rglob("*.csv")) < 9_000_000


def test_texts_that_shrink_a_hundredfold_are_unpacked(tmp_path, monkeypatch):
    monkeypatch.setattr("tasks.download.archives.ALWAYS", 1 << 10)
    body = b"".join(b"a line like any other, number %d\n" % (i // 40) for i in range(20_000))
    (tmp_path / "x.zip").write_bytes(zipped({"a.csv": body}))
    assert (tmp_path / "x.zip").stat().st_size * 40 < len(body)
    assert unpack(tmp_path, ["x.zip"], ["*.csv"]) == ["a.csv"]


def test_a_tar_damaged_in_its_middle_does_not_end_there(tmp_path):
    packed = bytearray(tarred({f"{i}.csv": b"x" * 600 for i in range(9)}, "w"))
    packed[4 * 1536 : 4 * 1536 + 512] = b"\xff" * 512
    (tmp_path / "x.tar").write_bytes(packed)
    with pytest.raises(NodeError, match=r"x\.tar is damaged: there are data after|x.tar cannot be unpacked"):
        unpack(tmp_path, ["x.tar"], ["*.csv"])


def test_nothing_matches_says_what_is_inside(tmp_path):
    (tmp_path / "x.zip").write_bytes(zipped({f"set/{i}.tsv": b"" for i in range(12)}))
    with pytest.raises(
        NodeError, match=r"matches unpack: \*\.csv; there are 12 files: set/0.tsv, .*, and 4 more"
    ):
        unpack(tmp_path, ["x.zip"], ["*.csv"])


@pytest.mark.parametrize(("name", "pack"), [("x.zip", zipped), ("x.tar", lambda files: tarred(files, "w"))])
def test_many_members_cost_each_the_same(tmp_path, name, pack):
    """Processor time per member does not grow with their number."""
    costs = []
    for n in (500, 4000):
        out = tmp_path / str(n)
        out.mkdir()
        (out / name).write_bytes(pack({f"d{i % 9}/{i}.json": b"{}" for i in range(n)}))
        before = time.process_time()
        assert len(unpack(out, [name], ["**/*.json"])) == n
        costs.append((time.process_time() - before) / n)
    assert costs[1] < 3 * costs[0]


def test_a_member_with_the_name_of_its_archive_is_not_lost(tmp_path):
    for files in ({"a.zip": b"inner"}, {"b.zip": b"the other", "a.jsonl": b"x"}):
        (tmp_path / "a.zip").write_bytes(zipped(files))
        (tmp_path / "b.zip").write_bytes(zipped({"c.jsonl": b"y"}))
        with pytest.raises(NodeError, match="so does another file or archive"):
            unpack(tmp_path, ["a.zip", "b.zip"], ["**"])
        assert (tmp_path / "a.zip").exists()


@pytest.mark.parametrize("packed", [zipped, tarred])
def test_names_that_begin_with_the_folder_itself_or_hold_a_line_end(tmp_path, packed):
    archive = "a.zip" if packed is zipped else "a.tar.gz"
    (tmp_path / archive).write_bytes(packed({"./set/a.csv": b"a", "set/b\nc.csv": b"b"}))
    assert unpack(tmp_path, [archive], ["**/*.csv"]) == ["set/a.csv", "set/b\nc.csv"]
