"""The name by which llama.cpp knows how a tokenizer splits a text before it merges bytes (`tokenizer.ggml.pre`).

llama.cpp has such rules by name only, and a wrong name costs quality without an error: so the rule of a tokenizer.json
must be one whose name is known here, and any other is refused. Without torch: planning a run asks, too.
"""

from __future__ import annotations

import json
from pathlib import Path

from model.export.forms import FormError

SPLITS = {
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+": "qwen2"
}
"""The rule of a tokenizer.json -> llama.cpp's name for it."""


def split_name(folder: Path) -> str:
    """llama.cpp's name for how the tokenizer splits a text. FormError where it has none."""
    data = json.loads((folder / "tokenizer.json").read_text("utf-8"))
    before = data.get("pre_tokenizer") or {}
    steps = before.get("pretokenizers", [before])
    splits = [step["pattern"].get("Regex") for step in steps if step.get("type") == "Split"]
    name = SPLITS.get(splits[0]) if len(splits) == 1 else None
    if data.get("model", {}).get("type") != "BPE" or name is None:
        raise FormError(
            "this tokenizer cannot leave as GGUF: llama.cpp has no name known here for how it splits a text"
        )
    return name
