"""The evaluate stage: every model is asked every benchmark, by every protocol and its control.

One node a model: `evaluate:untrained` (`evaluate:start` where the run continues a model), `evaluate:base`,
`evaluate:sft-<variant>`, `evaluate:dpo`, `evaluate:rl`.
`evaluate:checkpoints` asks the base model of chosen steps.
"""

from __future__ import annotations

from tasks.evaluate import checkpoints, protocols, submission
from tasks.evaluate.benchmarks import OPEN_READERS, reported_split
from tasks.evaluate.body import Recipe, evaluate
from tasks.settings.config import SteelRun
from tasks.settings.errors import NodeError
from tasks.stage.node import Node


def nodes(config: SteelRun) -> list[Node]:
    """A node for each model of the run."""
    if not config.evaluate.benchmarks:
        return []
    _check(config)
    first = "start" if config.model.pretrained else "untrained"
    models = [_node(config, first, "pretrain"), _node(config, "base", "pretrain")]
    models += [_node(config, f"sft-{variant}", f"sft:{variant}") for variant in config.sft.variants]
    if config.sft.variants and config.dpo.mixture:
        models.append(_node(config, "dpo", "dpo:train"))
    if config.sft.variants and config.rl.mixture:
        models.append(_node(config, "rl", "rl:train"))
    if config.evaluate.checkpoints:
        models.append(_checkpoints(config))
    return models


def _check(config: SteelRun) -> None:
    """Every benchmark has to be asked by some protocol."""
    asks = {protocols.of(name).asks for name in config.evaluate.protocols}
    for name in config.evaluate.benchmarks:
        if config.sources[name].reader in OPEN_READERS and "short reply" not in asks:
            raise NodeError(
                f"benchmark {name} has open questions, and no protocol asks them: add open-exact to evaluate.protocols"
            )
    if config.evaluate.submissions:
        submission.protocol(config.evaluate.protocols)
    for name in config.evaluate.submissions:
        if name not in config.evaluate.benchmarks or config.sources[name].reader != "ceval":
            raise NodeError(
                f"evaluate.submissions: {name} is no benchmark of evaluate.benchmarks with the reader ceval"
            )


def _checkpoints(config: SteelRun) -> Node:
    settings = config.evaluate
    asked = [name for name in settings.benchmarks if config.sources[name].reader not in OPEN_READERS]
    runtime = config.runtime
    return Node(
        name="evaluate:checkpoints",
        body=checkpoints.evaluate,
        config=checkpoints.Recipe(
            form="plain",
            benchmarks={name: reported_split(config.sources[name]) for name in asked},
            families={name: config.sources[name].reader for name in asked},
            questions=settings.checkpoints,
            # which exports there are is how a run was executed, and not in the content of the training
            steps={name: getattr(runtime, name, None) for name in ("export_every", "export_steps")},
            batch_tokens=settings.batch_tokens,
        ),
        inputs={
            "model": "pretrain",
            "tokenizer": "tokenize:tokenizer",
            **{name: f"convert:{name}" for name in asked},
        },
        seeded=True,
    )


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
            families={name: config.sources[name].reader for name in settings.benchmarks},
            protocols={name: protocols.of(name).digest for name in settings.protocols},
            controls=settings.controls == "all" or (settings.controls == "reported" and not variant),
            shuffles=settings.shuffles,
            submissions=[] if unit == "untrained" or variant else list(settings.submissions),
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
