"""The export stage: a node a form, the model with its card and certificate, and refusals before training."""

import json
import shutil
from pathlib import Path

import pytest
from huggingface_hub import ModelCard

from tasks import dag
from tasks.export import node as export
from tasks.inspect import preflight
from tasks.settings import profiles
from tasks.settings.config import STAGES
from tasks.settings.errors import NodeError
from tests.support import exports, fake_run, tiny

SWIGLU = {"expert": "swiglu"}


def of(run, **settings):
    names = list(run.nodes)
    return export.nodes(
        run.config.model_copy(update={"export": fake_run.config(export=settings).export}), names
    )


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A complete run whose last model is a real one."""
    root = tmp_path_factory.mktemp("run")
    made = fake_run.FakeRun(root).build()
    folder = made.nodes["dpo:train"].path / "export"
    shutil.rmtree(folder)
    exports.export(folder, exports.qwen_tokenizer(root / "tokenizer"), ffn="dense", **SWIGLU)
    return made


def test_a_node_for_each_form_with_what_concerns_it_alone(run):
    assert of(run) == []
    one = {node.name: node for node in of(run, forms=["steel", "qwen2"])}
    all_of_them = {
        node.name: node for node in of(run, forms=["qwen2", "steel", "gguf"], gguf=["F32", "Q8_0"])
    }
    assert list(all_of_them) == ["export:steel", "export:qwen2", "export:gguf"]
    assert one["export:qwen2"].config == all_of_them["export:qwen2"].config, "other forms do not make it anew"
    assert all_of_them["export:gguf"].config.dtypes == ["F32", "Q8_0"]
    assert set(one["export:steel"].inputs) == set(run.nodes)
    other = {node.name: node for node in of(run, forms=["ollama"], gguf=["Q8_0", "F32"])}
    assert list(other) == ["export:steel", "export:ollama"], "a folder with its own code is always there"
    assert other["export:ollama"].config.dtypes == ["Q8_0"]


def test_the_place_of_a_continued_model_makes_no_new_export(run):
    places = [Path("/here/model"), Path("/there/model")]
    models = [run.config.model.model_copy(update={"pretrained": place}) for place in places]
    settings = {"export": fake_run.config(export={"forms": ["steel"]}).export}
    configs = [run.config.model_copy(update={"model": model, **settings}) for model in models]
    here, there = (export.nodes(config, list(run.nodes))[0].config for config in configs)
    assert here == there


def test_the_stage_is_in_the_graph_and_the_report_does_not_wait_for_it():
    graph = dag.build(profiles.load("smoke"))
    assert "export:steel" in graph
    assert "evaluate:base" in graph["export:steel"].inputs
    assert "export:steel" not in graph["report"].inputs
    assert not any(name.startswith("export") for name in dag.build(profiles.load("demo")))


def test_a_form_is_written_with_its_card_and_certificate(run, tmp_path, pool_here):
    _, node = of(run, forms=["qwen2"], licence="cc-by-nc-4.0")
    outcome = node.body(tiny.context(tmp_path, node.config, run.nodes))
    assert outcome.headline.startswith("dpo as qwen2, logits within")
    folder = tmp_path / "export"
    assert json.loads((folder / "config.json").read_text())["architectures"] == ["Qwen2ForCausalLM"]
    certificate = json.loads((folder / "parity.json").read_text())
    assert certificate["greedy"]["equal"] == certificate["prompts"]
    card = (folder / "README.md").read_text("utf-8")
    data = ModelCard(card).data
    assert (data.license, data.tags) == ("cc-by-nc-4.0", ["steel", "qwen2", "soft-moe"])
    told = {
        (one.dataset_name, one.metric_args["protocol"], one.metric_args["n"]) for one in data.eval_results
    }
    rows = run.nodes["evaluate:dpo"].read_json("results.json")
    assert told
    assert told <= {(row["benchmark"], row["protocol"], row["n"]) for row in rows}
    for part in (
        "## Data",
        "## Recipe",
        "## Scores of dpo",
        "95 %",
        "## Limits",
        "make run PROFILE=demo",
        "### Parity",
    ):
        assert part in card
    assert all((tmp_path / name).is_file() for name in outcome.files)


def test_what_cannot_leave_is_one_line(run, tmp_path, pool_here):
    _, node = of(run, forms=["qwen2_moe"])
    with pytest.raises(NodeError, match="leaves as qwen2, not as qwen2_moe"):
        node.body(tiny.context(tmp_path, node.config, run.nodes))


@pytest.mark.parametrize(
    ("model", "settings", "words"),
    [
        ({}, {"forms": ["qwen2"]}, "model.expert: swiglu with model.ffn: dense"),
        (SWIGLU | {"ffn": "prefix"}, {"forms": ["gguf"]}, "ffn: prefix"),
        (SWIGLU | {"ffn": "merge"}, {"forms": ["qwen2_moe"]}, "ffn: merge"),
        (SWIGLU, {"forms": ["qwen2_moe"]}, "export.fold_cosine: true"),
        (SWIGLU, {"forms": ["qwen2_moe"], "fold_cosine": True}, ""),
        (SWIGLU | {"router": "linear"}, {"forms": ["qwen2_moe", "steel"]}, ""),
        (SWIGLU | {"ffn": "dense"}, {"forms": ["qwen2"]}, ""),
        ({}, {"forms": ["steel"]}, ""),
    ],
)
def test_the_refusal_comes_before_training(model, settings, words):
    config = profiles.load("smoke", {"model": model, "export": settings})
    lines = list(preflight.complaints(config, STAGES, 0))
    assert bool(lines) == bool(words)
    assert all(words in line and "\n" not in line for line in lines)
    until_dpo = STAGES[: STAGES.index("export")]
    assert list(preflight.complaints(config, until_dpo, 0)) == []


def test_a_deployment_that_has_nothing_to_export_says_so():
    until_export = STAGES[: STAGES.index("export") + 1]
    lines = list(preflight.complaints(profiles.load("demo"), until_export, 0))
    assert lines == ["export.forms is empty: name the forms to write (steel, qwen2, qwen2_moe, gguf, ollama)"]
