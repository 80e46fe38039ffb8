"""README.md of an export folder: what the model is and how to load it, in the form that model hubs read.

Data and scores are not known here: the report writes a fuller card beside its page.
"""

from __future__ import annotations

from transformers import PreTrainedConfig

from model.steel.configuration import LEAKY_KINDS, SteelConfig

KINDS = {
    "dense": "one feed-forward network a block",
    "token": "a Soft MoE by token: every expert sees every token, a router weighs their answers",
    "prefix": "a Soft MoE whose experts see running means of the document so far",
    "merge": "one expert a segment, merged from all by the routing of the segment before",
    "paper": "the Soft MoE paper's layer, whose slots hold later tokens too: for study, not for generation",
    "released": "the layer as published, whose slots hold later tokens too: for study, not for generation",
}

TEXT = """\
---
library_name: transformers
pipeline_tag: text-generation
tags:
- steel
- soft-moe
---

# Steel, {millions} M parameters

A decoder of {layers} blocks; its feed-forward layer (`ffn: {ffn}`) is {kind}.

| | |
|---|---:|
{rows}

The folder holds its own code and needs nothing but torch and transformers:

```python
from transformers import pipeline

chat = pipeline("text-generation", "THIS_FOLDER", trust_remote_code=True)
print(chat([{{"role": "user", "content": "你好"}}], max_new_tokens=64)[0]["generated_text"][-1]["content"])
```

{leak}A model that was only pre-trained continues texts and knows no turns; one that was tuned answers in the chat template
of the tokenizer. Trained on what its maker gave it: what it says may be wrong.

In training, a special token came from no text: the string `<|im_end|>` in a message was only a string. Most programs make
the token from it, so that a message can end its own turn. Where messages come from strangers, take such strings out.
"""


def family_card(config: PreTrainedConfig) -> str:
    """The same for another model of transformers."""
    return (
        f"---\nlibrary_name: transformers\npipeline_tag: text-generation\n---\n\n# A {config.model_type} model\n\n"
        f"{config.num_hidden_layers} layers of width {config.hidden_size}, a vocabulary of {config.vocab_size:,}. "
        "transformers loads it with its own code.\n\nTrained on what its maker gave it: what it says may be wrong.\n"
    )


def card(config: SteelConfig) -> str:
    """Markdown with the usual front matter."""
    facts = {
        "parameters": config.num_params(),
        "without embeddings": config.num_params(embeddings=False),
        "hidden size": config.hidden_size,
        "heads (keys and values)": f"{config.num_attention_heads} ({config.num_key_value_heads})",
        "experts x slots": "none"
        if config.ffn == "dense"
        else f"{config.num_experts} x {config.slots_per_expert}",
        "width of an expert": config.ffn_width if config.ffn == "dense" else config.expert_width,
        "expert": config.expert,
        "vocabulary": config.vocab_size,
        "GFLOP per trained token at 2,048": f"{config.num_flops_per_token(2048) / 1e9:.3f}",
    }
    shown = {name: f"{value:,}" if isinstance(value, int) else value for name, value in facts.items()}
    leak = "**Its losses saw the future**: they do not compare with those of other models.\n\n"
    return TEXT.format(
        millions=f"{config.num_params() / 1e6:,.1f}",
        layers=config.num_hidden_layers,
        ffn=config.ffn,
        kind=KINDS[config.ffn],
        rows="\n".join(f"| {name} | {value} |" for name, value in shown.items()),
        leak=leak if config.ffn in LEAKY_KINDS else "",
    )
