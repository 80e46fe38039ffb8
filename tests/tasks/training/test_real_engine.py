"""The trained stages with the real engine under torchrun, on a model of a few thousand parameters."""

import math

import numpy as np
import orjson
import pyarrow as pa
import pytest
import torch

from model import scoring
from model.training.pairs import read_logprobs
from tasks.tokenize.encode import tokenizer_digest
from tasks.training import dpo, pretrain, sft
from tests.support.sets import preference, write_set
from tests.support.tiny import artifact, context
from tests.support.trained import node_of, run_of, shard

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("pool_here")]

TINY = {
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 2,
    "num_experts": 2,
    "initializer_range": 0.15,
}
STILL = {"lr": 1e-30, "warmup_steps": 0, "weight_decay": 0.0}
"""A training that changes nothing."""


def test_from_fresh_weights_to_dpo(tmp_path, tokenizer):
    every = {"log_every": 1, "precision": "fp32"}
    run = run_of(
        model=TINY,
        pretrain={"steps": 2, "batch_size": 2, "optim": STILL, **every},
        sft={
            "variants": {"exp1": {"mixture": {"qa": 1.0}}},
            "max_tokens": 128,
            "packed_tokens": 128,
            "train": {"epochs": 1, "batch_size": 4, "optim": {"lr": 1e-3, "warmup_steps": 0}, **every},
        },
        dpo={
            "mixture": {"likes": 1.0},
            "held_out": 10,
            "train": {"steps": 4, "batch_size": 8, "optim": {"lr": 1e-3, "warmup_steps": 0}, **every},
        },
        runtime={"device": "cpu", "nproc": 1},
    )

    def out(name):
        (tmp_path / name).mkdir()
        return tmp_path / name

    def ran(room, name, inputs):
        node = node_of(room, name, run)
        folder = out(name.replace(":", "-"))
        outcome = node.body(context(folder, node.config, inputs, runtime=run.runtime, name=name))
        made = artifact(name, folder)
        made.manifest.update(counts=outcome.counts, extra=outcome.extra)
        return made, outcome

    # pretrain: a still training ends where it began, and that is what `untrained` gives
    rows = [(np.random.default_rng(k).integers(0, 250, 33).tolist(), [0, 9]) for k in range(8)]
    files = {part: [shard(tmp_path / "zhihu", f"{part}-00000.arrow", rows)] for part in ("train", "val")}
    manifest = {
        "vocab_size": 259,
        "tokenizer_digest": tokenizer_digest(tokenizer),
        "sources": {"zhihu": {"weight": 1, **files}},
    }
    (out("manifest") / "shards.json").write_bytes(orjson.dumps(manifest))
    words = artifact("tokenize:tokenizer", tokenizer)
    base, outcome = ran(
        pretrain,
        "pretrain",
        {
            "shards": artifact("tokenize:manifest", tmp_path / "manifest"),
            "tokenizer": words,
            "zhihu": artifact("tokenize:zhihu", tmp_path / "zhihu"),
        },
    )
    assert outcome.metrics["val_loss"] > outcome.metrics["unigram_loss"] - 1
    trained, fresh = scoring.load(base.path / "export"), scoring.untrained(base.path / "export", seed=7)
    for a, b in zip(trained.parameters(), fresh.parameters(), strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=1e-20)

    # sft: learns the replies
    (out("drops") / "drops.jsonl").touch()
    drops = artifact("clean:decontaminate", tmp_path / "drops")
    variant, outcome = ran(
        sft,
        "sft:exp1",
        {
            "base": base,
            "tokenizer": words,
            "qa": artifact("convert:qa", write_set(tmp_path, "qa", 80)),
            "qa.drops": drops,
        },
    )
    losses = [
        x["loss"]
        for x in map(orjson.loads, (variant.path / "metrics.jsonl").read_bytes().splitlines())
        if "loss" in x
    ]
    assert losses[-1] < losses[0]
    assert "val_loss" in outcome.metrics

    # dpo: the reference is what scoring says, and the first loss is ln 2
    (out("select") / "choice.json").write_bytes(orjson.dumps({"variant": "exp1"}))
    records = [preference("likes", k, "zh", rejected=f"Bad {k * 3}.") for k in range(40)]
    inputs = {"select": artifact("sft:select", tmp_path / "select"), "exp1": variant, "tokenizer": words}
    likes = artifact("convert:likes", write_set(tmp_path, "likes", 0, records))
    reference, _ = ran(dpo, "dpo:reference", {**inputs, "likes": likes, "likes.drops": drops})
    table = read_logprobs(reference.path / "logprobs.arrow").to_pylist()
    engine = {row["id"]: row["chosen"] for row in table}
    with pa.memory_map(str(reference.path / "held_out.arrow")) as file:
        held_out = pa.ipc.open_file(file).read_all().to_pylist()
    start = scoring.load(variant.path / "export")
    ours = scoring.reply_logprobs(start, [p["prompt"] for p in held_out], [p["chosen"] for p in held_out])
    assert [engine[p["id"]] for p in held_out] == pytest.approx([s for s, _ in ours], abs=1e-3)

    tuned, outcome = ran(dpo, "dpo:train", {"reference": reference, **inputs})
    lines = [orjson.loads(x) for x in (tuned.path / "metrics.jsonl").read_bytes().splitlines()]
    assert lines[0]["loss"] == pytest.approx(math.log(2), abs=1e-4)
    assert lines[-1]["val_loss"] < math.log(2)
    assert outcome.metrics["accuracy_after"] >= outcome.metrics["accuracy_before"]
