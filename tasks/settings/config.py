"""The whole run as one typed tree; every profile in deployments/profiles fills it.

Two kinds of setting, never mixed: the *recipe* (everything but `runtime`) defines the result and
enters fingerprints; `runtime` says how it is executed (paths, devices, process counts) and never
does. Unknown keys are refused everywhere, so that a typo cannot vanish.

The sections stand in modules of their own (data, model, training, scoring, export, runtime); all of them can be had from here.
"""

from __future__ import annotations

from typing import Literal, Self

from pydantic import model_validator

from tasks.settings import names
from tasks.settings.data import Assets, Clean, Convert, Source, Tokenize, WebFile, World
from tasks.settings.export import Export
from tasks.settings.model import LEAKY_KINDS, OTHER_MODELS, FfnKind, Model
from tasks.settings.runtime import Endpoints, Folders, Runtime
from tasks.settings.scoring import Ablation, Compare, Evaluate, LanguageRatio, Report
from tasks.settings.section import Section, Seed
from tasks.settings.training import (
    ContinueFrom,
    Dpo,
    OnPolicy,
    Optim,
    Pretrain,
    RlSet,
    RlSettings,
    Sft,
    Train,
    Variant,
)

__all__ = [
    "Section",
    "WebFile",
    "Source",
    "World",
    "Convert",
    "Assets",
    "Clean",
    "Tokenize",
    "Model",
    "FfnKind",
    "LEAKY_KINDS",
    "OTHER_MODELS",
    "Optim",
    "Train",
    "ContinueFrom",
    "Pretrain",
    "Variant",
    "Sft",
    "Dpo",
    "OnPolicy",
    "RlSet",
    "RlSettings",
    "Evaluate",
    "Ablation",
    "LanguageRatio",
    "Export",
    "Compare",
    "Report",
    "Folders",
    "Endpoints",
    "Runtime",
    "STAGES",
    "DATA_STAGES",
    "StageName",
    "PipelineRecipe",
    "SteelRun",
]

STAGES = (
    "download",
    "convert",
    "clean",
    "tokenize",
    "pretrain",
    "sft",
    "dpo",
    "rl",
    "evaluate",
    "export",
    "report",
)
DATA_STAGES = STAGES[: STAGES.index("tokenize") + 1]
"""What every study begins with."""
StageName = Literal[
    "download", "convert", "clean", "tokenize", "pretrain", "sft", "dpo", "rl", "evaluate", "export", "report"
]


class PipelineRecipe(Section):
    """What the flow `steel` makes: everything of a run but its studies and how it is executed."""

    profile: str
    """Name of the profile."""
    seed: Seed = 1234
    """Seed of everything that is random, but for the demo world and the ablation's trainings."""
    sources: dict[str, Source] = {}
    """Every data set of the run: pre-training sources, SFT and preference sets, benchmarks."""
    world: World = World()
    """The generated demo world."""
    convert: Convert = Convert()
    """From downloaded files to records."""
    clean: Clean = Clean()
    """Filters, deduplication and decontamination."""
    tokenize: Tokenize = Tokenize()
    """The tokenizer and the shards."""
    model: Model = Model()
    """Geometry of the network."""
    pretrain: Pretrain = Pretrain(steps=1000)
    """Pre-training."""
    sft: Sft = Sft()
    """Supervised fine-tuning."""
    dpo: Dpo = Dpo()
    """Preference training."""
    rl: RlSettings = RlSettings()
    """Reinforcement learning."""
    evaluate: Evaluate = Evaluate()
    """Benchmarks."""
    export: Export = Export()
    """Forms in which the last model leaves."""
    report: Report = Report()
    """The report's sample generations."""
    keep_trained_on_code_change: bool = False
    """Keep finished trainings when the code changes. For big profiles: an edited line in the trainer must not throw
    away a month of training."""

    @model_validator(mode="after")
    def _names(self) -> Self:
        given = [(name, "source") for name in self.sources] + [
            (name, "variant") for name in self.sft.variants
        ]
        for name, kind in given:
            if reason := names.complaint(name, kind):
                raise ValueError(reason)
        return self

    @model_validator(mode="after")
    def _benchmarks(self) -> Self:
        known = self.using("benchmark")
        for name in self.evaluate.benchmarks:
            if name not in known:
                raise ValueError(
                    f"evaluate.benchmarks names {name!r}, which is no source with use: benchmark; "
                    f"there are: {', '.join(known) or 'none'}"
                )
        if strange := sorted(set(self.rl.open_benchmarks) - set(self.evaluate.benchmarks)):
            raise ValueError(f"rl.open_benchmarks names {strange[0]!r}, which evaluate.benchmarks does not")
        return self

    def using(self, *uses: str) -> dict[str, Source]:
        """The sources with one of these uses, in order."""
        return {name: s for name, s in self.sources.items() if s.use in uses}


class SteelRun(PipelineRecipe):
    """The whole tree: the pipeline, its studies, and how they are executed."""

    ablation: Ablation = Ablation()
    """The study of feed-forward layers (flow steel-ablation/ffn)."""
    language_ratio: LanguageRatio = LanguageRatio()
    """The study of the share of Chinese in fine-tuning (flow steel-ablation/language-ratio)."""
    compare: Compare = Compare()
    """Models by path, side by side (flow steel-compare)."""
    runtime: Runtime = Runtime()
    """Paths, devices, process counts: how the run is executed, never what it makes."""

    @property
    def recipe(self) -> PipelineRecipe:
        """What of it the flow `steel` makes."""
        return PipelineRecipe(**{name: getattr(self, name) for name in PipelineRecipe.model_fields})
