"""Settings of what is measured: evaluation, the ablations, the report."""

from __future__ import annotations

from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from tasks.settings.model import FfnKind
from tasks.settings.section import Distinct, Percent, Section, Seed

ProtocolName = Literal[
    "cloze",
    "paper-first-token",
    "paper-gen",
    "official-5shot",
    "lm-eval-compat",
    "lm-eval-compat-5shot",
    "open-exact",
]


class Evaluate(Section):
    """Benchmarks, and how every model is asked."""

    benchmarks: Annotated[list[str], Distinct] = []
    """Names of the sources with `use: benchmark` to ask. Empty: no evaluation."""
    protocols: Annotated[list[ProtocolName], Distinct] = Field(["cloze", "paper-first-token"], min_length=1)
    """Ways to ask. `cloze`: the likeliest option text per token; `paper-first-token`: the likeliest letter;
    `paper-gen`: a generated reply that names a letter; `official-5shot`: the benchmark's own text with five examples;
    `lm-eval-compat` and `lm-eval-compat-5shot`: the text of lm-evaluation-harness; `open-exact`: no options are shown,
    and the generated answer has to be right."""
    chat: bool = True
    """Ask tuned models in the chat template. The untrained and the base model are always asked plainly."""
    controls: Literal["none", "reported", "all"] = "reported"
    """Models that are also asked with the question removed (options-only). `reported`: the untrained, the base and
    the final one; `all`: every SFT variant, too."""
    batch_tokens: int = Field(16384, gt=0)
    """Largest number of tokens in a forward pass; it bounds memory."""
    shuffles: int = Field(0, ge=0, le=9)
    """Number of other orders of the options in which letters are asked, too: shows whether a model reads the options
    or prefers a letter."""
    submissions: Annotated[list[str], Distinct] = []
    """C-Eval benchmarks whose split `test` is answered by the base and the final model, in a file for the authors'
    server: its labels are not public."""
    checkpoints: int = Field(0, ge=0)
    """Number of questions of each subject that the exports of pretrain's chosen steps (runtime.export_every,
    runtime.export_steps) are asked, of a split that is not reported: score against tokens. 0: none."""
    max_questions: int | None = Field(None, gt=0)
    """Largest number of questions of each subject. Not set: all."""


class Compare(Section):
    """Models by path, asked the same questions (flow steel-compare). Which models: runtime.models."""

    benchmarks: Annotated[list[str], Distinct] = []
    """Names of the sources with `use: benchmark` to ask. Empty: all of the profile."""
    protocols: Annotated[list[ProtocolName], Distinct] = Field(
        ["cloze", "paper-first-token", "lm-eval-compat"], min_length=1
    )
    """Ways to ask, as in evaluate.protocols."""
    chat: Annotated[list[str], Distinct] = []
    """Names of models that are asked `cloze` in their chat template. The others are asked plainly."""
    controls: bool = True
    """Ask with the question removed, too (options-only)."""
    shuffles: int = Field(0, ge=0, le=9)
    """Number of other orders of the options in which letters are asked, too."""
    contamination: Annotated[list[str], Distinct] = []
    """Names of sources that the models may have been trained on: benchmark questions in them are found, and scores on
    these and on the other questions stand side by side."""
    max_questions: int | None = Field(None, gt=0)
    """Largest number of questions of each subject. Not set: all."""
    batch_tokens: int = Field(16384, gt=0)
    """Largest number of tokens in a forward pass; it bounds memory."""


class Ablation(Section):
    """The flow steel-ablation/ffn: kinds of feed-forward layer side by side, on this profile's shards."""

    kinds: Annotated[list[FfnKind], Distinct] = Field(
        ["dense", "token", "merge", "prefix", "paper", "released"], min_length=1
    )
    """Kinds of feed-forward layer to compare. `paper` and `released` see later tokens; a study may train them, to
    show what that does."""
    seeds: Annotated[list[Seed], Distinct] = Field([1, 2, 3], min_length=1)
    """Seeds of the fresh weights and of the order of the data; every kind is trained with each of them."""
    steps: int | None = Field(None, gt=0)
    """Number of optimizer steps of each training. Not set: as pretrain."""
    merge_segment: int | None = Field(None, gt=0)
    """Segment of the kind `merge` in tokens, for documents that are shorter than model.merge_segment. Not set:
    model.merge_segment."""
    honest_rows: int = Field(64, gt=0)
    """Number of validation rows in which the leak is measured: targets are scored with the whole row and with their
    prefix alone."""
    honest_positions: int = Field(32, gt=0)
    """Number of targets in each of these validation rows. Each costs a forward pass of half a row on average."""


class LanguageRatio(Section):
    """The flow steel-ablation/language-ratio: fine-tunings that differ in their share of Chinese."""

    arms: Annotated[list[Literal["total", "chinese"]], Distinct] = Field(["total", "chinese"], min_length=1)
    """What is constant while the share changes. `total`: the supervised tokens of both languages together;
    `chinese`: the Chinese ones, to which English ones are added, so that there is no share of 0."""
    shares: Annotated[list[Percent], Distinct] = Field([0, 20, 40, 60, 80, 100], min_length=2)
    """Shares of Chinese to compare, in per cent of the supervised tokens, rising."""
    seeds: Annotated[list[Seed], Distinct] = Field([1, 2, 3], min_length=1)
    """Seeds of the records' choice and of their order; every share is trained with each of them."""
    zh: list[str] = []
    """The Chinese data sets, sources with use: sft. Empty: all of them that have language: zh."""
    en: list[str] = []
    """The English data sets, sources with use: sft. Empty: all of them that have language: en."""
    tokens: int | None = Field(None, gt=0)
    """Number of supervised tokens of both languages together in the arm `total`. The arm `chinese` has as many Chinese
    ones as `total` has with its smallest positive share. Not set: all of the language that has fewer."""
    steps: int | None = Field(None, gt=0)
    """Number of optimizer steps of each training. Not set: as sft."""
    protocol: Literal["cloze", "paper-first-token"] = "cloze"
    """Protocol by which the benchmarks are asked."""
    flat_margin: float = Field(0.03, gt=0, lt=1)
    """Largest difference of two accuracies that is called none: 0.03 is three points. The curve is flat where every
    difference has its whole interval inside this margin."""

    @model_validator(mode="after")
    def _rising(self) -> Self:
        if self.shares != sorted(self.shares):
            raise ValueError("language_ratio.shares must rise")
        return self


class Report(Section):
    """Sample generations of the report."""

    generations: list[str] = []
    """Prompts that the last model of the run continues. Empty: none."""
    max_new_tokens: int = Field(48, gt=0)
    """Largest length of a continuation in tokens."""
