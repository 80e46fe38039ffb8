"""The evaluate stage: every model is asked every benchmark, by every protocol and its control.

One node a model: `evaluate:untrained` (`evaluate:start` where the run continues a model), `evaluate:base`,
`evaluate:sft-<variant>`, `evaluate:dpo`, `evaluate:rl`.
"""

from __future__ import annotations

from tasks.evaluate.benchmarks import reported_split
from tasks.evaluate.body import Recipe, evaluate
from tasks.settings.config import SteelRun
from tasks.stage.node import Node


def nodes(config: SteelRun) -> list[Node]:
    """A node for each model of the run."""
    if not config.evaluate.benchmarks:
        return []
    first = "start" if config.model.pretrained else "untrained"
    models = [_node(config, first, "pretrain"), _node(config, "base", "pretrain")]
    models += [_node(config, f"sft-{variant}", f"sft:{variant}") for variant in config.sft.variants]
    if config.sft.variants and config.dpo.mixture:
        models.append(_node(config, "dpo", "dpo:train"))
    if config.sft.variants and config.rl.mixture:
        models.append(_node(config, "rl", "rl:train"))
    return models


def _node(config: SteelRun, unit: str, model_from: str) -> Node:
    settings = config.evaluate
    tuned = unit not in ("untrained", "start", "base")
    variant = unit.startswith("sft-")
    return Node(
        name=f"evaluate:{unit}",
        body=evaluate,
        config=Recipe(
            model=unit.replace("sft-", "sft:", 1) if variant else unit,
            form="chat" if tuned and settings.chat else "plain",
            benchmarks={name: reported_split(config.sources[name]) for name in settings.benchmarks},
            protocols=settings.protocols,
            controls=settings.controls == "all" or (settings.controls == "reported" and not variant),
            max_questions=settings.max_questions,
            batch_tokens=settings.batch_tokens,
        ),
        inputs={
            "model": model_from,
            "tokenizer": "tokenize:tokenizer",
            **{name: f"convert:{name}" for name in settings.benchmarks},
        },
        seeded=True,
    )
