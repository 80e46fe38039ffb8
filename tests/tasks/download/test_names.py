"""Names: litter of desktops, bytes that are no UTF-8, links, and what cannot be written."""

from __future__ import annotations

import os

import pytest

from tasks.download import local
from tasks.download.fetch import check_names
from tasks.download.names import Names, decoded, few, is_litter, readable
from tasks.settings.errors import NodeError


@pytest.mark.parametrize(
    ("path", "expected"),
    [
        ("__MACOSX/a/b.csv", True),
        ("a/__MACOSX/b.csv", True),
        ("a/._b.csv", True),
        (".DS_Store", True),
        ("a/Thumbs.db", True),
        ("a/desktop.ini", True),
        ("a/b.csv", False),
        ("MACOSX/b.csv", False),
        ("a/DS_Store.csv", False),
        ("_a.csv", False),
    ],
)
def test_litter(path, expected):
    assert is_litter(path) is expected


def test_one_encoding_for_all_names():
    assert decoded(["中文".encode(), b"a"]) == ["中文", "a"]
    assert decoded(["中文".encode("gbk"), "誠信".encode("gbk")]) == ["中文", "誠信"]
    assert decoded(["café".encode("cp437")], last="cp437") == ["café"]
    assert decoded([b"caf\x82."]) == ["caf\\x82."]
    assert few(["a", "b\n", "c"], 2) == "a, 'b\\n', and 1 more"


@pytest.mark.parametrize(
    ("paths", "message"),
    [
        (["../a"], "outside of itself"),
        (["/a"], "outside of itself"),
        (["a//b"], "outside of itself"),
        (["a/manifest.json"], "a name that artifacts need"),
        (["a", "a/b"], "a both as a file and as a folder"),
        (["a/b", "a"], "a both as a file and as a folder"),
        (["a/b/c", "a/b"], "a/b both as a file and as a folder"),
        (["长" * 86], "more than 255 bytes"),
        (["x" * 256 + "/a"], "more than 255 bytes"),
        (["a", "a"], "and so does another file"),
    ],
)
def test_what_cannot_be_written(paths, message):
    with pytest.raises(NodeError, match=message) as error:
        check_names("set", paths)
    assert "\n" not in str(error.value)
    Names(["长" * 85, "a/b", "a/c"])


# ----------------------------------------------------------------------------- local folders
@pytest.fixture
def base(tmp_path):
    folder = tmp_path / "set"
    folder.mkdir()
    (folder / "b.jsonl").write_text("b")
    nas = tmp_path / "nas"
    nas.mkdir()
    (nas / "a.jsonl").write_text("a")
    return folder


def listed(folder, patterns=("**",)):
    told = []
    return list(local.list_files("s", folder, patterns, told.append)), told


def test_linked_folders_and_files_are_followed(tmp_path, base):
    os.symlink(tmp_path / "nas", base / "part")
    os.symlink(tmp_path / "nas/a.jsonl", base / "c.jsonl")
    files, told = listed(base, ["part/*.jsonl"])
    assert (files, told) == (["part/a.jsonl"], [])
    files, told = listed(base)
    assert files == ["b.jsonl", "c.jsonl"]
    assert told == ["left out, because links lead to one file twice: part/a.jsonl (is c.jsonl)"]


def test_loops_end_and_are_told(tmp_path, base):
    os.symlink(base, base / "self")
    (base / "deep").mkdir()
    os.symlink("..", base / "deep/up")
    files, told = listed(base)
    assert files == ["b.jsonl"]
    assert told == [
        f"{path} is not entered: it is a link to a folder that it lies in" for path in ("deep/up", "self")
    ]


def test_folders_that_link_to_each_other_end(base):
    for name in "vwxyz":
        (base / name).mkdir()
        (base / name / "f.txt").write_text(name)
        for other in "vwxyz":
            os.symlink(f"../{other}", base / name / f"to-{other}")
    files, told = listed(base)
    assert files == ["b.jsonl", *(f"{name}/f.txt" for name in "vwxyz")]
    assert told


def test_a_hard_link_is_a_file_of_its_own(base):
    os.link(base / "b.jsonl", base / "z.jsonl")
    assert listed(base) == (["b.jsonl", "z.jsonl"], [])


def test_what_is_no_file_is_told(base):
    os.mkfifo(base / "pipe")
    (base / "__MACOSX").mkdir()
    (base / "._b.jsonl").write_text("x")
    (base / ".hidden").write_text("x")
    files, told = listed(base)
    assert files == ["b.jsonl"]
    assert told == [
        "pipe is left out: it is a pipe, a socket or a device",
        "2 files of a desktop (__MACOSX, Thumbs.db, …) are left out",
    ]


def test_a_link_to_nothing_is_one_line(base):
    os.symlink("nowhere", base / "a")
    with pytest.raises(NodeError, match=r"set/a is a link to nothing"):
        listed(base)


def test_nothing_matches_says_what_is_there(base):
    (base / "a.parquet").write_text("x")
    with pytest.raises(
        NodeError, match=r"none of the 2 files .* matches files: \*\.csv; there are: a.parquet, b.jsonl"
    ):
        listed(base, ["*.csv"])


@pytest.mark.parametrize(
    ("name", "shown"), [("网页一.jsonl".encode("gbk"), "网页一.jsonl"), (b"caf\x82.jsonl", "caf\\x82.jsonl")]
)
def test_names_that_are_no_utf8(tmp_path, base, name, shown):
    raw = os.fsencode(base) + b"/" + name
    with open(raw, "wb") as file:
        file.write(b"x")
    files = local.list_files("s", base, ["*.jsonl"])
    assert set(files) == {"b.jsonl", shown}
    assert readable(files[shown]) == shown
    memo = tmp_path / "memo.json"
    digests = local.digests(base, files, memo)
    assert local.digests(base, files, memo) == digests
    out = tmp_path / "out"
    local.take(base, files, digests, out, lambda share, text: None)
    assert sorted(path.name for path in out.iterdir()) == sorted(files)
    with open(os.fsencode(base) + "/网页一.jsonl".encode(), "wb"):
        pass
    if shown == "网页一.jsonl":
        with pytest.raises(NodeError, match="two files are called 网页一.jsonl"):
            listed(base)
