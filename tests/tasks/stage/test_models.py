"""Trained models in MLflow's registry: versions by digest, aliases, the rule of promotion."""

from __future__ import annotations

import uuid

import pytest

from tasks.stage import models
from tasks.stage.models import CHAMPION, NEWEST
from tasks.stage.node import Artifact
from tasks.stage.recording import Recording
from tasks.stage.store import Store
from tasks.stage.tracking import Tracker


@pytest.fixture(scope="module")
def tracker(mlflow_uri):
    return Tracker(mlflow_uri)


def artifact(node, digest, run_id="", metrics=None, inputs=None, extra=None, path=None, exports=True):
    files = [{"path": "export/config.json", "size": 2, "sha256": digest}] if exports else []
    manifest = {"files": files, "metrics": metrics or {}, "inputs": inputs or {}, "extra": extra or {}}
    return Artifact(node, path, digest, f"f{digest}", manifest, run_id)


@pytest.fixture
def run(tracker, tmp_path, monkeypatch):
    """A run with a base model and, unless it has no scores, its evaluation; the registered version of the base."""
    monkeypatch.setenv(
        "MLFLOW_TRACKING_URI", tracker.uri
    )  # SQLite's own store asks for it; a server knows its own
    profile = f"p{uuid.uuid4().hex[:8]}"
    run_id = tracker.start("node", "pretrain", None, {})

    def make(digest, scores=None):
        shards = {"shards": {"node": "tokenize:manifest", "digest": "d" * 8, "fingerprint": "f"}}
        done = {"pretrain": artifact("pretrain", digest, run_id, inputs=shards, path=tmp_path)}
        if scores:
            metrics = {f"accuracy/{row}/cloze": value for row, value in scores.items()}
            metrics |= {"accuracy/exam/control.cloze": 0.99, "unparsed/exam/cloze": 0.0}
            done["evaluate:base"] = artifact(
                "evaluate:base", "e", metrics=metrics, path=tmp_path, exports=False
            )
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


def test_every_kind_of_model_is_registered_and_nothing_else(tmp_path):
    nodes = ["pretrain", "sft:exp1", "sft:select", "dpo:train", "dpo:reference", "rl:train", "rl:prompts"]
    done = {node: artifact(node, "a", path=tmp_path, exports=node != "sft:select") for node in nodes}
    names = [model.name for model in models.of_run("demo", done)]
    assert names == ["steel-demo-base", "steel-demo-sft-exp1", "steel-demo-dpo", "steel-demo-rl"]
