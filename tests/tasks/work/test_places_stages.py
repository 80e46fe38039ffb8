"""Convert, clean and tokenize on two Ray nodes: the same bytes as on this machine's pool."""

import json
import logging
from pathlib import Path

import pytest

from tasks.clean import node as clean
from tasks.convert import node as convert
from tasks.records import parts
from tasks.settings.config import Runtime, SteelRun
from tasks.stage.node import Artifact, Context
from tasks.stage.store import list_files
from tasks.tokenize import node as tokenize
from tasks.tokenize.tokenizer import train
from tasks.work import pool
from tests.support.ray_cluster import cluster  # noqa: F401
from tests.support.samples import real_text

PARTS = 4


class Silent:
    def metrics(self, *args, **kwargs): ...

    params = file = metrics


CONFIG = SteelRun(
    profile="test",
    sources={"web": {"dataset": "web", "reader": "skypile"}},
    convert={"part_bytes": 1 << 16, "job_bytes": 1 << 16},
    clean={"assets": {"vocab_size": 400, "max_chars": 60_000}},
    tokenize={"block_size": 32, "vocab_size": 400},
)


@pytest.fixture
def raw(tmp_path):
    """Four files of lines, a copy, a page of markup and a broken line among them."""
    folder = tmp_path / "raw"
    folder.mkdir()
    for number in range(PARTS):
        lines = [json.dumps({"text": real_text(1000 * number + i)}) for i in range(250)]
        lines += [
            json.dumps({"text": real_text(5)}),
            json.dumps({"text": f"<p>{real_text(number)}</p>"}),
            "{",
        ]
        (folder / f"{number}.jsonl").write_text("\n".join(lines) + "\n", "utf-8")
    return folder


def stages(folder: Path, raw: Path, runtime: Runtime) -> dict[str, list[dict]]:
    """All files of the source's nodes, with their digests."""
    done = {"download:web": Artifact("download:web", raw, "raw", "", {"files": list_files(raw)})}
    nodes = {node.name: node for room in (convert, clean, tokenize) for node in room.nodes(CONFIG)}
    for name in ("convert:web", "clean:assets", "clean:web", "clean:dedup", "clean:decontaminate"):
        _run(nodes[name], folder, done, runtime)
    train(
        {"web": (str(done["clean:web"].path), str(done["clean:decontaminate"].path / "web/drops.jsonl"))},
        str(_made(folder / "tokenizer")),
        nodes["tokenize:tokenizer"].config,
    )
    done["tokenize:tokenizer"] = Artifact("tokenize:tokenizer", folder / "tokenizer", "t", "", {})
    _run(nodes["tokenize:web"], folder, done, runtime)
    return {name: list_files(artifact.path) for name, artifact in done.items()}


def _run(node, folder, done, runtime):
    inputs = {}
    for role, wanted in node.inputs.items():
        name, _, below = wanted.partition("#")
        inputs[role] = Artifact(wanted, done[name].path / below, "d" + name, "", done[name].manifest)
    out = _made(folder / node.stage / f"{node.unit}.partial")
    log = logging.getLogger("test")
    node.body(Context(node.name, out, node.config, inputs, runtime, 1, log, Silent()))
    done[node.name] = Artifact(node.name, out, "", "", {"files": list_files(out)})


def _made(folder: Path) -> Path:
    folder.mkdir(parents=True)
    return folder


@pytest.mark.slow
def test_the_same_bytes_on_ray_and_on_the_pool(cluster, raw, tmp_path):  # noqa: F811
    try:
        local = stages(tmp_path / "local", raw, Runtime())
    finally:
        pool.shutdown()
    ray = stages(tmp_path / "ray", raw, Runtime(engine="ray", ray_address=cluster))
    assert ray == local
    assert len(parts.parts(tmp_path / "ray" / "clean" / "web.partial")) > 1
    for stage in ("convert", "clean", "tokenize"):
        made = {p.name for p in (tmp_path / "ray" / stage / ".partitions").iterdir()}
        assert made == {p.name for p in (tmp_path / "local" / stage / ".partitions").iterdir()}
        assert len(made) > 1
