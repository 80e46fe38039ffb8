"""flows.spec: what goes by the specs, and how little a new study is."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import pytest

from flows import cli, preflight, spec, sweep
from flows.preflight import Request
from flows.settings import ROOT
from flows.spec import PIPELINE, SPECS, STUDIES
from tasks.ablation.ffn import node as ablation
from tasks.settings import profiles
from tasks.settings.config import DATA_STAGES, STAGES
from tasks.stage.node import Node

CONFIG = profiles.load("smoke")


def seeds(config):
    """Two nodes of a study that is not there yet: the default model with two seeds."""
    one = ablation.nodes(config)[0]
    return [Node(f"seeds:{seed}", one.body, one.config, one.inputs) for seed in (1, 2)]


ROOM = SimpleNamespace(
    nodes=seeds,
    STAGE="seeds",
    TABLE="seeds:2",
    PAGE="seeds.html",
    FOLDER="two-seeds",
    publish=ablation.publish,
)


@pytest.mark.parametrize("flow", SPECS, ids=lambda flow: flow.deployment)
def test_every_flow_makes_its_result_in_its_stages(flow):
    nodes = flow.build(CONFIG)
    assert list(dict.fromkeys(node.stage for node in nodes.values())) == list(flow.stages)
    assert flow.result in nodes
    assert set(flow.stages) <= set(spec.stages())
    assert flow.name in spec.names()
    assert flow.until(flow.stages[1]) == flow.stages[:2]


def test_names_and_folders_tell_flows_apart():
    deployments = [f"{flow.name}/{name}" for flow in SPECS for name in flow.deployments]
    assert len(set(deployments)) == len(deployments)
    assert len({flow.entrypoint for flow in SPECS}) == len({flow.folder for flow in SPECS}) == len(SPECS)


@pytest.mark.parametrize(
    ("deployment", "flow"),
    [
        ("steel/full-pipeline", PIPELINE),
        ("steel/sft", PIPELINE),
        ("steel-ablation/ffn", STUDIES[0]),
        ("steel-ablation/of-a-user", STUDIES[0]),
        ("steel/of-a-user", PIPELINE),
        ("", PIPELINE),
    ],
)
def test_a_run_is_shown_as_its_flow_shows_itself(deployment, flow):
    assert spec.of(deployment) is flow


def test_a_study_is_a_room_and_a_line(tmp_path):
    study = spec.study("two-seeds", ROOM)
    assert study.deployment == "steel-ablation/two-seeds"
    assert study.entrypoint == "flows/sweep.py:two_seeds"
    assert study.stages == (*DATA_STAGES, "seeds")
    assert list(study.build(CONFIG))[-2:] == ["seeds:1", "seeds:2"]
    assert study.latest(tmp_path, "smoke") == tmp_path / "latest" / "smoke" / "two-seeds"
    flow = sweep.study_flow(study)
    assert flow.name == "steel-ablation"
    flow.validate_parameters({"force": ["seeds:1", "tokenize"]})
    with pytest.raises(Exception, match="force"):
        flow.validate_parameters({"force": ["ablation"]})
    request = Request(profile="smoke", force=["seeds:3"], spec=study)
    assert request.parameters() == {"profile": "smoke", "force": ["seeds:3"]}
    with pytest.raises(preflight.Wrong, match=r"there is no node 'seeds:3' .*seeds has: seeds:1, seeds:2"):
        preflight.run(request)


def test_models_are_a_parameter_of_their_flow(monkeypatch):
    """As the deployment steel-compare/models gets them from the form or the command line."""
    walked = []
    monkeypatch.setattr(sweep, "walk", lambda flow, config, stages, force: walked.append((flow, config)))
    models = {"tuned": "smoke:dpo", "other": "/models/other"}
    sweep.compare_flow(spec.COMPARE).fn("smoke", models, sweep.Overrides(compare={"max_questions": 3}))
    ((flow, config),) = walked
    assert flow is spec.COMPARE
    assert config.compare.max_questions == 3
    assert config.runtime.model("other") == Path("/models/other")
    assert config.runtime.model("tuned") == ROOT / "artifacts/latest/smoke/models/dpo"
    assert preflight.models("tuned=smoke:dpo other=here/x")["tuned"] == "smoke:dpo"


def test_the_command_line_asks_for_the_study_that_is_named(monkeypatch, capsys):
    requests = []
    monkeypatch.setattr(preflight, "run", lambda request: requests.append(request) or exit(0))
    for arguments in (["run"], ["ablation"], ["ablation", "--study", "ffn"], ["run", "--until", "clean"]):
        with pytest.raises(SystemExit):
            cli.main(arguments)
    assert [request.spec.deployment for request in requests] == [
        "steel/full-pipeline",
        "steel-ablation/ffn",
        "steel-ablation/ffn",
        "steel/full-pipeline",
    ]
    assert [request.stages for request in requests[2:]] == [STUDIES[0].stages, STAGES[:3]]
    with pytest.raises(SystemExit):
        cli.main(["ablation", "--study", "none"])
    assert "invalid choice: 'none'" in capsys.readouterr().err
