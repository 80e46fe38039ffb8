"""prefect.yaml: Prefect ignores keys that it does not know and keeps unset variables as they stand,
so a typo would only show as a missing feature. It is compared with Prefect's own models here."""

from __future__ import annotations

import re
from typing import Any, get_args, get_origin

import pytest
import yaml
from prefect.cli.deploy._models import ConcurrencyLimitSpec, PrefectYamlModel
from prefect.flows import load_flow_from_entrypoint
from pydantic import BaseModel

from flows import hand_over
from flows.settings import POOL, QUEUES, ROOT, TRAINING_POOL, Addresses, State, variables
from flows.spec import PIPELINE, SPECS, FlowSpec
from tasks.settings.config import STAGES

TEXT = (ROOT / "prefect.yaml").read_text("utf-8")
TREE = yaml.safe_load(TEXT)
TRAINED = ("pretrain", "sft", "dpo", "rl", "evaluate")
OURS = {"definitions"}  # anchors only


def unknown_keys(model: type[BaseModel], tree: dict[str, Any], path: str = "") -> list[str]:
    known = {field.alias or name: field.annotation for name, field in model.model_fields.items()}
    found = []
    for key, value in tree.items():
        if key not in known:
            found.append(f"{path}{key}")
            continue
        for part in _models(known[key]):
            for item in value if isinstance(value, list) else [value]:
                if isinstance(item, dict):
                    found += unknown_keys(part, item, f"{path}{key}.")
    return found


def _models(annotation: Any) -> list[type[BaseModel]]:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return [annotation]
    if "ConcurrencyLimitSpec" in str(annotation):
        return [ConcurrencyLimitSpec]
    return [m for part in get_args(annotation) if get_origin(annotation) is not dict for m in _models(part)]


def test_prefect_knows_every_key():
    assert unknown_keys(PrefectYamlModel, {k: v for k, v in TREE.items() if k not in OURS}) == []


@pytest.mark.parametrize(
    "typo",
    [
        {"deploymets": []},
        {"deployments": [{"name": "x", "concurency_limit": 1}]},
        {"deployments": [{"name": "x", "work_pool": {"jobvariables": {}}}]},
        {"deployments": [{"name": "x", "concurrency_limit": {"limits": 1}}]},
    ],
)
def test_the_check_itself_sees_typos(typo):
    assert unknown_keys(PrefectYamlModel, typo)


def deployed(flow: FlowSpec) -> dict[str, dict[str, Any]]:
    return {d["name"]: d for d in TREE["deployments"] if d["entrypoint"] == flow.entrypoint}


def test_every_flow_has_its_deployments_and_nothing_else_is_deployed():
    assert {flow.entrypoint: tuple(deployed(flow)) for flow in SPECS} == {
        flow.entrypoint: flow.deployments for flow in SPECS
    }
    assert {d["entrypoint"] for d in TREE["deployments"]} == {flow.entrypoint for flow in SPECS}
    for flow in SPECS:
        assert set(deployed(flow)[flow.deployments[0]].get("parameters", {})) == set(), "runs all stages"
    assert deployed(PIPELINE)["training"].get("parameters") is None
    for stage in STAGES:
        assert deployed(PIPELINE)[stage]["parameters"] == {"until": stage, "force": [stage]}
    for deployment in TREE["deployments"]:
        trains = (
            deployment["name"] in ("training", *TRAINED) or deployment["entrypoint"] != PIPELINE.entrypoint
        )
        pool = f"{{{{ ${TRAINING_POOL} }}}}" if trains else POOL
        assert deployment["work_pool"]["name"] == pool
        assert deployment["work_pool"]["job_variables"]["env"][hand_over.OWN_POOL] == pool
        assert deployment["work_pool"]["job_variables"]["stream_output"] is False
        # a limit of the deployment is a lease in the server's memory: its restart would end the run
        assert "concurrency_limit" not in deployment
        single = "force" in deployment.get("parameters", {})
        assert deployment["work_pool"]["work_queue_name"] == ("stages" if single else "pipelines")
        assert deployment["work_pool"]["work_queue_name"] in QUEUES


def test_every_variable_in_it_is_set_by_make_up(tmp_path):
    used = set(re.findall(r"\{\{\s*\$(\w+)\s*\}\}", TEXT))
    assert used
    assert used <= set(variables(State(tmp_path), Addresses(1, 2), "steel:word"))


def test_the_parameters_are_those_of_the_flow():
    for spec in SPECS:
        flow = load_flow_from_entrypoint(str(ROOT / spec.entrypoint), use_placeholder_flow=False)
        assert flow.name == spec.name
        for deployment in deployed(spec).values():
            flow.validate_parameters(deployment.get("parameters") or {})
        assert ("until" in flow.parameters.properties) == spec.takes_until
        for name in (*spec.stages, f"{spec.stages[-1]}:some-1.unit"):
            flow.validate_parameters({"force": [name]})
        with pytest.raises(Exception, match="force"):
            flow.validate_parameters({"force": ["no-such-stage"]})
        described = [field.get("description") for field in flow.parameters.properties.values()]
        assert all(described), "the form explains every parameter"
    pipeline = load_flow_from_entrypoint(str(ROOT / PIPELINE.entrypoint), use_placeholder_flow=False)
    with pytest.raises(Exception, match="until"):
        pipeline.validate_parameters({"until": "pretrian"})
