"""Whole download nodes against imitated hubs: ModelScope, plain URLs, mirrors, and files had before."""

from __future__ import annotations

import hashlib
import json
import logging
import os
import random
import shutil
import time

import pytest

from tasks.download import modelscope
from tasks.download import node as download
from tasks.download.disk import Reservation
from tasks.settings.config import SteelRun
from tasks.settings.errors import NodeError
from tasks.stage.node import Context
from tasks.world.hub import Hub
from tests.support.downloads import content, zipped
from tests.support.faulty_hub import Faults, FaultyHub
from tests.support.imitations import ModelScope, Web

BIG = random.Random(1).randbytes(1_000_000)
FILES = {"README.md": b"read me", "data/a.jsonl": b'{"text": "a"}\n' * 500, "data/b.parquet": BIG}


@pytest.fixture(autouse=True)
def no_waiting(monkeypatch):
    for name in ("HF_TOKEN", "MODELSCOPE_API_TOKEN", "HTTP_PROXY", "http_proxy"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr("huggingface_hub.get_token", lambda: os.environ.get("HF_TOKEN"))
    real = time.sleep
    monkeypatch.setattr("time.sleep", lambda seconds: real(min(seconds, 0.01)))


def fetch(tmp_path, endpoints=None, number=1, **source):
    """Run the node in a store of its own; (outcome, content of its folder)."""
    source = {"reader": "skypile", **source}
    runtime = {"artifacts": tmp_path / "artifacts", "endpoints": endpoints or {}}
    config = SteelRun(profile="t", sources={"s": source}, runtime=runtime)
    (node,) = download.nodes(config)
    out = tmp_path / f"artifacts/download/s-{number:016d}.partial"
    out.mkdir(parents=True, exist_ok=True)
    log = logging.getLogger("download-test")
    context = Context(node.name, out, node.config, {}, config.runtime, 0, log, None)
    return node.body(context), content(out)


def asked(hub, path):
    return [header for _, where, header in hub.requests if where.endswith(path)]


def on_modelscope(tmp_path, hub, **kwargs):
    endpoints = {"modelscope": [hub.endpoint]}
    return fetch(tmp_path, endpoints, hub="modelscope", dataset="org/set", **kwargs)


# ------------------------------------------------------------------------------ ModelScope
def test_modelscope_files_arrive_verified_and_go_on_where_they_were_cut(tmp_path):
    faults = Faults(cut={"data/b.parquet": [300_000]}, wrong={"data/a.jsonl": 1})
    with ModelScope("org/set", FILES, faults=faults) as hub:
        outcome, found = on_modelscope(tmp_path, hub, files=["data/*"])
        assert asked(hub, "data/b.parquet") == [None, "bytes=300000-"]
        assert len(asked(hub, "data/a.jsonl")) == 2
    assert found == {path: FILES[path] for path in ("data/a.jsonl", "data/b.parquet")}
    assert outcome.extra["revision"] == "master"
    assert "trusted_at_first_use" not in outcome.extra


def test_modelscope_lists_page_by_page(tmp_path):
    files = {f"part-{i:03d}.jsonl": b"%d" % i for i in range(230)}
    with ModelScope("org/set", files) as hub:
        _, found = on_modelscope(tmp_path, hub)
    assert found == files


def test_modelscope_gated_and_missing(tmp_path, monkeypatch, caplog):
    with ModelScope("org/set", FILES, token="ms-secret") as hub:
        with pytest.raises(
            NodeError, match=r"accept its terms at .*/datasets/org/set, then set MODELSCOPE_API"
        ):
            on_modelscope(tmp_path, hub)
        monkeypatch.setenv("MODELSCOPE_API_TOKEN", "ms-other")
        with pytest.raises(NodeError, match="MODELSCOPE_API_TOKEN has no access") as refused:
            on_modelscope(tmp_path, hub)
        monkeypatch.setenv("MODELSCOPE_API_TOKEN", "ms-secret")
        with caplog.at_level(logging.DEBUG):
            outcome, found = on_modelscope(tmp_path, hub)
    assert found == FILES
    assert "ms-other" not in str(refused.value)
    assert "ms-secret" not in caplog.text + str(outcome)
    with (
        ModelScope("org/other", FILES) as hub,
        pytest.raises(NodeError, match="there is no data set org/set"),
    ):
        on_modelscope(tmp_path, hub)


def test_modelscope_file_without_a_digest_is_trusted_once(tmp_path):
    with ModelScope("org/set", FILES) as hub:
        hub.unsigned = frozenset({"README.md"})
        outcome, _ = on_modelscope(tmp_path, hub)
        (noted,) = outcome.extra["trusted_at_first_use"].values()
        assert noted["sha256"] == hashlib.sha256(FILES["README.md"]).hexdigest()
        again, _ = on_modelscope(tmp_path, hub, number=2)
        assert "trusted_at_first_use" not in again.extra
        hub.files["README.md"] = b"changed"
        shutil.rmtree(tmp_path / "artifacts/download")
        with pytest.raises(
            NodeError, match=r"wrong bytes 3 times .* by its first download \(remove .*to trust"
        ):
            on_modelscope(tmp_path, hub, number=3)


def test_a_token_stored_as_a_pickle_is_not_read(monkeypatch):
    assert modelscope.token() is None
    monkeypatch.setattr(
        "modelscope_hub.config.HubConfig.load_token", lambda self: pytest.fail("the stored login was read")
    )
    with ModelScope("org/set", FILES) as hub:
        modelscope.listing(hub.endpoint, "org/set", ["**"])


# ------------------------------------------------------------------------------------- URLs
def from_web(tmp_path, hub, *paths, number=1, **given):
    urls = [{"url": f"{hub.endpoint}/{path}", **given} for path in paths]
    return fetch(tmp_path, number=number, hub="url", urls=urls)


def test_urls_are_trusted_at_first_and_noted_plainly(tmp_path, caplog):
    with Web("", FILES) as hub:
        outcome, found = from_web(tmp_path, hub, "data/a.jsonl", "moved/data/b.parquet")
        assert found == {"a.jsonl": FILES["data/a.jsonl"], "b.parquet": BIG}
        assert len(outcome.extra["trusted_at_first_use"]) == 2
        assert "came without a digest and is trusted: sha256" in caplog.text
        hub.files["data/a.jsonl"] = b"x" * len(FILES["data/a.jsonl"])
        _, found = from_web(tmp_path, hub, "data/a.jsonl", number=2)
        assert found == {"a.jsonl": FILES["data/a.jsonl"]}  # taken from the earlier artifact
        shutil.rmtree(tmp_path / "artifacts/download")
        with pytest.raises(NodeError, match="wrong bytes 3 times"):
            from_web(tmp_path, hub, "data/a.jsonl", number=2)
        hub.files["data/a.jsonl"] = b"shorter"
        with pytest.raises(NodeError, match=r"has 7 bytes, but 7,000 by its first download"):
            from_web(tmp_path, hub, "data/a.jsonl", number=2)


def test_a_url_with_size_and_digest_is_asked_for_once(tmp_path):
    given = {"size": len(BIG), "sha256": hashlib.sha256(BIG).hexdigest()}
    with Web("", FILES) as hub:
        outcome, found = from_web(tmp_path, hub, "data/b.parquet", **given, path="x/c.parquet")
        assert found == {"x/c.parquet": BIG}
        assert len(hub.requests) == 1
        assert "trusted_at_first_use" not in outcome.extra
        with pytest.raises(NodeError, match=r"wrong bytes 3 times .* by the source's urls"):
            from_web(tmp_path, hub, "data/b.parquet", size=len(BIG), sha256="0" * 64, number=2)
        with pytest.raises(NodeError, match=r"has 7 bytes, but 8 by the source's urls"):
            from_web(tmp_path, hub, "README.md", size=8, number=3)


class Then(list):
    """A list of faults that does something when its last one happens."""

    def __init__(self, faults, act):
        super().__init__(faults)
        self.act = act

    def pop(self, index=-1):
        if len(self) == 1:
            self.act()
        return super().pop(index)


def test_a_file_that_changes_while_it_is_fetched_is_listed_anew(tmp_path):
    newer = bytes(reversed(BIG))
    with Web("", FILES) as hub:
        # the first answer is the probe's; the second is cut, and then the file is another one
        change = Then([1, 400_000], lambda: hub.files.update({"data/b.parquet": newer}))
        hub.faults.cut["data/b.parquet"] = change
        _, found = from_web(tmp_path, hub, "data/b.parquet")
        assert "bytes=400000-" in asked(hub, "data/b.parquet")
    assert found == {"b.parquet": newer}


def test_a_url_goes_on_in_the_next_run_while_its_validator_stays(tmp_path):
    down = Faults(cut={"data/b.parquet": [1, 400_000]})
    with Web("", FILES, faults=down) as hub:
        refuse = Then([1, 400_000], lambda: hub.faults.status.update({"data/b.parquet": [503] * 6}))
        hub.faults.cut["data/b.parquet"] = refuse
        with pytest.raises(NodeError, match="what is there already is kept"):
            from_web(tmp_path, hub, "data/b.parquet")
        hub.requests.clear()
        _, found = from_web(tmp_path, hub, "data/b.parquet")
        assert asked(hub, "data/b.parquet") == ["bytes=0-0", "bytes=400000-"]
    assert found == {"b.parquet": BIG}


def test_without_digest_and_validator_a_part_is_not_continued(tmp_path):
    with Web("", FILES, faults=Faults(cut={"data/b.parquet": [1, 400_000]})) as hub:
        hub.anonymous = True
        _, found = from_web(tmp_path, hub, "data/b.parquet")
        assert asked(hub, "data/b.parquet") == ["bytes=0-0", None, None]
    assert found == {"b.parquet": BIG}


@pytest.mark.parametrize(
    ("path", "faults", "message"),
    [
        ("none.json", Faults(), "cannot fetch .*none.json: HTTP 404"),
        ("README.md", Faults(status={"README.md": [403] * 9}), "cannot fetch .*README.md: HTTP 403"),
        ("README.md", Faults(status={"README.md": [503] * 99}), "cannot fetch .*README.md: HTTP 503"),
        ("", Faults(), "names no file: give its path"),
    ],
)
def test_a_url_that_cannot_be_had_is_one_line(tmp_path, path, faults, message):
    with Web("", FILES, faults=faults) as hub, pytest.raises(NodeError, match=message) as error:
        from_web(tmp_path, hub, path)
    assert "\n" not in str(error.value)


# ---------------------------------------------------------------------------------- mirrors
def test_mirrors_are_tried_in_order_and_share_what_is_there(tmp_path):
    with FaultyHub("org/set", FILES) as first, Hub("org/set", FILES) as second:
        down = Then([600_000], lambda: first.faults.status.update({"data/b.parquet": [503] * 99}))
        first.faults.cut["data/b.parquet"] = down
        endpoints = {"huggingface": ["http://127.0.0.1:9", first.endpoint, second.endpoint]}
        outcome, found = fetch(tmp_path, endpoints, hub="huggingface", dataset="org/set")
        assert asked(second, "b.parquet") == ["bytes=600000-"]
        assert asked(second, "a.jsonl") == []
    assert found == FILES
    assert outcome.extra["endpoint"] == second.endpoint


def test_a_mirror_with_a_damaged_copy_is_left(tmp_path):
    with (
        FaultyHub("org/set", FILES, faults=Faults(wrong={"README.md": 9})) as bad,
        Hub("org/set", FILES) as good,
    ):
        endpoints = {"huggingface": [bad.endpoint, good.endpoint]}
        outcome, found = fetch(tmp_path, endpoints, hub="huggingface", dataset="org/set")
        assert asked(good, "README.md") == [None]
        assert len(asked(bad, "README.md")) == 3
    assert found == FILES
    assert outcome.extra["endpoint"] == good.endpoint


def test_all_mirrors_failing_names_each(tmp_path):
    with Hub("org/other", FILES) as hub:
        endpoints = {"huggingface": ["http://127.0.0.1:9", hub.endpoint]}
        with pytest.raises(
            NodeError, match=r"cannot list .*127\.0\.0\.1:9.*; there is no data set org/set on"
        ):
            fetch(tmp_path, endpoints, hub="huggingface", dataset="org/set")


def away(hub, storage):
    """Make the hub redirect parquet files to another host, as hubs do with large ones."""
    handler = hub._server.RequestHandlerClass
    plain = handler.send_file

    def redirect(self, path):
        if path.endswith(".parquet"):
            host = storage.endpoint.replace("127.0.0.1", "localhost")
            self.send_head(302, {"Location": f"{host}/{path}", "Content-Length": "0"})
        else:
            plain(self, path)

    handler.send_file = redirect


def test_a_storage_host_that_refuses_its_own_link_is_asked_again(tmp_path):
    """The links to another host are signed and run out: that is no missing access."""
    faults = Faults(status={"data/b.parquet": [403]})
    with Web("", FILES, faults=faults) as storage, Hub("org/set", FILES) as hub:
        away(hub, storage)
        _, found = fetch(tmp_path, {"huggingface": [hub.endpoint]}, hub="huggingface", dataset="org/set")
    assert found == FILES


@pytest.mark.parametrize("kind", ["huggingface", "modelscope"])
def test_a_token_is_not_carried_to_another_host(tmp_path, monkeypatch, kind):
    monkeypatch.setenv("HF_TOKEN", "secret")
    monkeypatch.setenv("MODELSCOPE_API_TOKEN", "secret")
    server = {"huggingface": Hub, "modelscope": ModelScope}[kind]
    with Web("", FILES) as storage, server("org/set", FILES, token="secret") as hub:
        away(hub, storage)
        _, found = fetch(tmp_path, {kind: [hub.endpoint]}, hub=kind, dataset="org/set")
        carried = [value for heads in storage.heads for value in heads.values()]
    assert found == FILES
    assert carried
    assert not any("secret" in value for value in carried)


# --------------------------------------------------------------------------- what was here
def test_a_file_added_to_a_source_fetches_that_file_alone(tmp_path):
    with Hub("org/set", FILES) as hub:
        endpoints = {"huggingface": [hub.endpoint]}
        fetch(tmp_path, endpoints, hub="huggingface", dataset="org/set", files=["data/*"])
        hub.requests.clear()
        outcome, found = fetch(tmp_path, endpoints, number=2, hub="huggingface", dataset="org/set")
        assert found == FILES
        assert outcome.extra["reused_files"] == 2
        assert [r[1].rpartition("/")[2] for r in hub.requests if "resolve" in r[1]] == ["README.md"]
    first, second = (tmp_path / f"artifacts/download/s-{n:016d}.partial/data/b.parquet" for n in (1, 2))
    assert os.path.samefile(first, second)


def test_an_earlier_file_that_was_altered_is_not_reused(tmp_path):
    with Hub("org/set", FILES) as hub:
        endpoints = {"huggingface": [hub.endpoint]}
        fetch(tmp_path, endpoints, hub="huggingface", dataset="org/set")
        altered = tmp_path / "artifacts/download/s-0000000000000001.partial/data/b.parquet"
        altered.write_bytes(b"x" * len(BIG))
        outcome, found = fetch(tmp_path, endpoints, number=2, hub="huggingface", dataset="org/set")
    assert found == FILES
    assert outcome.extra["reused_files"] == 2


def test_downloads_side_by_side_do_not_promise_the_same_space(tmp_path, monkeypatch):
    usage = type("usage", (), {"free": 10 << 30})
    monkeypatch.setattr("tasks.download.disk.shutil.disk_usage", lambda folder: usage)
    with Reservation(tmp_path, 6 << 30) as first:
        with pytest.raises(NodeError, match="6.4 GB promised to other downloads"):
            Reservation(tmp_path, 6 << 30)
        first.used(5 << 30)
        usage.free -= 5 << 30
        with Reservation(tmp_path, 2 << 30):
            pass
    with Reservation(tmp_path, 4 << 30):
        pass


def test_notes_of_first_use_that_are_damaged_are_not_ignored(tmp_path):
    notes = tmp_path / "artifacts/.cache/first-use-s.json"
    with Web("", FILES) as hub:
        from_web(tmp_path, hub, "README.md")
        assert json.loads(notes.read_text())
        notes.write_text("{")
        with pytest.raises(NodeError, match="is damaged"):
            from_web(tmp_path, hub, "README.md", number=2)


def test_a_benchmark_is_unpacked_and_made_again_after_a_kill(tmp_path):
    packed = zipped({"dev/x.csv": b"a\n", "val/x.csv": b"b\n", "test/x.csv": b"c\n"})
    with ModelScope("org/set", {"exam.zip": packed, "README.md": b"r"}) as hub:
        wanted = {"files": ["exam.zip"], "unpack": ["dev/*.csv", "val/*.csv"]}
        outcome, found = on_modelscope(tmp_path, hub, **wanted)
        assert found == {"dev/x.csv": b"a\n", "val/x.csv": b"b\n"}
        assert outcome.counts == {"files": 2, "bytes": 4}
        assert on_modelscope(tmp_path, hub, **wanted)[1] == found


# ------------------------------------------------------------- the hubs' own environment variables
DEFAULT = ["https://huggingface.co"]


@pytest.mark.parametrize(
    ("configured", "given", "asked", "told"),
    [
        (DEFAULT, "", DEFAULT, ""),
        (DEFAULT, " ", DEFAULT, ""),
        (DEFAULT, "https://huggingface.co/", DEFAULT, ""),
        (
            DEFAULT,
            "https://hf-mirror.com/",
            ["https://hf-mirror.com"],
            "asked is https://hf-mirror.com, by HF_X",
        ),
        (DEFAULT, "hf-mirror.com", ["https://hf-mirror.com"], "asked is https://hf-mirror.com, by HF_X"),
        (
            ["https://a"],
            "https://b",
            ["https://a"],
            "HF_X=https://b is not used: runtime.endpoints names others",
        ),
        (["https://a", "https://b"], "https://b", ["https://a", "https://b"], ""),
    ],
)
def test_the_environments_endpoint(monkeypatch, configured, given, asked, told):
    from tasks.download.listing import endpoints

    monkeypatch.setenv("HF_X", given)
    said = []
    assert endpoints(configured, DEFAULT, "HF_X", said.append) == asked
    assert said == ([told] if told else [])


def test_an_endpoint_that_is_no_address(monkeypatch):
    from tasks.download.listing import endpoints

    monkeypatch.setenv("HF_X", "ftp://x")
    with pytest.raises(NodeError, match="HF_X=ftp://x is no address"):
        endpoints(DEFAULT, DEFAULT, "HF_X", print)


def test_no_token_where_the_environment_forbids_it(monkeypatch):
    from huggingface_hub import constants

    from tasks.download import huggingface

    monkeypatch.setattr("huggingface_hub.get_token", lambda: "hf_x")
    monkeypatch.setattr(constants, "HF_HUB_DISABLE_IMPLICIT_TOKEN", False)
    assert huggingface.token() == "hf_x"
    monkeypatch.setattr(constants, "HF_HUB_DISABLE_IMPLICIT_TOKEN", True)
    assert huggingface.token() is None
