"""The ablation's graph, its table, and its page."""

import json
from dataclasses import replace

import pytest

from tasks import dag
from tasks.ablation import seeds
from tasks.ablation.ffn import node as ablation
from tasks.ablation.ffn import table
from tasks.settings import profiles
from tasks.settings.config import Train
from tasks.stage.node import Artifact

SMALL = {"ablation": {"kinds": ["token", "dense", "paper"], "seeds": [1, 2], "steps": 5}}


def test_every_kind_gets_every_seed_on_the_same_shards():
    nodes = dag.build_ablation(profiles.load("demo", SMALL))
    mine = [node for node in nodes.values() if node.stage == ablation.STAGE]
    assert len(mine) == 3 * 2 + 1
    one = nodes["ablation:paper-s2"]
    assert one.config.model.ffn == "paper"
    assert one.config.seed == 2
    assert one.config.train == Train.model_validate({**one.config.train.model_dump(), "steps": 5})
    inputs = {tuple(node.inputs.items()) for node in mine if node.name != ablation.TABLE}
    assert len(inputs) == 1
    assert "pretrain" not in nodes


def test_merge_gets_segments_that_fit_the_documents():
    nodes = dag.build_ablation(profiles.load("demo", {"ablation": {"merge_segment": 5}}))
    segments = {
        n.config.model.ffn: n.config.model.merge_segment
        for n in nodes.values()
        if ":" in n.name and n.name.endswith("-s1")
    }
    assert segments["merge"] == 5
    assert set(segments.values()) == {5, 256}


def test_the_pipeline_itself_has_no_ablation_and_does_not_notice_its_settings():
    from tasks.stage.fingerprint import digest

    plain, studied = (dag.build(profiles.load("demo", over)) for over in ({}, SMALL))
    assert not any(node.stage == ablation.STAGE for node in plain.values())
    for name, node in plain.items():
        assert digest(node.config) == digest(studied[name].config), name


