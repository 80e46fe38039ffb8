"""A pretrain node that goes on from another one's artifact, through the runner, MLflow and the real engine."""

import json
import logging
import uuid

import numpy as np
import pytest

from model.training.shards import Row, write_shard
from tasks.settings.config import SteelRun
from tasks.settings.errors import NodeError
from tasks.stage.node import Context, Node, Outcome
from tasks.stage.runner import Runner
from tasks.stage.store import Store
from tasks.stage.tracking import Tracker
from tasks.tokenize.encode import tokenizer_digest
from tasks.training import pretrain
from tests.support import engine_helpers
from tests.support.tiny import byte_tokenizer
from tests.support.walk import walk

pytestmark = pytest.mark.usefixtures("pool_here")
LOG = logging.getLogger("test")
BLOCK = 32
MODEL = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 4}


def tokenizer(ctx: Context) -> Outcome:
    byte_tokenizer().save_pretrained(ctx.out)
    return Outcome()


def tokenize(ctx: Context) -> Outcome:
    """Stands for the data stages: random rows, as many as asked for."""
    random = np.random.default_rng(ctx.config["seed"])
    rows = [
        Row(
            random.integers(0, 250, BLOCK + 1).astype(np.uint32),
            np.array([0], np.int32),
            [random.bytes(16)],
            BLOCK + 1,
        )
        for _ in range(ctx.config["rows"])
    ]
    write_shard(ctx.out / "train-00000.arrow", rows, BLOCK)
    return Outcome()


def manifest(ctx: Context) -> Outcome:
    from model.training.shards import ShardFile, file_digest

    sources = {}
    for name, artifact in ctx.inputs.items():
        if name != "tokenizer":
            path = artifact.path / "train-00000.arrow"
            shard = {"file": path.name, "rows": ShardFile(path).rows, "digest": file_digest(path)}
            sources[name] = {"weight": 1, "train": [{**shard, "repeats": 1, "extra_rows": 0}], "val": []}
    digest = tokenizer_digest(ctx.inputs["tokenizer"].path)
    found = {"vocab_size": 259, "block_size": BLOCK, "tokenizer_digest": digest, "sources": sources}
    (ctx.out / "shards.json").write_text(json.dumps(found))
    return Outcome()


@pytest.fixture
def house(tmp_path, mlflow_uri):
    """`train(sources, **pretrain settings)` runs the nodes as the flow does; returns the runner."""
    tracker = Tracker(mlflow_uri)
    tag = uuid.uuid4().hex[:8]  # keeps this test's fingerprints apart in a shared database

    def train(sources: dict[str, int], seed: int = 1, **settings) -> Runner:
        run = SteelRun.model_validate(
            {
                "profile": f"test-{tag}",
                "sources": {name: {"dataset": name, "reader": "skypile"} for name in sources},
                "model": MODEL,
                "pretrain": {"batch_size": 4, "log_every": 1, "save_every": 4, **settings},
                "runtime": {"artifacts": tmp_path, "device": "cpu", "nproc": 1},
            }
        )
        made = [Node("tokenize:tokenizer", tokenizer, {"tag": tag})]
        made += [
            Node(f"tokenize:{name}", tokenize, {"rows": rows, "seed": len(name) + seed})
            for name, rows in sources.items()
        ]
        inputs = {name: f"tokenize:{name}" for name in (*sources, "tokenizer")}
        made += [Node("tokenize:manifest", manifest, {"tag": tag}, inputs=inputs), *pretrain.nodes(run)]
        flow = uuid.uuid4().hex
        runner = Runner(run, {n.name: n for n in made}, Store(tmp_path), tracker, flow)
        walk(runner)
        return runner

    train.tracker = tracker
    return train


@pytest.mark.slow
def test_new_data_joins_a_finished_training(house):
    parent = house({"old": 30}, steps=8).done["pretrain"]
    assert sorted(p.name for p in (parent.path / "checkpoints").iterdir()) == ["step-000004", "step-000008"]
    on = {"run": parent.fingerprint[:8], "step": 4}
    child = house({"old": 30, "further": 20}, steps=12, continue_from=on)
    made = child.done["pretrain"]
    assert made.fingerprint != parent.fingerprint
    assert made.manifest["identity"]["external"]["parent"] == parent.fingerprint[:16]
    state = json.loads((made.path / "checkpoints/step-000012/state.json").read_text())
    assert [(e["position"], e["blocks"]) for e in state["loader"]["history"]] == [(0, 30), (16, 50)]
    assert [line["step"] for line in engine_helpers.steps(made.path)] == list(range(5, 13))
    tags = house.tracker.client.get_run(made.run_id).data.tags
    assert (tags["steel.continues_run"], tags["steel.continues_from_step"]) == (parent.run_id, "4")
    assert house.tracker.client.get_run(parent.run_id).data.tags["steel.continued_by"] == made.run_id

    # the same again is there already, however the parent is named
    again = house({"old": 30, "further": 20}, steps=12, continue_from={**on, "run": str(parent.path)})
    assert again.results["pretrain"].state == "Cached"
    # and the child can be continued in turn
    longer = house({"old": 30, "further": 20}, steps=14, continue_from={"run": made.fingerprint[:8]})
    assert longer.done["pretrain"].manifest["identity"]["external"]["step"] == "12"
    # what does not fit is refused, and nothing is trained instead
    with pytest.raises(NodeError, match="shards of old are not those"):
        house({"old": 31, "further": 20}, steps=12, continue_from=on)
    with pytest.raises(NodeError, match="steps count from its start: 4 would train nothing"):
        house({"old": 30}, steps=4, continue_from=on)
