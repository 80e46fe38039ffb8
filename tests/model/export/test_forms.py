"""Which geometry can leave in which form, and what is said where it cannot."""

import subprocess
import sys

import pytest

from model.export.forms import FORMS, refusal, stock_form

DEFAULT: dict = {}
DENSE = {"ffn": "dense", "expert": "swiglu"}
LINEAR = {"ffn": "token", "expert": "swiglu", "router": "linear"}
COSINE = {"ffn": "token", "expert": "swiglu"}


@pytest.mark.parametrize(
    ("geometry", "fold", "leaves"),
    [
        (DEFAULT, False, {"steel"}),
        (DEFAULT, True, {"steel"}),
        (DENSE, False, {"steel", "qwen2", "gguf", "ollama"}),
        (DENSE | {"expert": "double_swiglu"}, False, {"steel"}),
        (LINEAR, False, {"steel", "qwen2_moe", "gguf", "ollama"}),
        (LINEAR | {"slots_per_expert": 2}, False, {"steel"}),
        (LINEAR | {"num_experts": 1}, False, {"steel", "qwen2", "gguf", "ollama"}),
        (COSINE, False, {"steel"}),
        (COSINE, True, {"steel", "qwen2_moe", "gguf", "ollama"}),
        (COSINE | {"ffn": "prefix"}, True, {"steel"}),
        (LINEAR | {"ffn": "merge"}, True, {"steel"}),
        (COSINE | {"ffn": "paper"}, True, {"steel"}),
        ({"model_type": "qwen2"}, False, {"steel", "qwen2", "gguf", "ollama"}),
        ({"model_type": "qwen2_moe"}, False, {"steel", "qwen2_moe", "gguf", "ollama"}),
        ({"model_type": "llama"}, False, {"steel"}),
    ],
)
def test_what_can_leave_and_what_cannot(geometry, fold, leaves):
    reasons = {form: refusal(form, geometry, fold_cosine=fold) for form in FORMS}
    assert {form for form, reason in reasons.items() if not reason} == leaves
    assert not any("\n" in reason for reason in reasons.values())


def test_a_refusal_names_the_settings_that_would_do():
    reason = refusal("qwen2_moe", COSINE)
    assert "router: cosine" in reason
    assert "router: linear" in reason
    assert "export.fold_cosine: true" in reason
    assert "fold_cosine" not in refusal("gguf", DEFAULT)
    assert "double_swiglu" in refusal("gguf", DEFAULT)
    assert "choose qwen2," in refusal("qwen2_moe", DENSE)
    assert stock_form(DENSE) == "qwen2"


def test_planning_asks_without_torch():
    code = "import sys, model.export.forms, model.export.splits; assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)
