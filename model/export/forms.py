"""The forms that a model can leave in, and which geometry allows which. Without torch: planning a run asks, too.

| form | what it is | who can leave so |
|---|---|---|
| `steel` | the folder as training left it (of another model of transformers: its own form) | all |
| `qwen2` | a stock Qwen2ForCausalLM | `swiglu` experts with `ffn: dense`, or `token` with one expert |
| `qwen2_moe` | a stock Qwen2MoeForCausalLM with every expert active | `swiglu`, `token`, one slot an expert, a linear router |
| `gguf` | files for llama.cpp and Ollama, with a Modelfile | what can leave as `qwen2` or `qwen2_moe` |
| `ollama` | one such file and its Modelfile | the same, with Steel's chat template |

A cosine router leaves as `qwen2_moe` only by `fold_cosine`, which makes it a linear one nearly equal.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

FORMS = ("steel", "qwen2", "qwen2_moe", "gguf", "ollama")
STOCK = ("qwen2", "qwen2_moe")
"""Forms that need no code of Steel's."""
FILES = ("gguf", "ollama")
"""Forms that are GGUF files, of a stock form."""
WAY = "model.expert: swiglu with model.ffn: dense (as qwen2), or with ffn: token and router: linear (as qwen2_moe)"


def certified(certificate: Mapping[str, Any]) -> Mapping[str, Mapping[str, Any]]:
    """What a parity.json says of each file, or of the one folder under its form's name."""
    return certificate.get("files") or {certificate["form"]: certificate}


class FormError(ValueError):
    """A model that cannot leave in a form: one clear line."""


def stock_form(geometry: Mapping[str, Any], *, fold_cosine: bool = False) -> str | None:
    """`qwen2` or `qwen2_moe` where a model has a stock form, else None.

    `geometry`: the fields of config.json, or of the settings' section `model`; those that are not there have Steel's
    defaults. A model of another type has the form of its own name.
    """
    kind = geometry.get("model_type", "steel")
    if kind != "steel":
        return kind if kind in STOCK else None
    if geometry.get("expert", "double_swiglu") != "swiglu":
        return None
    ffn, experts = geometry.get("ffn", "token"), geometry.get("num_experts", 6)
    if ffn == "dense" or (ffn == "token" and experts == 1):
        return "qwen2"
    linear = geometry.get("router", "cosine") == "linear" or fold_cosine
    if ffn == "token" and geometry.get("slots_per_expert", 1) == 1 and linear:
        return "qwen2_moe"
    return None


def refusal(form: str, geometry: Mapping[str, Any], *, fold_cosine: bool = False) -> str:
    """Why a model of this geometry cannot leave in this form, in one line; "" if it can."""
    if form == "steel":
        return ""
    stock = stock_form(geometry, fold_cosine=fold_cosine)
    if stock == form or (stock and form in FILES):
        return ""
    kind = geometry.get("model_type", "steel")
    if kind != "steel":
        return f"a model of type {kind} cannot leave as {form}: it leaves in its own form, `steel`" + (
            "" if form not in FILES else f"; the GGUF writer knows {', '.join(STOCK)}"
        )
    if stock:
        return f"this geometry leaves as {stock}, not as {form}: choose {stock}, or gguf"
    fields = {"ffn": "token", "expert": "double_swiglu", "router": "cosine", "slots_per_expert": 1}
    has = ", ".join(f"{name}: {geometry.get(name, default)}" for name, default in fields.items())
    fold = ""
    if stock_form(geometry, fold_cosine=True):
        fold = "; or export.fold_cosine: true, which is nearly equal"
    return f"a model with {has} cannot leave as {form}; what can: {WAY}{fold}"
