"""A pool's base job template, rendered as a Prefect worker renders it, without its infrastructure."""

from __future__ import annotations

import json
from typing import Any

from jsonschema import Draft202012Validator
from prefect.client.schemas.actions import WorkPoolCreate
from prefect.utilities.templating import apply_values, find_placeholders

from tests.support.yaml_files import text


def load(name: str) -> dict[str, Any]:
    """The template; Prefect's own model of a pool takes it, and its variables are a JSON schema."""
    template = json.loads(text(name))
    WorkPoolCreate(name="steel-gpu", type=name.partition("/")[0], base_job_template=template)
    Draft202012Validator.check_schema(template["variables"])
    return template


def undeclared(template: dict[str, Any]) -> set[str]:
    """Placeholders that no variable fills, and variables that fill nothing."""
    used = {placeholder.name for placeholder in find_placeholders(template["job_configuration"])}
    return used ^ set(template["variables"]["properties"])


def render(template: dict[str, Any], given: dict[str, Any]) -> dict[str, Any]:
    """The job configuration with the variables' defaults and what a deployment gives."""
    Draft202012Validator(template["variables"]).validate(given)
    fields = template["variables"]["properties"]
    defaults = {name: field["default"] for name, field in fields.items() if "default" in field}
    return apply_values(template["job_configuration"], {**defaults, **given}, remove_notset=True)
