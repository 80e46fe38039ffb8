"""The nodes around the engine: what they hand it, what they leave behind, and how a variant is chosen."""

import logging
import math
import shutil
from collections import Counter
from dataclasses import replace
from pathlib import Path

import numpy as np
import orjson
import pyarrow as pa
import pytest

from model.training.config import TrainConfig, from_dict, to_dict
from model.training.machine import Machine
from tasks.settings.config import Train
from tasks.settings.errors import NodeError
from tasks.tokenize.encode import tokenizer_digest
from tasks.training import dpo, engine, pretrain, sft, trials
from tasks.training.select import choose
from tests.support.sets import dialogue, preference, write_set
from tests.support.tiny import artifact, context, steel
from tests.support.trained import no_drops, node_of, run_of, shard

pytestmark = pytest.mark.usefixtures("pool_here")


class Engine:
    """Stands for the ranks: reads the config as the engine does, and leaves what it would."""

    def __init__(self, export):
        self.export, self.seen = export, []

    def __call__(self, ctx, config, *, nproc, machine):
        assert isinstance(config, TrainConfig)
        assert from_dict(orjson.loads(orjson.dumps(to_dict(config)))) == config
        self.seen.append((config, nproc))
        if config.objective == "logprobs":
            (ctx.out / "logprobs.arrow").write_bytes(b"")
            return
        lines = [
            {"step": 1, "loss": 3.0, "tokens": 100, "tokens_per_s": 50.0},
            {"step": 2, "val_loss": 2.5},
        ]
        (ctx.out / "metrics.jsonl").write_bytes(b"".join(orjson.dumps(x) + b"\n" for x in lines))
        (ctx.out / "checkpoints").mkdir()
        shutil.copytree(self.export, ctx.out / "export")


@pytest.fixture
def trained(tmp_path):
    """An artifact with an export, as pretrain and every variant leave it."""
    folder = tmp_path / "base"
    steel().save_pretrained(folder / "export")
    return folder


@pytest.fixture
def fake(monkeypatch, trained):
    stand_in = Engine(trained / "export")
    monkeypatch.setattr("tasks.training.launch.launch", stand_in)
    monkeypatch.setattr("tasks.training.launch.look", lambda ctx, precision: Machine("cpu", 0, "fp32"))
    return stand_in


# ---------------------------------------------------------------------------------- declared
def test_the_declared_graph():
    run = run_of()
    found = {n.name: n for room in (pretrain, sft, dpo) for n in room.nodes(run)}
    assert list(found) == ["pretrain", "sft:exp1", "sft:exp2", "sft:select", "dpo:reference", "dpo:train"]
    assert dict(found["pretrain"].inputs) == {
        "shards": "tokenize:manifest",
        "tokenizer": "tokenize:tokenizer",
        "zhihu": "tokenize:zhihu",
    }
    assert found["sft:exp2"].inputs["code.drops"] == "clean:decontaminate#code"
    assert "code" not in found["sft:exp1"].inputs
    assert found["dpo:train"].inputs["reference"] == "dpo:reference"
    assert found["dpo:reference"].inputs["exp2"] == "sft:exp2"
    for name in ("pretrain", "sft:exp1", "dpo:train"):
        assert found[name].resumable
        assert found[name].exclusive


def test_side_by_side_trainings_do_not_want_the_machine_for_themselves():
    run = run_of(runtime={"parallel_trainings": 2})
    assert not node_of(sft, "sft:exp1", run).exclusive
    assert node_of(pretrain, "pretrain", run).exclusive


def test_a_variant_is_as_long_as_its_mixture_has_records():
    run = run_of(
        sft={
            "variants": {
                "a": {"mixture": {"qa": 1.0}},
                "b": {"mixture": {"qa": 0.5, "code": 1.0}},
                "c": {"counts": {"qa": 30, "code": 5}},
            }
        }
    )
    inputs = {
        name: replace(artifact(f"convert:{name}", Path()), manifest={"counts": {"kept": kept}})
        for name, kept in (("qa", 100), ("code", 70))
    }
    assert [node_of(sft, f"sft:{name}", run).length(inputs) for name in "abc"] == [100, 120, 35]


