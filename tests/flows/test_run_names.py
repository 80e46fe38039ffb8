"""What a flow run is called."""

from __future__ import annotations

import pytest

from flows.run_names import LONGEST, run_name
from tasks.settings.profiles import Overrides


@pytest.mark.parametrize(
    ("parameters", "study", "name"),
    [
        ({}, "", "demo"),
        ({"profile": "smoke", "until": "report", "force": [], "overrides": {}}, "", "smoke"),
        ({"profile": "smoke", "until": "dpo"}, "", "smoke until dpo"),
        ({"profile": "smoke", "until": "sft", "force": ["sft"]}, "", "smoke until sft, sft again"),
        ({"force": ["sft:exp4", "dpo"]}, "", "demo, sft:exp4 and dpo again"),
        ({"overrides": {"dpo": {"beta": 0.3}, "runtime": {"nproc": 2}}}, "", "demo, dpo.beta=0.3"),
        ({"overrides": {"export": {"forms": ["gguf"]}, "sft": {"variants": {"cot": None}}}}, "",
         'demo, export.forms=["gguf"], sft.variants.cot=null'),
        ({"profile": "qwen-tiny"}, "language-ratio", "qwen-tiny language-ratio"),
        ({"models": {"a": "/x/secret-place", "b": "demo:dpo"}}, "models", "demo models, a b"),
    ],
)  # fmt: skip
def test_a_name_says_profile_and_purpose(parameters, study, name):
    assert run_name(parameters, study) == name


def test_the_flow_sees_the_same_as_who_asked_for_it():
    tree = {"dpo": {"beta": 0.3}}
    assert run_name({"overrides": Overrides.model_validate(tree)}) == run_name({"overrides": tree})


def test_a_long_name_is_cut():
    name = run_name({"overrides": {"world": {f"k{n}": n for n in range(100)}}})
    assert len(name) <= LONGEST
    assert name.endswith(" …")
