"""Trained models in MLflow's registry: versions by digest, aliases, the rule of promotion."""

from __future__ import annotations

import uuid

import pytest

from tasks import dag
from tasks.evaluate.results import HELD_OUT
from tasks.settings import profiles
from tasks.stage import models
from tasks.stage.models import CHAMPION, NEWEST
from tasks.stage.node import Artifact
from tasks.stage.recording import Recording
from tasks.stage.store import Store
from tasks.stage.tracking import Tracker


@pytest.fixture(scope="module")
def tracker(mlflow_uri):
    return Tracker(mlflow_uri)


def artifact(node, digest, run_id="", inputs=None, extra=None, path=None, exports=True, **more):
    files = [{"path": "export/config.json", "size": 2, "sha256": digest}] if exports else []
    manifest = {"files": files, "metrics": {}, "inputs": inputs or {}, "extra": extra or {}, **more}
    return Artifact(node, path, digest, f"f{digest}", manifest, run_id)


def evaluation(scores, path, *, questions=100, exam="x" * 8, limit=None, protocol="p" * 8, controls=True):
    """The artifact of an evaluation with these accuracies by cloze, and a control row of each."""
    metrics = {f"accuracy/{row}/cloze": value for row, value in scores.items()}
    metrics |= {"accuracy/exam/control.cloze": 0.99, "unparsed/exam/cloze": 0.0}
    recipe = {
        "model": "base",
        "form": "plain",
        "benchmarks": {"exam": "val"},
        "protocols": {"cloze": protocol},
        "max_questions": limit,
        "controls": controls,
    }
    inputs = {role: {"node": role, "digest": exam} for role in ("exam", "model")}
    return artifact(
        "evaluate:base", "e", inputs=inputs, path=path, exports=False,
        metrics=metrics, counts={"questions": questions}, identity={"config": recipe},
    )  # fmt: skip


@pytest.fixture
def run(tracker, tmp_path, monkeypatch):
    """A run with a base model and, unless it has no scores, its evaluation; the registered version of the base."""
    monkeypatch.setenv(
        "MLFLOW_TRACKING_URI", tracker.uri
    )  # SQLite's own store asks for it; a server knows its own
    profile = f"p{uuid.uuid4().hex[:8]}"
    run_id = tracker.start("node", "pretrain", None, {})

    def make(digest, scores=None, **asked):
        shards = {"shards": {"node": "tokenize:manifest", "digest": "d" * 8, "fingerprint": "f"}}
        done = {"pretrain": artifact("pretrain", digest, run_id, inputs=shards, path=tmp_path)}
        if scores:
            done["evaluate:base"] = evaluation(scores, tmp_path, **asked)
        (model,) = models.of_run(profile, done)
        return tracker.register(model)

    make.name, make.run_id = f"steel-{profile}-base", run_id
    return make


def aliases(tracker, name):
    return {alias: str(v) for alias, v in tracker.client.get_registered_model(name).aliases.items()}


def test_a_version_is_linked_to_its_run_its_data_and_its_export(run, tracker, tmp_path):
    version = tracker.client.get_model_version(run.name, run("a1", {"exam": 0.5}))
    assert version.run_id == run.run_id
    assert version.status == "READY"
    assert version.description == (tmp_path / "export").as_uri()
    assert version.tags["steel.digest"] == "a1"
    assert version.tags["steel.data"] == "tokenize:manifest dddddddd"
    assert len(version.tags["steel.export_digest"]) == 64
    assert float(version.tags["accuracy/exam/cloze"]) == 0.5
    assert not any("control" in key for key in version.tags)
    assert run.run_id in {o.source_run_id for o in tracker.client.search_logged_models([tracker.experiment])}


def test_the_pipelines_run_shows_its_data_sets_and_models(run, tracker, tmp_path):
    run("a1")
    recording = Recording(tracker, Store(tmp_path), run.name.split("-")[1], "flow")
    pipeline = recording.begin({})
    done = {
        "pretrain": artifact("pretrain", "a1", run.run_id, path=tmp_path),
        "download:zhihu": artifact("download:zhihu", "z" * 40, path=tmp_path, exports=False),
        "convert:zhihu": artifact("convert:zhihu", "c" * 40, path=tmp_path, exports=False),
    }
    recording.end("FINISHED", {}, 2, done)
    shown = tracker.client.get_run(pipeline)
    assert [(i.dataset.name, i.dataset.digest) for i in shown.inputs.dataset_inputs] == [
        ("download:zhihu", "z" * 32)
    ]
    source = tracker.client.get_model_version(run.name, "1").source
    assert [f"models:/{output.model_id}" for output in shown.outputs.model_outputs] == [source]