def test_what_a_variant_does_not_use_is_no_part_of_its_fingerprint():
    variants = {
        "a": {"mixture": {"qa": 1.0}},
        "b": {"counts": {"qa": 5}},
        "c": {"mixture": {"qa": 1.0}, "zh_share": 0.5},
    }
    run = run_of(sft={"variants": variants})
    plain, number, share = (node_of(sft, f"sft:{name}", run).config for name in "abc")
    assert set(type(plain).model_fields) == {
        *("mixture", "max_tokens", "packed_tokens", "loss_on", "too_long", "train"),
    }  # fmt: skip
    assert number.counts == {"qa": 5}
    assert share.zh_share == 0.5


def test_a_big_profile_keeps_its_trainings_when_code_changes():
    run = run_of(keep_trained_on_code_change=True)
    for room in (pretrain, sft, dpo):
        for node in room.nodes(run):
            assert node.on_code_change == ("rerun" if node.name == "sft:select" else "keep")


def test_unknown_sets_are_one_clear_line():
    with pytest.raises(NodeError, match="variant exp9: nothing"):
        sft.nodes(run_of(sft={"variants": {"exp9": {"mixture": {"nothing": 1.0}}}}))
    with pytest.raises(NodeError, match="dpo.mixture: qa"):
        dpo.nodes(run_of(dpo={"mixture": {"qa": 1.0}}))


# ---------------------------------------------------------------------------------- pretrain
@pytest.fixture
def packed(tmp_path, tokenizer):
    train = shard(tmp_path / "zhihu", "train-00000.arrow", [([0, 0, 1, 1], [0, 2]), ([0, 0, 0, 2], [0])])
    val = shard(tmp_path / "zhihu", "val-00000.arrow", [([0, 1, 0, 2], [0, 2])], valid=3)
    train["repeats"] = 2
    manifest = {
        "vocab_size": 100,
        "tokenizer_digest": tokenizer_digest(tokenizer),
        "sources": {"zhihu": {"weight": 2, "train": [train], "val": [val]}},
    }
    (tmp_path / "manifest").mkdir()
    (tmp_path / "manifest" / "shards.json").write_bytes(orjson.dumps(manifest))
    return {
        "shards": artifact("tokenize:manifest", tmp_path / "manifest"),
        "tokenizer": artifact("tokenize:tokenizer", tokenizer),
        "zhihu": artifact("tokenize:zhihu", tmp_path / "zhihu"),
    }


def test_pretrain_hands_over_the_shards_and_compares_with_the_unigram_model(tmp_path, packed, fake):
    node = node_of(pretrain, "pretrain", run_of(pretrain={"epochs": 3, "batch_size": 2}))
    (tmp_path / "out").mkdir()
    outcome = node.body(context(tmp_path / "out", node.config, packed))
    [(config, nproc)] = fake.seen
    assert nproc == 2
    assert config.model["vocab_size"] == 128
    assert config.steps == 6  # 2 rows, each seen twice an epoch, 3 epochs, 2 a step
    [file] = config.data.files
    assert (file.repeats, file.source, file.rows) == (2, "zhihu", 2)
    # targets: position 1 only (0 and 2 begin documents, 3 is padding); its token 1 was seen 2·2 times
    assert outcome.metrics["unigram_loss"] == pytest.approx(-math.log((4 + 1) / (16 + 128)))
    assert outcome.headline == f"val loss 2.500 (unigram {outcome.metrics['unigram_loss']:.3f})"
    assert outcome.extra["ranks"] == 2
    assert outcome.extra["precision"] in ("bf16", "fp32")
    assert (tmp_path / "out" / "checkpoints").exists()  # another training can continue from them


