"""Listing and fetching against the loopback hub, in fair weather and foul."""

from __future__ import annotations

import errno
import random
import re
import subprocess
import sys
import time

import pytest

from tasks.download.disk import Reservation
from tasks.download.fetch import Fetcher, remove_strangers
from tasks.download.huggingface import listing
from tasks.download.listing import Changed, Elsewhere
from tasks.settings.errors import NodeError
from tasks.world.hub import Hub
from tests.support.downloads import content, no_sleep, part
from tests.support.faulty_hub import Faults, FaultyHub

BIG = random.Random(0).randbytes(3_000_000)
FILES = {
    "README.md": "说明\n".encode(),
    "data/part-0.jsonl": b'{"text": "a"}\n' * 1000,
    "data/part-1.parquet": BIG,
    "empty.jsonl": b"",
}


def get(hub, out, patterns=("**",), token=None, earlier=(), **kwargs):
    found = listing(hub.endpoint, hub.dataset, patterns, token=token, sleep=no_sleep)
    fetcher = Fetcher(sleep=no_sleep, **kwargs)
    fetcher.fetch(hub.dataset, found, out, earlier)
    return found.files


def ranges(hub, path):
    return [header for method, where, header in hub.requests if where.endswith(path) and "resolve" in where]


def test_all_files_arrive(tmp_path):
    with Hub("demo/x", FILES) as hub:
        files = get(hub, tmp_path)
    assert content(tmp_path) == FILES
    assert [f.path for f in files] == sorted(FILES)
    assert {f.path: bool(f.sha256) for f in files}["data/part-1.parquet"]


def test_patterns_choose(tmp_path):
    with Hub("demo/x", FILES) as hub:
        get(hub, tmp_path, ["data/*.jsonl"])
        with pytest.raises(NodeError, match=r"none matches files: \*\.txt"):
            get(hub, tmp_path, ["*.txt"])
    assert set(content(tmp_path)) == {"data/part-0.jsonl"}


def test_a_cut_connection_goes_on_where_it_stopped(tmp_path):
    faults = Faults(cut={"data/part-1.parquet": [1_000_000, 500_000]})
    with FaultyHub("demo/x", FILES, faults=faults) as hub:
        get(hub, tmp_path)
        asked = ranges(hub, "part-1.parquet")
    assert content(tmp_path) == FILES
    assert asked == [None, "bytes=1000000-", "bytes=1500000-"]


def test_a_killed_download_goes_on_in_the_next_run(tmp_path):
    (tmp_path / "data").mkdir()
    part(tmp_path, "data/part-1.parquet", BIG).write_bytes(BIG[:2_000_000])
    with Hub("demo/x", FILES) as hub:
        get(hub, tmp_path)
        assert ranges(hub, "part-1.parquet") == ["bytes=2000000-"]
        hub.requests.clear()
        get(hub, tmp_path)  # all there: nothing is fetched again
        assert not [r for r in hub.requests if "resolve" in r[1]]
    assert content(tmp_path) == FILES


def test_kill_9_and_go_on(tmp_path):
    script = (
        "import sys; from pathlib import Path\n"
        "from tasks.download.fetch import Fetcher; from tasks.download.huggingface import listing\n"
        "Fetcher().fetch('demo/x', listing(sys.argv[1], 'demo/x', ['**']), Path(sys.argv[2]))"
    )
    partly = part(tmp_path, "data/part-1.parquet", BIG)
    with FaultyHub("demo/x", FILES, faults=Faults(pause=0.1)) as hub:
        child = subprocess.Popen([sys.executable, "-c", script, hub.endpoint, str(tmp_path)])
        for _ in range(600):
            if partly.exists() and partly.stat().st_size > 500_000:
                break
            assert child.poll() is None
            time.sleep(0.02)
        child.kill()
        child.wait()
        had = partly.stat().st_size
        assert 500_000 < had < len(BIG)
        hub.faults.pause = 0.0
        hub.requests.clear()
        get(hub, tmp_path)
        assert ranges(hub, "part-1.parquet") == [f"bytes={had}-"]
    assert content(tmp_path) == FILES


