"""Everything the page shows, gathered once: the page, summary.json and the model card read this.

Because all three are written from one object, they cannot disagree.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Any

from tasks.figures import history
from tasks.figures.history import Curve, Nodes
from tasks.report import environment, funnel, post_training, reading, summary, tables
from tasks.report.funnel import Funnel
from tasks.settings.config import STAGES, PipelineRecipe


@dataclass(frozen=True)
class Sample:
    """One prompt and what the model made of it."""

    prompt: str
    reply: str


@dataclass(frozen=True)
class View:
    """The finished numbers of a run. Lists are empty where the run did not get that far."""

    config: PipelineRecipe
    nodes: Nodes
    funnels: list[Funnel]
    """Of the pre-training sources."""
    posttrain: list[Funnel]
    """Of the instruction, preference and benchmark sets."""
    total: Funnel
    mix: list[dict[str, Any]]
    curves: dict[str, Curve]
    unigram: float | None
    variant: str | None
    mixtures: dict[str, dict[str, Any]]
    benchmarks: list[dict[str, Any]]
    ablation: list[dict[str, Any]]
    dpo: dict[str, Any] | None
    rl: dict[str, Any] | None
    """Exact answers before and after, the start model, and every other measure."""
    parameters: int
    decontamination: list[dict[str, Any]]
    choice: dict[str, Any]
    """How the variant was chosen: protocol, and the scores on the selection split."""
    sample_model: str = ""
    samples: list[Sample] = field(default_factory=list)

    @property
    def model(self) -> str | None:
        """The furthest model that has scores."""
        return reading.best_model(self.benchmarks, self.variant, self.config.rl.start)

    @property
    def val_loss(self) -> float | None:
        return self.curves["pretrain"].last_val if "pretrain" in self.curves else None

    @property
    def tokens(self) -> int:
        return sum(row["tokens"] for row in self.mix)

    @property
    def stages(self) -> list[str]:
        return [s for s in STAGES if history.units(self.nodes, s)]

    def lead(self) -> str:
        """The run in a paragraph."""
        facts = {
            "total": self.total,
            "n_sources": len(self.funnels),
            "tokens": self.tokens,
            "parameters": self.parameters,
            "start": "from scratch"
            if self.config.model.pretrained is None
            else "from the weights of another",
            "val_loss": self.val_loss,
            "unigram": self.unigram,
            "n_variants": sum(name.startswith("sft:") for name in self.curves),
            "variant": self.variant,
            "dpo": self.dpo,
            "benchmarks": self.benchmarks,
            "model": self.model,
        }
        return reading.lead(facts)

    def summary(self) -> dict[str, Any]:
        """summary.json, without its `stages`."""
        return summary.build(
            self.benchmarks,
            self.ablation,
            self.dpo,
            self.rl,
            self.funnels,
            self.curves,
            self.variant,
        )


def assemble(config: PipelineRecipe, nodes: Nodes) -> View:
    """Read all inputs of the report."""
    funnels = funnel.collect(nodes, config.sources, "pretrain")
    scores = tables.benchmarks(config, nodes)
    return View(
        config=config,
        nodes=nodes,
        funnels=funnels,
        posttrain=funnel.collect(nodes, config.sources, "sft", "preference", "benchmark"),
        total=funnel.totals(funnels),
        mix=source_mix(config, nodes),
        curves=history.training_curves(nodes),
        unigram=_unigram(nodes),
        variant=history.chosen_variant(nodes),
        mixtures=tables.mixtures(config, nodes),
        benchmarks=scores,
        ablation=tables.ablation(nodes, scores),
        dpo=tables.dpo(nodes),
        rl=post_training.rl(nodes),
        parameters=environment.parameters(nodes["pretrain"].path / "export") if "pretrain" in nodes else 0,
        decontamination=decontamination(nodes),
        choice=nodes["sft:select"].read_json("choice.json") if "sft:select" in nodes else {},
    )


def with_samples(view: View, model: str, samples: list[Sample]) -> View:
    """The same view with the generations of a model."""
    return replace(view, sample_model=model, samples=samples)


def source_mix(config: PipelineRecipe, nodes: Nodes) -> list[dict[str, Any]]:
    """Per source: tokens, documents and rows to train on, weight, tokens seen per epoch."""
    if "tokenize:manifest" not in nodes:
        return []
    rows = []
    for source, entry in nodes["tokenize:manifest"].read_json("shards.json")["sources"].items():
        tokens = sum(shard["tokens"] for shard in entry["train"])
        rows.append(
            {
                "source": source,
                "language": config.sources[source].language if source in config.sources else "",
                "documents": sum(shard["documents"] for shard in entry["train"]),
                "tokens": tokens,
                "val_tokens": sum(shard["tokens"] for shard in entry["val"]),
                "weight": entry.get("weight", 1),
                "seen": entry["epoch_tokens"],
            }
        )
    return rows


def decontamination(nodes: Nodes) -> list[dict[str, Any]]:
    """Per benchmark: its questions, how many of them occur in training data, records dropped for it."""
    if "clean:decontaminate" not in nodes:
        return []
    parts = nodes["clean:decontaminate"].read_json("report.json")["benchmarks"]
    return [
        {
            "benchmark": name,
            "questions": part["questions"],
            "hit": part["questions_hit"],
            "dropped": sum(part["dropped"].values()),
            "where": part["dropped"],
        }
        for name, part in parts.items()
    ]


def _unigram(nodes: Nodes) -> float | None:
    """Validation loss of the token frequencies alone, as the pretrain node measured it."""
    return nodes["pretrain"].manifest["metrics"].get("unigram_loss") if "pretrain" in nodes else None
