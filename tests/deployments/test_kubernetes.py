"""deployments/kubernetes: no cluster here, so manifests and the pool's template are rendered and held against schemas."""

from __future__ import annotations

from typing import Any

import jsonschema
import pytest

from tests.support import job_templates
from tests.support.yaml_files import documents

FILES = ("kubernetes/training.yaml", "kubernetes/worker.yaml")
TEMPLATE = job_templates.load("kubernetes/base-job-template.json")


def manifest(**given: Any) -> dict[str, Any]:
    """The job of a run. An empty environment is a list there, as Prefect makes it."""
    job = job_templates.render(TEMPLATE, {"name": "steel", **given})["job_manifest"]
    container = job["spec"]["template"]["spec"]["containers"][0]
    container["env"] = [{"name": key, "value": value} for key, value in (container.get("env") or {}).items()]
    return job


def every_job() -> dict[str, dict[str, Any]]:
    files = {name: item for name in FILES for item in documents(name) if item["kind"] == "Job"}
    return {**files, "template": manifest(gpus=8), "template without GPUs": manifest()}


def test_jobs_run_without_root_and_can_save_before_they_are_killed():
    assert len(every_job()) == 3
    for name, job in every_job().items():
        pod = job["spec"]["template"]["spec"]
        assert pod["securityContext"]["runAsNonRoot"] is True, name
        assert pod["securityContext"]["runAsUser"] == 10001, name
        assert pod["automountServiceAccountToken"] is False, name
        assert pod["terminationGracePeriodSeconds"] >= 300, name
        assert not {"hostNetwork", "hostPID", "hostIPC"} & set(pod), name
        assert not any("hostPath" in volume for volume in pod["volumes"]), name
        mounted = {mount["name"] for mount in pod["containers"][0]["volumeMounts"]}
        assert mounted == {volume["name"] for volume in pod["volumes"]}, name
        for container in pod["containers"]:
            rights = container["securityContext"]
            assert rights["readOnlyRootFilesystem"] is True, name
            assert rights["allowPrivilegeEscalation"] is False, name
            assert rights["privileged"] is False, name
            assert rights["capabilities"] == {"drop": ["ALL"]}, name


def test_the_ranks_meet_at_a_pod_that_has_that_name():
    service, job = documents("kubernetes/training.yaml")
    spec, pod = job["spec"], job["spec"]["template"]
    arguments = dict(part[2:].split("=", 1) for part in pod["spec"]["containers"][0]["args"] if "=" in part)
    assert spec["completionMode"] == "Indexed"
    assert spec["completions"] == spec["parallelism"] == int(arguments["nnodes"])
    assert pod["spec"]["containers"][0]["resources"]["limits"]["nvidia.com/gpu"] == int(
        arguments["nproc-per-node"]
    )
    host = f"{job['metadata']['name']}-0.{pod['spec']['subdomain']}:{service['spec']['ports'][0]['port']}"
    assert arguments["rdzv-endpoint"] == host
    assert service["metadata"]["name"] == pod["spec"]["subdomain"]
    assert (service["spec"]["clusterIP"], service["spec"]["publishNotReadyAddresses"]) == ("None", True)
    assert service["spec"]["selector"].items() <= pod["metadata"]["labels"].items()


def test_a_worker_may_make_jobs_and_nothing_else():
    roles = [item for item in documents("kubernetes/worker.yaml") if item["kind"].endswith("Role")]
    assert [role["kind"] for role in roles] == ["Role"], "none of the whole cluster"
    rights = {
        (resource, verb)
        for role in roles
        for rule in role["rules"]
        for resource in rule["resources"]
        for verb in rule["verbs"]
    }
    assert "*" not in {part for right in rights for part in right}
    assert {resource for resource, verb in rights if verb in ("create", "delete", "patch", "update")} == {
        "jobs"
    }
    assert "secrets" not in {resource for resource, _ in rights}


def test_the_pools_template_takes_what_a_deployment_gives():
    assert job_templates.undeclared(TEMPLATE) == set()
    pod = manifest(gpus=8, shm="64Gi", node_selector={"gpu": "h100"}, env={"STEEL_POOL": "steel-gpu"})[
        "spec"
    ]["template"]["spec"]
    assert pod["containers"][0]["resources"]["limits"]["nvidia.com/gpu"] == 8
    assert pod["containers"][0]["env"] == [{"name": "STEEL_POOL", "value": "steel-gpu"}]
    assert pod["nodeSelector"] == {"gpu": "h100"}
    assert {"medium": "Memory", "sizeLimit": "64Gi"} in [volume.get("emptyDir") for volume in pod["volumes"]]
    assert "command" not in TEMPLATE["variables"]["properties"], (
        "who asks for a run does not choose its program"
    )
    for wrong in ({"gpus": -1}, {"gpus": "eight"}, {"grace_seconds": 5}):
        with pytest.raises(jsonschema.ValidationError):
            manifest(**wrong)


def test_kubernetes_schema_takes_every_manifest():
    validator = pytest.importorskip("kubernetes_validate", reason="pip install kubernetes-validate")
    version = validator.latest_version()
    manifests = [item for name in FILES for item in documents(name)] + list(every_job().values())
    assert len(manifests) > 8
    for item in manifests:
        if "generateName" in item["metadata"]:
            pod = item["spec"]["template"]["spec"]
            # prefect-kubernetes demands both in this place, where Kubernetes has no such field and passes over it
            assert [pod.pop(name) for name in ("completions", "parallelism")] == [1, 1]
        validator.validate(item, version, strict=True)
    broken = documents("kubernetes/training.yaml")[1]
    broken["spec"]["template"]["spec"]["restartPolice"] = "Never"
    with pytest.raises(validator.ValidationError):
        validator.validate(broken, version, strict=True)


@pytest.mark.parametrize(
    ("module", "configuration", "name"),
    [
        ("prefect_kubernetes.worker", "KubernetesWorkerJobConfiguration", "kubernetes"),
        ("prefect_docker.worker", "DockerWorkerJobConfiguration", "docker"),
    ],
)
def test_prefects_own_worker_takes_the_template(module, configuration, name):
    worker = pytest.importorskip(module, reason=f"pip install {module.partition('.')[0].replace('_', '-')}")
    template = job_templates.load(f"{name}/base-job-template.json")
    # what it renders with a server, without one
    made = getattr(worker, configuration).model_validate(
        job_templates.render(template, {"name": "steel", "env": {"STEEL_POOL": "steel-gpu"}})
    )
    assert made.env["STEEL_POOL"] == "steel-gpu"