def test_a_part_with_wrong_bytes_is_fetched_again(tmp_path):
    (tmp_path / "data").mkdir()
    part(tmp_path, "data/part-1.parquet", BIG).write_bytes(b"\0" * 2_000_000)
    with Hub("demo/x", FILES) as hub:
        get(hub, tmp_path)
    assert content(tmp_path) == FILES


@pytest.mark.parametrize("path", ["data/part-1.parquet", "README.md"])
def test_wrong_bytes_of_the_right_size_are_noticed(tmp_path, path):
    with FaultyHub("demo/x", FILES, faults=Faults(wrong={path: 1})) as hub:
        get(hub, tmp_path)
        assert content(tmp_path) == FILES
    (tmp_path / path).unlink()
    with (
        FaultyHub("demo/x", FILES, faults=Faults(wrong={path: 9})) as hub,
        pytest.raises(NodeError, match=f"demo/x/{path} came with wrong bytes 3 times"),
    ):
        get(hub, tmp_path)
    assert not (tmp_path / path).exists()


def test_a_damaged_file_on_disk_is_not_trusted(tmp_path):
    with Hub("demo/x", FILES) as hub:
        get(hub, tmp_path)
        (tmp_path / "README.md").write_bytes(b"x" * len(FILES["README.md"]))
        get(hub, tmp_path)
    assert content(tmp_path) == FILES


def test_a_server_without_ranges_and_a_busy_one(tmp_path):
    faults = Faults(
        cut={"data/part-1.parquet": [1000]}, status={"README.md": [503, 429, 500]}, no_ranges=True
    )
    with FaultyHub("demo/x", FILES, faults=faults) as hub:
        get(hub, tmp_path)
    assert content(tmp_path) == FILES


def test_a_server_that_stays_down_ends_in_one_line(tmp_path):
    with (
        FaultyHub("demo/x", FILES, faults=Faults(status={"README.md": [503] * 99})) as hub,
        pytest.raises(NodeError, match=r"README\.md could not be fetched .*: HTTP 503 \(tried 6 times"),
    ):
        get(hub, tmp_path)


def test_gated(tmp_path):
    with Hub("demo/x", FILES, token="hf_secret") as hub:
        with pytest.raises(
            NodeError, match=r"gated: accept its terms at .*/datasets/demo/x, then set HF_TOKEN"
        ):
            get(hub, tmp_path)
        with pytest.raises(NodeError, match="HF_TOKEN has no access") as refused:
            get(hub, tmp_path, token="hf_other")
        assert "hf_other" not in str(refused.value)
        get(hub, tmp_path, token="hf_secret")
    assert content(tmp_path) == FILES


def test_forbidden_file_missing_set_and_missing_revision(tmp_path):
    with FaultyHub("demo/x", FILES, faults=Faults(status={"README.md": [403]})) as hub:
        with pytest.raises(NodeError, match="is gated"):
            get(hub, tmp_path)
        with pytest.raises(NodeError, match="there is no data set demo/y"):
            listing(hub.endpoint, "demo/y", ["**"])
    with pytest.raises(Elsewhere, match="cannot list data set demo/x"):
        listing(hub.endpoint, "demo/x", ["**"], sleep=no_sleep)  # the hub is closed by now


def test_a_proxy_of_the_environment_is_not_asked_about_loopback(tmp_path, monkeypatch):
    monkeypatch.setenv("HTTP_PROXY", "http://127.0.0.1:9")
    monkeypatch.delenv("NO_PROXY", raising=False)
    with Hub("demo/x", FILES) as hub:
        get(hub, tmp_path)
    assert content(tmp_path) == FILES


def test_stop_keeps_what_is_there(tmp_path):
    seen = []
    with Hub("demo/x", {"a.parquet": BIG}) as hub, pytest.raises(NodeError, match="was stopped"):
        get(hub, tmp_path, progress=lambda share, text: seen.append(share), should_stop=lambda: bool(seen))
    assert 0 < part(tmp_path, "a.parquet", BIG).stat().st_size < len(BIG)