def artifact(tmp_path, name: str, val_loss: float, forced: float, honest: float) -> Artifact:
    folder = tmp_path / name
    folder.mkdir()
    lines = [{"step": s, "loss": val_loss + 1 / s, "val_loss": val_loss + 1 / s} for s in (5, 10)]
    (folder / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    manifest = {
        "metrics": {
            "val_loss": val_loss,
            "loss/forced": forced,
            "loss/honest": honest,
            "tokens": 1000.0,
            "tokens_per_s": 10.0,
        },
        "extra": {
            "parameters": 123_456,
            "flops_per_token": 2.5e6,
            "document_length": 22,
            "targets": 64,
            "largest_difference": abs(honest - forced),
        },
    }
    return Artifact(f"ablation:{name}", folder, "d", "f", manifest)


def rows(tmp_path):
    made = [
        table.row(
            "token", {1: artifact(tmp_path, "t1", 2.0, 2.0, 2.0), 2: artifact(tmp_path, "t2", 2.2, 2.2, 2.2)}
        ),
        table.row(
            "paper", {1: artifact(tmp_path, "p1", 1.8, 1.8, 2.5), 2: artifact(tmp_path, "p2", 1.9, 1.9, 2.8)}
        ),
    ]
    table.compare(made)
    return made


def test_kinds_are_compared_seed_by_seed_by_what_they_can_keep(tmp_path):
    token, paper = rows(tmp_path)
    assert paper["leak"] == pytest.approx(0.8)
    assert paper["vs_token"] == pytest.approx({"mean": 0.55, "low": 0.5, "high": 0.6})
    assert token["val_loss_sd"] == pytest.approx(0.1414, abs=1e-3)
    shown = table.markdown([token, paper])
    assert "| paper | **no** |" in shown
    assert "+0.550 (+0.500 … +0.600)" in shown
    assert "| 0 | – |" in shown  # token against itself, no leak


def test_without_token_there_is_nothing_to_compare_with(tmp_path):
    (paper,) = rows(tmp_path)[1:]
    alone = [dict(paper)]
    table.compare(alone)
    assert alone[0]["vs_token"] is None
    assert "–" in table.markdown(alone)


def test_the_page_holds_every_number_and_the_figure(tmp_path):
    from tasks.ablation.figure import losses
    from tasks.figures import history

    made = rows(tmp_path)
    artifacts = {
        kind: [artifact(tmp_path, f"{kind}{i}", 2.0 + i / 10, 2.0, 2.0) for i in (1, 2)] for kind in "ab"
    }
    curves = {kind: [history.read_curve(a) for a in by_seed] for kind, by_seed in artifacts.items()}
    figure = losses(curves, dashed=["b"])
    assert figure.startswith("<svg")
    page = table.page({"profile": "demo", "seeds": [1, 2], "kinds": made}, figure)
    for text in ("123,456", "2.650", "data:image/svg+xml;base64,", "2 seeds"):
        assert text in page, text


def test_publishing_links_the_newest(tmp_path):
    first, second = tmp_path / "one", tmp_path / "two"
    for n, folder in enumerate((first, second)):
        folder.mkdir()
        for name in (ablation.PAGE, "ffn-ablation.json"):
            (folder / name).write_text(str(n))
    latest = tmp_path / "latest" / "demo" / ablation.FOLDER
    for folder in (first, second):
        ablation.publish(latest, folder)
    assert (latest / ablation.PAGE).read_text() == "1"


def test_body_reads_every_training(tmp_path):
    import logging

    from tasks.stage.node import Context

    inputs = {
        f"{kind}-s{seed}": artifact(tmp_path, f"{kind}-s{seed}", 2.0 + seed / 10, 2.0, 2.1)
        for kind in ("token", "paper")
        for seed in (1, 2)
    }
    out = tmp_path / "out"
    out.mkdir()
    ctx = Context(
        name=ablation.TABLE,
        out=out,
        config=table.Recipe(kinds=["token", "paper"], seeds=[1, 2], profile="demo"),
        inputs=inputs,
        runtime=profiles.load("demo").runtime,
        seed=0,
        log=logging.getLogger("test"),
        track=None,
    )
    outcome = table.body(ctx)
    assert "best causal one: token" in outcome.headline
    numbers = json.loads((out / "ffn-ablation.json").read_text())
    assert [r["kind"] for r in numbers["kinds"]] == ["token", "paper"]
    assert (
        replace(inputs["token-s1"]).manifest["metrics"]["val_loss"]
        in numbers["kinds"][0]["val_loss_by_seed"].values()
    )


def test_a_mean_document_is_at_most_a_row():
    from tasks.ablation.train import document_length

    totals = {"train_tokens": 220, "train_documents": 10}
    assert document_length({"totals": totals, "block_size": 256}) == 22
    assert document_length({"totals": totals, "block_size": 16}) == 16


# ------------------------------------------------------------------------- what every study needs
def test_another_study_needs_no_more_than_its_models():
    """Trainings of any variants and seeds, of which only the names are the study's own."""
    from tasks.ablation import study

    config = profiles.load("demo", {"ablation": {"steps": 7}})
    models = {
        name: config.model.model_copy(update={"num_hidden_layers": n})
        for name, n in (("flat", 1), ("deep", 6))
    }
    made = study.trainings(config, models, study.recipe_of(config, config.ablation), [4, 9])
    assert [node.name for node in made] == [
        f"ablation:{study.unit(variant, seed)}" for seed in (4, 9) for variant in ("flat", "deep")
    ]
    assert [node.config.model.num_hidden_layers for node in made] == [1, 6, 1, 6]
    assert {(node.config.train.steps, node.config.train.epochs) for node in made} == {(7, None)}
    assert (
        study.recipe_of(config, config.ablation.model_copy(update={"steps": None})) == config.pretrain.train
    )


@pytest.mark.parametrize(
    ("values", "against", "expected"),
    [
        ({"1": 2.0, "2": 3.0}, {"1": 1.0, "2": 1.0}, {"mean": 1.5, "low": 1.0, "high": 2.0}),
        ({"1": 5.0, "2": 1.0}, {"2": 1.5, "1": 5.0}, {"mean": -0.25, "low": -0.5, "high": 0.0}),
        ({"7": 1.25}, {"7": 1.0}, {"mean": 0.25, "low": 0.25, "high": 0.25}),
    ],
)
def test_differences_are_taken_seed_by_seed(values, against, expected):
    assert seeds.paired(values, against) == expected


def test_a_seed_that_is_missing_is_no_zero():
    with pytest.raises(KeyError):
        seeds.paired({"1": 1.0}, {"1": 1.0, "2": 1.0})


def test_one_seed_has_no_spread():
    assert seeds.sd([1.5]) == 0.0
    assert seeds.sd([1.0, 2.0]) == pytest.approx(0.7071, abs=1e-4)


def test_a_studys_template_must_fill_the_frame(tmp_path):
    from jinja2 import TemplateRuntimeError

    from tasks.ablation.page import render

    half = tmp_path / "half.html.j2"
    half.write_text('{% extends "study.html.j2" %}{% block title %}Half{% endblock %}')
    with pytest.raises(TemplateRuntimeError, match="lead"):
        render(half, "<svg/>", profile="demo")
