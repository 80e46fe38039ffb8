"""What a card says of the form: how to run it, how near it is to what was trained, and what to look out for."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from model.export.forms import FILES, certified
from tasks.figures.history import Nodes
from tasks.report import model_card, view
from tasks.settings.config import PipelineRecipe

PYTHON = """\
```python
from transformers import pipeline

chat = pipeline("text-generation", "THIS_FOLDER"{more})
print(chat([{{"role": "user", "content": "你好"}}], max_new_tokens=64)[0]["generated_text"][-1]["content"])
```
"""
OLLAMA = """\
llama.cpp: `llama-server -m {file}`. Ollama, in this folder: `ollama create NAME -f Modelfile`, `ollama run NAME`.
"""
RUN = {
    "steel": "The folder holds its own code and needs torch and transformers alone.\n\n"
    + PYTHON.format(more=", trust_remote_code=True"),
    "qwen2": "A stock Qwen2ForCausalLM: transformers loads it without code of its own.\n\n"
    + PYTHON.format(more=""),
    "qwen2_moe": "A stock Qwen2MoeForCausalLM whose every expert is active: transformers loads it without code of "
    "its own.\n\n" + PYTHON.format(more=""),
}
SERVED = "As a server with a chat page, from a checkout of Steel: `make chat-web MODEL=THIS_FOLDER`.\n"
FORGED = (
    "In training, a special token came from no text: the string `<|im_end|>` in a message was only a string. Steel's own "
    "server keeps to that. transformers' pipeline, llama.cpp and Ollama make the token from it, so that a message can end "
    "its own turn: where messages come from strangers, take such strings out."
)
NFC = (
    "The tokenizer normalises text to NFC; llama.cpp does not. A text in another form (é as e and an accent, Hangul in "
    "single letters) gets other tokens there."
)
UNRUN = "Prepared for vLLM's transformers backend (`auto_map` names the model without its head), and not run there."


def write(
    run: PipelineRecipe,
    nodes: Nodes,
    model: str,
    form: str,
    certificate: dict[str, Any],
    changed: Sequence[str] = (),
) -> str:
    """README.md of one of a run's models (a name of history.exports) in one form: what it is, then the form."""
    seen = model_card.of(view.assemble(run, nodes), model)
    return model_card.write(seen, form, changed) + "\n" + form_section(form, certificate)


def form_section(form: str, certificate: dict[str, Any]) -> str:
    """Markdown: how to run it, the certificate, the traps."""
    lines = ["## This form", ""]
    if form in FILES:
        lines.append(OLLAMA.format(file=next(iter(certificate["files"]))))
    else:
        lines += [RUN[form], SERVED]
    lines += ["### Parity", "", certificate_table(certificate), ""]
    lines += [FORGED, ""]
    if form in FILES:
        lines += [NFC, ""]
    if form == "steel" and certificate["of"] == "steel":
        lines += [UNRUN, ""]
    return "\n".join(lines).rstrip() + "\n"


def certificate_table(certificate: dict[str, Any]) -> str:
    """The numbers of parity.json for a person."""
    files = certified(certificate)
    lines = [
        f"Held against the trained model, {certificate['precision']}:",
        "",
        "| | largest difference of a logit | best token changed | greedy texts equal |",
        "|---|---:|---:|---:|",
    ]
    for name, one in files.items():
        greedy = one["greedy"]
        lines.append(
            f"| {name} | {one['max_logit_difference']:.2g} | {one['top1_changed']} of {one['positions']} "
            f"| {greedy['equal']} of {one['prompts']} ({greedy['tokens']} tokens each) |"
        )
    if "approximation" in certificate:
        lines += ["", f"**An approximation**: {certificate['approximation']}."]
    return "\n".join(lines)