def test_the_same_model_is_one_version_however_often_it_is_reused(run, tracker):
    assert run("a1") == run("a1", {"exam": 0.5}) == "1"
    assert run("b2") == "2"
    assert run("a1") == "1"
    assert aliases(tracker, run.name) == {CHAMPION: "1", NEWEST: "1"}


def test_only_a_higher_score_on_the_same_questions_promotes(run, tracker):
    run("a1")
    assert aliases(tracker, run.name) == {NEWEST: "1"}, "no scores, no champion"
    for digest, scores, champion in [
        ("b2", {"exam": 0.50}, "2"),
        ("c3", {"exam": 0.50}, "2"),  # no better
        ("d4", {"exam": 0.51}, "4"),
        ("e5", {"exam": 0.90, "other": 0.90}, "4"),  # asked something else
        ("f6", {"exam": 0.40}, "4"),
    ]:
        version = run(digest, scores)
        assert aliases(tracker, run.name) == {CHAMPION: champion, NEWEST: version}, digest


@pytest.mark.parametrize(
    "other",
    [{"exam": "y" * 8}, {"limit": 5}, {"questions": 99}, {"protocol": "q" * 8}],
    ids=["another exam", "fewer of a subject", "fewer in all", "another version of the protocol"],
)
def test_a_version_that_was_asked_something_else_under_the_same_name_is_not_promoted(run, tracker, other):
    run("a1", {"exam": 0.5})
    run("b2", {"exam": 0.9}, **other)
    assert aliases(tracker, run.name) == {CHAMPION: "1", NEWEST: "2"}


def test_controls_do_not_count_for_the_rule(run, tracker):
    run("a1", {"exam": 0.5, HELD_OUT: 0.1})
    run("b2", {"exam": 0.4, HELD_OUT: 0.9}, controls=False)
    assert aliases(tracker, run.name) == {CHAMPION: "1", NEWEST: "2"}
    run("c3", {"exam": 0.6, HELD_OUT: 0.0}, controls=False)
    assert aliases(tracker, run.name)[CHAMPION] == "3"


def test_a_new_evaluation_takes_the_place_of_an_earlier_one(run, tracker):
    run("a1", {"exam": 0.5, "other": 0.5})
    run("a1", {"exam": 0.4}, limit=5)
    tags = tracker.client.get_model_version(run.name, "1").tags
    assert {key: tags[key] for key in tags if key.startswith("accuracy/")} == {
        "accuracy/exam/cloze": "0.400000"
    }
    run("b2", {"exam": 0.45}, limit=5)
    assert aliases(tracker, run.name)[CHAMPION] == "2"
    run("b2")
    assert tracker.client.get_model_version(run.name, "2").tags["accuracy/exam/cloze"] == "0.450000"


@pytest.mark.parametrize("profile", ["smoke", "demo"])
def test_every_kind_of_model_names_the_data_that_it_was_trained_on(profile, tmp_path):
    graph = dag.build(profiles.load(profile))
    trainings = [node for node in graph.values() if node.trains and node.name != "dpo:reference"]
    done = {}
    for node in trainings:
        inputs = {role: {"node": ref, "digest": "d" * 8} for role, ref in node.inputs.items()}
        extra = {"mixture_digest": "m" * 8} if node.stage == "sft" else {}
        done[node.name] = artifact(node.name, "a", inputs=inputs, extra=extra, path=tmp_path)
    data = {model.tags["steel.node"]: model.tags["steel.data"] for model in models.of_run(profile, done)}
    assert data == {
        "pretrain": "tokenize:manifest dddddddd",
        **{name: "mixture mmmmmmmm" for name in done if name.startswith("sft:")},
        "dpo:train": "dpo:reference dddddddd",
        "rl:train": "rl:prompts dddddddd",
    }


def test_every_kind_of_model_is_registered_and_nothing_else(tmp_path):
    nodes = ["pretrain", "sft:exp1", "sft:select", "dpo:train", "dpo:reference", "rl:train", "rl:prompts"]
    done = {node: artifact(node, "a", path=tmp_path, exports=node != "sft:select") for node in nodes}
    names = [model.name for model in models.of_run("demo", done)]
    assert names == ["steel-demo-base", "steel-demo-sft-exp1", "steel-demo-dpo", "steel-demo-rl"]