def test_the_unigram_model_counts_what_an_epoch_takes(tmp_path):
    rng = np.random.default_rng(0)
    rows = [(rng.integers(0, 50, 9).tolist(), [0, 4]) for _ in range(1030)]  # two record batches
    train = {**shard(tmp_path, "t.arrow", rows, valid=8), "path": str(tmp_path / "t.arrow")}
    val = {**shard(tmp_path, "v.arrow", rows[:7]), "path": str(tmp_path / "v.arrow")}
    train |= {"repeats": 2, "extra_rows": 300}
    seen = [2] * 1030
    for j in range(300):
        seen[j * 1030 // 300] += 1
    counts = Counter({token: 1 for token in range(64)})
    for times, (tokens, _) in zip(seen, rows, strict=True):
        counts.update({token: times * n for token, n in Counter(tokens[:8]).items()})
    targets = [tokens[i] for tokens, _ in rows[:7] for i in range(9) if i not in (0, 4)]
    due = -sum(math.log(counts[token] / counts.total()) for token in targets) / len(targets)
    assert pretrain.unigram_loss([train], [val], 64) == pytest.approx(due)


def test_kept_shards_of_another_tokenizer_are_refused(tmp_path, packed, fake, tokenizer, monkeypatch):
    digest = tokenizer_digest(tokenizer)
    parent = tmp_path / "artifacts" / "pretrain" / f"pretrain-{'3f' * 8}"
    at = parent / "checkpoints" / "step-000002"
    at.mkdir(parents=True)
    (at / "state.json").write_text("{}")
    wanted = {"epochs": None, "steps": 4, "continue_from": {"run": "3f", "on_changed": "keep"}}
    runtime = {"device": "cpu", "artifacts": tmp_path / "artifacts"}
    node = node_of(pretrain, "pretrain", run_of(pretrain=wanted, runtime=runtime))
    (tmp_path / "out").mkdir()

    def started(made_with):
        old = shard(
            tmp_path / "old", "o.arrow", [([0, 1, 2, 3], [0])], metadata={"tokenizer_digest": made_with}
        )
        old = {key: old[key] for key in ("rows", "digest", "repeats", "extra_rows")}
        old |= {"path": str(tmp_path / "old" / "o.arrow"), "source": "zhihu"}
        (parent / "CONFIG.json").write_bytes(orjson.dumps({"data": {"files": [old]}}))
        ctx = context(tmp_path / "out", node.config, packed)
        monkeypatch.setattr(type(ctx.track), "continues", lambda *_: None, raising=False)
        return node.body(ctx)

    with pytest.raises(NodeError, match="trained with another tokenizer") as refused:
        started("0" * 64)
    assert "\n" not in str(refused.value)
    assert not fake.seen
    started(digest)
    assert [f.path for f in fake.seen[0][0].data.files] == [str(tmp_path / "old" / "o.arrow")]


def test_a_footer_that_changed_is_found_before_the_unigram_model_opens_it(tmp_path):
    file = {**shard(tmp_path, "t.arrow", [([0, 1, 2, 3], [0])]), "path": str(tmp_path / "t.arrow")}
    assert pretrain.unigram_loss([file], [file], 64)
    content = bytearray((tmp_path / "t.arrow").read_bytes())
    content[-40] ^= 4
    (tmp_path / "t.arrow").write_bytes(content)
    for train, val in (([file], []), ([], [file])):
        with pytest.raises(NodeError, match=r"t\.arrow has changed since it was written"):
            pretrain.unigram_loss(train, val, 64)


@pytest.mark.parametrize(("asked", "checked"), [("start", True), ("off", False)])
def test_the_unigram_model_checks_shards_as_the_engine_does(
    tmp_path, packed, fake, monkeypatch, asked, checked
):
    told = []
    monkeypatch.setattr(pretrain, "unigram_loss", lambda *arguments: told.append(arguments[3]))
    node = node_of(pretrain, "pretrain", run_of(pretrain={"epochs": 3, "batch_size": 2}))
    (tmp_path / "out").mkdir()
    ctx = context(tmp_path / "out", node.config, packed)
    node.body(replace(ctx, runtime=ctx.runtime.model_copy(update={"verify_shards": asked})))
    assert told == [checked]
    assert fake.seen[0][0].data.verify is checked


def test_shards_of_another_tokenizer_are_not_trained_on(tmp_path, packed, fake):
    path = tmp_path / "manifest" / "shards.json"
    path.write_bytes(orjson.dumps({**orjson.loads(path.read_bytes()), "tokenizer_digest": "0" * 64}))
    node = node_of(pretrain, "pretrain", run_of(pretrain={"epochs": 3, "batch_size": 2}))
    (tmp_path / "out").mkdir()
    with pytest.raises(NodeError, match="made with another tokenizer"):
        node.body(context(tmp_path / "out", node.config, packed))
    assert not fake.seen


def test_a_vocabulary_smaller_than_the_tokenizers_is_refused():
    assert pretrain.rounded_vocab(None, 3075) == 3136
    assert pretrain.rounded_vocab(4096, 3075) == 4096
    with pytest.raises(NodeError, match="3075 tokens"):
        pretrain.rounded_vocab(3000, 3075)


def test_steps_from_epochs():
    assert engine.steps(Train(epochs=1.5, batch_size=4), 10) == 4
    assert engine.steps(Train(steps=7), 10) == 7
    with pytest.raises(NodeError, match="nothing to train on"):
        engine.steps(Train(epochs=1), 0)


# --------------------------------------------------------------------------------------- sft
def sft_inputs(tmp_path, tokenizer, trained):
    found = {
        "base": artifact("pretrain", trained),
        "tokenizer": artifact("tokenize:tokenizer", tokenizer),
    }
    for name in ("qa", "code"):
        found[name] = artifact(f"convert:{name}", write_set(tmp_path, name, 40))
        (tmp_path / "drops" / name).mkdir(parents=True)
        (tmp_path / "drops" / name / "drops.jsonl").touch()
        found[f"{name}.drops"] = artifact("clean:decontaminate", tmp_path / "drops" / name)
    return found


def test_sft_trains_its_mixture_from_the_base(tmp_path, tokenizer, trained, fake):
    node = node_of(sft, "sft:exp2")
    (tmp_path / "out").mkdir()
    given = sft_inputs(tmp_path, tokenizer, trained)
    outcome = node.body(context(tmp_path / "out", node.config, given, runtime=run_of().runtime))
    [(config, nproc)] = fake.seen
    assert (config.objective, nproc) == ("sft", 1)
    assert config.init_from == str(trained / "export")
    assert config.steps == math.ceil(config.data.files[0].rows * 2 / 4)
    assert outcome.extra["mixture"] == {"code": 40, "qa": 20}
    assert len(outcome.extra["mixture_digest"]) == 64
    assert outcome.headline == "val loss 2.500, 60 examples"
    left = {p.name for p in (tmp_path / "out").iterdir()}
    assert left == {"export", "metrics.jsonl", "mixture.jsonl", "accounting.json", "sample.txt"}


def test_variants_have_manifests_of_their_own(tmp_path, tokenizer, trained, fake):
    digests = set()
    inputs = sft_inputs(tmp_path, tokenizer, trained)
    for name in ("exp1", "exp2"):
        node = node_of(sft, f"sft:{name}")
        (tmp_path / name).mkdir()
        digests.add(node.body(context(tmp_path / name, node.config, inputs)).extra["mixture_digest"])
    assert len(digests) == 2


@pytest.mark.parametrize(
    ("share", "level"), [(0.001, logging.WARNING), (0.5, logging.INFO), (0.0, logging.INFO)]
)
def test_the_share_of_chinese_that_was_reached_is_said(
    tmp_path, tokenizer, trained, fake, caplog, share, level
):
    inputs = sft_inputs(tmp_path, tokenizer, trained)
    chinese = [{**dialogue("code", k), "language": "zh"} for k in range(20)]
    write_set(tmp_path, "code", 0, chinese)
    run = run_of(sft={"variants": {"some": {"mixture": {"qa": 1.0, "code": 1.0}, "zh_share": share}}})
    node = node_of(sft, "sft:some", run)
    (tmp_path / "out").mkdir()
    with caplog.at_level(logging.INFO, "test"):
        outcome = node.body(context(tmp_path / "out", node.config, inputs))
    reached = outcome.extra["zh_share"]
    assert abs(reached - share) < 0.01
    assert f"Chinese: {100 * reached:.2f} % of the supervised tokens" in outcome.summary
    (told,) = [r for r in caplog.records if r.getMessage().startswith(f"zh_share {share:g}: ")]
    assert told.levelno == level


def test_the_best_variant_is_chosen_and_a_tie_goes_to_the_first():
    assert choose({"a": 3, "b": 5, "c": 5}) == "b"
    assert choose({"a": 5, "b": 5}) == "a"


def test_select_asks_the_selection_split_only(tmp_path, tokenizer, trained, monkeypatch):
    node = node_of(sft, "sft:select")
    exam = tmp_path / "exam"
    exam.mkdir()
    lines = [
        {
            "id": f"{split}{k}",
            "benchmark": "demo_exam",
            "subject": "s",
            "split": split,
            "language": "en",
            "question": f"q{k}?",
            "choices": ["a", "b", "c", "d"],
            "answer": k % 4,
            "meta": {},
        }
        for split in ("val", "select", "dev")
        for k in range(8)
    ]
    (exam / "questions.jsonl").write_bytes(b"".join(orjson.dumps(x) + b"\n" for x in lines))
    asked = []

    def scripted(task, cost, tell):
        asked.append(task)
        right = 5 if task.export.parent.name == "exp2" else 3
        return [{"protocol": "cloze", "correct": k < right} for k in range(len(task.questions))]

    monkeypatch.setattr("tasks.evaluate.scorer.run", scripted)
    # what was answered is kept under the model's digest
    inputs = {
        name: replace(artifact(f"sft:{name}", tmp_path / name), digest=name) for name in ("exp1", "exp2")
    }
    inputs["tokenizer"] = artifact("tokenize:tokenizer", tokenizer)
    inputs["demo_exam"] = artifact("convert:demo_exam", exam)
    (tmp_path / "out").mkdir()
    outcome = node.body(context(tmp_path / "out", node.config, inputs))
    assert {q.split for task in asked for q in task.questions} == {"select"}
    assert {task.protocols for task in asked} == {("cloze",)}
    assert outcome.extra["variant"] == "exp2"
    choice = orjson.loads((tmp_path / "out" / "choice.json").read_bytes())
    assert choice["variant"] == "exp2"
    assert choice["scores"]["exp2"]["accuracy"] == 5 / 8

    # killed behind the answers: they are there, and nobody is asked again
    asked.clear()
    (tmp_path / "again").mkdir()
    assert node.body(context(tmp_path / "again", node.config, inputs)).extra["variant"] == "exp2"
    assert not asked


# --------------------------------------------------------------------------------------- dpo
def held_out_ids(folder):
    with pa.memory_map(str(folder / "held_out.arrow")) as file:
        return pa.ipc.open_file(file).read_all()["id"].to_pylist()


def test_dpo_starts_from_the_chosen_variant_and_reports_the_effect(
    tmp_path, tokenizer, trained, fake, monkeypatch
):
    (tmp_path / "select").mkdir()
    (tmp_path / "select" / "choice.json").write_bytes(orjson.dumps({"variant": "exp2"}))
    (tmp_path / "drops.jsonl").touch()
    records = [preference("likes", k, "zh") for k in range(40)]
    inputs = {
        "select": artifact("sft:select", tmp_path / "select"),
        "exp1": artifact("sft:exp1", tmp_path / "nowhere"),
        "exp2": artifact("sft:exp2", trained),
        "tokenizer": artifact("tokenize:tokenizer", tokenizer),
        "likes": artifact("convert:likes", write_set(tmp_path, "likes", 0, records)),
        "likes.drops": artifact("clean:decontaminate", no_drops(tmp_path)),
    }
    pairs, out = tmp_path / "pairs", tmp_path / "out"
    pairs.mkdir()
    out.mkdir()
    node = node_of(dpo, "dpo:reference")
    first = node.body(context(pairs, node.config, inputs))
    assert first.counts["train"] == 30
    assert first.counts["held_out"] == 10
    assert first.extra["variant"] == "exp2"

    ids = held_out_ids(pairs)
    scores = [trials.Score(i, -2.0, 1, -1.0, 1) for i in ids]
    monkeypatch.setattr("tasks.training.trials.prefer", lambda export, *_, tell: scores)
    inputs = {"reference": artifact("dpo:reference", pairs), **inputs}
    inputs["reference"].manifest["counts"] = first.counts
    node = node_of(dpo, "dpo:train")
    outcome = node.body(context(out, node.config, inputs))
    scored, trained_with = (config for config, _ in fake.seen)
    assert scored.objective == "logprobs"
    assert scored.precision == trained_with.precision
    assert trained_with.dpo.reference == str(pairs / "logprobs.arrow")
    assert scored.init_from == trained_with.init_from == str(trained / "export")
    assert trained_with.steps == math.ceil(30 / 4)
    effect = orjson.loads((out / "dpo.json").read_bytes())
    assert (effect["accuracy_before"], effect["accuracy_after"], effect["n"]) == (0.0, 0.0, 10)
    assert effect["p_value"] == 1.0
    assert (effect["reward_accuracy"], effect["reward_ties"]) == (0.0, 10), "nothing was trained"
    assert effect["by_set"]["likes"]["n"] == 10
    assert "0.0 % → 0.0 % of 10 pairs" in outcome.headline


def test_pairs_that_the_variant_makes_itself(tmp_path, tokenizer, trained, fake, caplog):
    """Made of its wrong replies, split off with a warning where they are few, and graded by their reward."""
    (tmp_path / "select").mkdir()
    (tmp_path / "select" / "choice.json").write_bytes(orjson.dumps({"variant": "exp2"}))
    inputs = {
        "select": artifact("sft:select", tmp_path / "select"),
        "exp1": artifact("sft:exp1", tmp_path / "nowhere"),
        "exp2": artifact("sft:exp2", trained),
        "tokenizer": artifact("tokenize:tokenizer", tokenizer),
    }
    records = [dialogue("qa", k, f"{k}。") for k in range(30)]
    own, likes = tmp_path / "own", [preference("likes", k, "zh") for k in range(40)]
    own.mkdir()
    for name, some in (("qa", records), ("likes", likes)):
        inputs[name] = artifact(f"convert:{name}", write_set(tmp_path, name, 0, some))
        inputs[f"{name}.drops"] = artifact("clean:decontaminate", no_drops(tmp_path))
    on_policy = {"mixture": {"qa": {}}, "samples": 2, "max_new_tokens": 40, "keep_share": 0.5}
    run = run_of(dpo={"mixture": {"likes": 1.0}, "held_out": 10, "on_policy": on_policy})
    assert [node.version for node in dpo.nodes(run)] == [2, 2, 1]
    assert [node.version for node in dpo.nodes(run_of())] == [1, 1], "as before without such pairs"
    node = node_of(dpo, "dpo:on_policy", run)
    outcome = node.body(context(own, node.config, inputs))
    assert outcome.counts["keep"] == 15
    assert outcome.counts["no_chosen"] == 0
    made = [orjson.loads(x) for x in (own / "pairs.jsonl").read_bytes().splitlines()]
    assert {x["reward"] for x in made} == {"exact"}

    (tmp_path / "pairs").mkdir()
    inputs["on_policy"] = artifact("dpo:on_policy", own)
    node = node_of(dpo, "dpo:reference", run)
    with caplog.at_level("WARNING"):
        counts = node.body(context(tmp_path / "pairs", node.config, inputs)).counts
    assert counts["extra"] == len(made)
    assert len(made) / 4 - 1 < counts["extra_held_out"] < 10
    assert (
        f"of the {len(made)} pairs that the variant made itself {counts['extra_held_out']} are held out"
        in caplog.text
    )
    shown = [orjson.loads(x) for x in (tmp_path / "pairs" / "pairs.jsonl").read_bytes().splitlines()]
    assert {(x["set"] in ("on-policy", "keep"), "answer" in x) for x in shown} == {
        (True, True),
        (False, False),
    }


def test_held_out_pairs_must_leave_some_to_train_on(tmp_path, tokenizer, trained, fake):
    (tmp_path / "select").mkdir()
    (tmp_path / "select" / "choice.json").write_bytes(orjson.dumps({"variant": "exp2"}))
    (tmp_path / "drops.jsonl").touch()
    inputs = {
        "select": artifact("sft:select", tmp_path / "select"),
        "exp2": artifact("sft:exp2", trained),
        "tokenizer": artifact("tokenize:tokenizer", tokenizer),
        "likes": artifact("convert:likes", write_set(tmp_path, "likes", 0, [preference("likes", 1, "zh")])),
        "likes.drops": artifact("clean:decontaminate", no_drops(tmp_path)),
    }
    (tmp_path / "out").mkdir()
    node = node_of(dpo, "dpo:reference")
    with pytest.raises(NodeError, match="no preference pair is left to train on"):
        node.body(context(tmp_path / "out", node.config, inputs))
