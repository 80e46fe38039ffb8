"""deployments/docker: no Docker here, so the files are read, rendered and held against schemas and our own rules."""

from __future__ import annotations

import importlib.resources
import json
import re
from pathlib import Path

import jsonschema
import pytest

from flows import alone, stores
from flows.settings import ROOT
from tests.support import job_templates
from tests.support.yaml_files import documents, text

COMPOSE = documents("docker/compose.yaml")[0]
SERVICES = COMPOSE["services"]
OURS = {name: service for name, service in SERVICES.items() if service["image"].startswith("steel:")}


def instructions() -> list[tuple[str, str]]:
    """Those of the Dockerfile: (name, rest), lines that go on joined."""
    lines = [
        line for line in text("docker/Dockerfile").splitlines() if line.strip() and not line.startswith("#")
    ]
    joined = "\n".join(lines).replace("\\\n", " ").splitlines()
    return [(name.upper(), rest.strip()) for name, _, rest in (line.partition(" ") for line in joined)]


def test_the_dockerfile_has_two_stages_a_pinned_base_and_no_root():
    steps = instructions()
    known = {
        "ARG",
        "FROM",
        "ENV",
        "RUN",
        "COPY",
        "WORKDIR",
        "USER",
        "VOLUME",
        "HEALTHCHECK",
        "ENTRYPOINT",
        "CMD",
    }
    assert {name for name, _ in steps} <= known
    bases = [rest for name, rest in steps if name == "FROM"]
    assert bases == ["${PYTHON} AS build", "${PYTHON}"]
    assert re.fullmatch(r"PYTHON=python:3\.11\.\d+-slim-bookworm", dict(steps[::-1])["ARG"])
    assert [rest for name, rest in steps if name == "USER"] == ["10001:10001"]
    assert any(name == "HEALTHCHECK" for name, _ in steps)
    for name, rest in steps:
        if name in ("ENTRYPOINT", "CMD"):
            assert all(isinstance(part, str) for part in json.loads(rest)), "the form that hands signals on"
        if name == "COPY" and "--from" not in rest:
            for source in rest.split()[:-1]:
                assert (ROOT / source).exists(), source
                assert source in ignored_except(), f"{source} is left out by Dockerfile.dockerignore"


def ignored_except() -> set[str]:
    lines = text("docker/Dockerfile.dockerignore").splitlines()
    assert "*" in lines
    return {line[1:] for line in lines if line.startswith("!")}


def test_every_package_that_imports_is_in_the_image():
    copied = " ".join(rest for name, rest in instructions() if name == "COPY").split()
    assert {"flows", "kernels", "model", "serve", "tasks"} <= set(copied)


def test_docker_reads_the_dockerfile_as_we_do(tmp_path):
    parser = pytest.importorskip("dockerfile_parse", reason="pip install dockerfile-parse")
    (tmp_path / "Dockerfile").write_text(text("docker/Dockerfile"))
    parsed = parser.DockerfileParser(str(tmp_path))
    found = [(step["instruction"], " ".join(step["value"].split())) for step in parsed.structure]
    mine = [(name, " ".join(rest.split())) for name, rest in instructions()]
    assert [step for step in found if step[0] != "COMMENT"] == mine


def test_compose_is_what_its_schema_asks_for():
    pytest.importorskip("check_jsonschema", reason="pip install check-jsonschema: it has the compose schema")
    schemas = importlib.resources.files("check_jsonschema") / "builtin_schemas" / "vendor"
    schema = json.loads((schemas / "compose-spec.json").read_text("utf-8"))
    jsonschema.validate(COMPOSE, schema)
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate({"services": {"prefect": {"imaeg": "x"}}}, schema)