def test_progress_ends_at_one_also_after_a_resume(tmp_path):
    part(tmp_path, "a.parquet", BIG).write_bytes(BIG[:1_000_000])
    seen = []
    with Hub("demo/x", {"a.parquet": BIG}) as hub:
        get(hub, tmp_path, progress=lambda share, text: seen.append(share))
    assert seen[0] > 1 / 3
    assert seen[-1] == 1.0


def test_disk_space_is_checked_first(tmp_path):
    with pytest.raises(NodeError, match=r"not enough space .* runtime\.artifacts"):
        Reservation(tmp_path, 1 << 60)


@pytest.mark.parametrize("path", ["../evil.txt", "sub/manifest.json"])
def test_names_that_must_not_be_written(tmp_path, path):
    with (
        Hub("demo/x", {path: b"x"}) as hub,
        pytest.raises(NodeError, match=r"outside of itself|artifacts need"),
    ):
        get(hub, tmp_path)


def test_leftovers_of_another_listing_go(tmp_path):
    for name in ("keep.txt", "old/gone.txt", "keep.txt.part"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text("x")
    remove_strangers(tmp_path, ["keep.txt"])
    assert content(tmp_path) == {"keep.txt": b"x"}
    assert not (tmp_path / "old").exists()


def test_a_range_that_was_not_asked_for_is_not_appended(tmp_path, monkeypatch):
    faults = Faults(cut={"data/part-1.parquet": [1_000_000]})
    with FaultyHub("demo/x", FILES, faults=faults) as hub:
        handler = hub._server.RequestHandlerClass
        plain, shifted = handler.send_head, []

        def shift(self, code, head):
            if code == 206 and not shifted:
                shifted.append(head)
                head = head | {
                    "Content-Range": head["Content-Range"].replace("bytes 1000000", "bytes 999999")
                }
            plain(self, code, head)

        monkeypatch.setattr(handler, "send_head", shift)
        get(hub, tmp_path)
        assert shifted
        assert ranges(hub, "part-1.parquet") == [None, "bytes=1000000-", "bytes=1000000-"]
    assert content(tmp_path) == FILES


def test_a_file_that_got_shorter_is_told_and_its_part_dropped(tmp_path):
    (tmp_path / "data").mkdir()
    begun = part(tmp_path, "data/part-1.parquet", BIG)
    begun.write_bytes(BIG[:2_000_000])
    with Hub("demo/x", FILES) as hub:
        found = listing(hub.endpoint, hub.dataset, ["**"])
        hub.files["data/part-1.parquet"] = BIG[:1_500_000]  # the server answers 416
        with pytest.raises(Changed, match="is no longer as it was listed"):
            Fetcher(sleep=no_sleep).fetch("demo/x", found, tmp_path)
    assert not begun.exists()


def test_a_server_that_always_stops_short_is_given_up(tmp_path):
    with FaultyHub(
        "demo/x", FILES, faults=Faults(cut={"data/part-1.parquet": [1000] * 99}, no_ranges=True)
    ) as hub:
        with pytest.raises(Elsewhere, match=r"the connection ended|incomplete|peer closed"):
            get(hub, tmp_path)
        assert len(ranges(hub, "part-1.parquet")) == 7  # the first brought something


def test_a_disk_that_fills_up_is_one_line(tmp_path, monkeypatch):
    def full(self, size, file, space, came=False):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(Fetcher, "_advance", full)
    with Hub("demo/x", FILES) as hub, pytest.raises(NodeError, match="the disk filled up while"):
        get(hub, tmp_path)


def test_parts_of_another_version_go(tmp_path):
    (tmp_path / "data").mkdir()
    old = part(tmp_path, "data/part-1.parquet", BIG[:-1])
    old.write_bytes(BIG[:1000])
    with Hub("demo/x", FILES) as hub:
        get(hub, tmp_path)
        assert ranges(hub, "part-1.parquet") == [None]
    assert content(tmp_path) == FILES


def test_progress_tells_bytes_and_rate(tmp_path):
    seen = []
    with Hub("demo/x", {"a.parquet": BIG}) as hub:
        get(hub, tmp_path, progress=lambda share, text: seen.append(text))
    assert re.fullmatch(r"3\.0 MB of 3\.0 MB, .*/s, a\.parquet", seen[-1])
