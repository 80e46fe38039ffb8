"""What flows/stages.py gives to Prefect."""

from __future__ import annotations

import pytest
from prefect import task
from prefect._internal.engine import resolve_custom_task_run_name

from flows.stages import template_of


@pytest.mark.parametrize(
    "name", ["convert:a", "convert:网页 {x}", "sft:{}", "sft:{0!r:>9}", "clean:{{a}}", "clean:}{"]
)
def test_a_node_s_task_run_has_its_name_whatever_signs_it_holds(name):
    made = task(name=name, task_run_name=template_of(name))(lambda: None)
    assert resolve_custom_task_run_name(made, {}) == name