def test_no_service_has_more_rights_than_it_needs():
    for name, service in SERVICES.items():
        assert service["read_only"] is True, name
        assert service["cap_drop"] == ["ALL"], name
        assert service["security_opt"] == ["no-new-privileges:true"], name
        assert service["user"] not in ("root", "0", "0:0"), name
        assert not {"privileged", "cap_add", "network_mode", "pid", "ipc"} & set(service), name
        assert ":" in service["image"], name
        assert "latest" not in service["image"], name
        for port in service.get("ports", []):
            assert port.startswith("127.0.0.1:"), f"{name} is open to the network"
        assert not any("docker.sock" in volume for volume in service.get("volumes", [])), name


def test_what_compose_refers_to_is_there():
    for name, service in SERVICES.items():
        assert set(service["networks"]) <= set(COMPOSE["networks"]), name
        assert set(service.get("secrets", [])) <= set(COMPOSE["secrets"]), name
        assert set(service.get("depends_on", {})) <= set(SERVICES), name
        for volume in service.get("volumes", []):
            source = volume.split(":")[0]
            assert source in COMPOSE["volumes"] or source.startswith((".", "$")), f"{name}: {volume}"
    assert (ROOT / "deployments/docker/mlflow.sql").read_text().startswith("CREATE DATABASE mlflow")
    build = OURS["prefect"]["build"]
    assert (ROOT / "deployments/docker" / build["context"] / build["dockerfile"]).is_file()


@pytest.mark.parametrize("name", sorted(OURS))
def test_our_services_are_started_as_the_program_understands_them(name, monkeypatch, tmp_path):
    """The command, and each variable, by the code that will read them."""
    service = OURS[name]
    assert service["command"][0] in alone.NAMES
    environment = {key: _filled(str(value)) for key, value in service["environment"].items()}
    at = alone.addresses(environment)
    assert (at.prefect, at.mlflow) == ("http://prefect:4200", "http://mlflow:5000")
    secret = tmp_path / "password"
    secret.write_text("of-the-database\n")
    if stores.PASSWORD_FILE in environment:
        environment[stores.PASSWORD_FILE] = str(secret)
    monkeypatch.setattr(stores, "_driver", lambda: "psycopg")
    more = stores.server_variables(service["command"][0], environment)
    if name in ("prefect", "mlflow"):
        assert more["PGPASSWORD"] == "of-the-database"
        assert f"@postgres:5432/{name}" in "".join(more.values())
    else:
        assert more == {}, "no database for what is no server"
        assert "database" not in service["secrets"]
    known = " ".join(path.read_text("utf-8") for path in (ROOT / "flows").glob("*.py"))
    for variable in environment:
        assert variable in known or variable.startswith("AWS_"), f"nothing reads {variable}"


def _filled(value: str) -> str:
    """With the defaults of compose's own variables."""
    return re.sub(r"\$\{\w+:-([^}]*)\}", r"\1", value)


def test_no_file_holds_a_password():
    for path in Path(ROOT / "deployments").rglob("*"):
        if path.suffix in (".yaml", ".json", ".sbatch", ".sql") or "Dockerfile" in path.name:
            found = re.findall(
                r"(?i)(?:password|secret_key|token)\s*[=:]\s*[\"']?([^\s\"'#,}\])]+)", path.read_text("utf-8")
            )
            assert not [
                word
                for word in found
                if not word.startswith(("/run/secrets", "$", "{", "minio_", "|", "false"))
            ], path


def test_the_pools_template_renders_without_root():
    template = job_templates.load("docker/base-job-template.json")
    assert job_templates.undeclared(template) == set()
    job = job_templates.render(
        template, {"env": {"STEEL_POOL": "steel-gpu"}, "gpus": [{"driver": "nvidia", "count": -1}]}
    )
    assert job["env"] == {"STEEL_POOL": "steel-gpu"}
    assert job["privileged"] is False
    made = job["container_create_kwargs"]
    assert made["device_requests"] == [{"driver": "nvidia", "count": -1}]
    assert (made["user"], made["cap_drop"], made["read_only"]) == ("10001:10001", ["ALL"], True)
    assert "command" not in template["variables"]["properties"], (
        "who asks for a run does not choose its program"
    )
    with pytest.raises(jsonschema.ValidationError):
        job_templates.render(template, {"image_pull_policy": "sometimes"})
