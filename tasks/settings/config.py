"""The whole run as one typed tree; every profile in deployments/profiles fills it.

Two kinds of setting, never mixed: the *recipe* (everything but `runtime`) defines the result and
enters fingerprints; `runtime` says how it is executed (paths, devices, process counts) and never
does. Unknown keys are refused everywhere, so that a typo cannot vanish.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator

STAGES = ("download", "convert", "clean", "tokenize", "pretrain", "sft", "dpo", "evaluate", "report")
ABLATION_STAGES = (*STAGES[: STAGES.index("tokenize") + 1], "ablation")
"""Of the flow steel-ablation."""
StageName = Literal[
    "download", "convert", "clean", "tokenize", "pretrain", "sft", "dpo", "evaluate", "report"
]


class Section(BaseModel):
    """Base of every section: immutable, and a typo is an error."""

    model_config = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True)


# ------------------------------------------------------------------------------------ data
class WebFile(Section):
    """One file of a source with `hub: url`."""

    url: str = Field(pattern=r"^https?://")
    path: str = ""
    """Its name in the artifact; empty: the last part of the URL's path."""
    size: int | None = Field(None, ge=0)
    """Bytes; None: what the server says."""
    sha256: str = Field("", pattern=r"^([0-9a-f]{64})?$")
    """Empty: the first download is trusted, and later ones must bring the same bytes."""


class Source(Section):
    """One data set: where it comes from, what it is for, and which reader understands it."""

    entry: str = ""
    """Name in tasks/download/registry.yaml: that entry gives every field that is not set here."""
    hub: Literal["demo", "folder", "huggingface", "modelscope", "url"] = "folder"
    """`demo`: made by Steel and served on loopback; `folder`: below runtime.folders."""
    dataset: str = ""
    """Dataset id on the hub, or the folder's path below one of runtime.folders; not for `url`."""
    below: Literal["sources", "posttrain", "benchmarks"] | None = None
    """For `folder`: which of runtime.folders; None goes by `use`."""
    revision: str = ""
    """On a hub: branch, tag or commit; a commit makes the run repeatable. Empty: the default branch."""
    files: list[str] = ["**"]
    """Glob patterns of the wanted files."""
    unpack: list[str] = []
    """Glob patterns of the wanted files inside the zip and tar archives among them; empty: left packed."""
    urls: list[WebFile] = []
    """For `url`: the files."""
    reader: str
    """Name of the reader in tasks/convert/readers."""
    use: Literal["pretrain", "sft", "preference", "benchmark"] = "pretrain"
    language: Literal["zh", "en", "code", "mixed"] = "zh"
    options: dict[str, Any] = {}
    """Reader options, such as {"subjects": [...]} of a benchmark or {"min_votes": 100} of zhihu."""
    licence: str = ""
    size: int | None = Field(None, ge=0)
    """About how many bytes there are to fetch; for people, never checked."""
    gated: bool = False
    """Its terms must be accepted on the hub, by the account whose token is used."""
    manual: str = ""
    """For `folder`: how a person gets the files, where no program may."""
    note: str = ""

    @model_validator(mode="after")
    def _somewhere(self) -> Source:
        if (self.hub == "url") != bool(self.urls) or (self.hub != "url") != bool(self.dataset):
            raise ValueError("give dataset, or urls with hub: url")
        return self


class World(Section):
    """The demo world that Steel generates: how much of it, and how dirty."""

    seed: int = 20250211
    size: Literal["full", "small"] = "full"
    """`small` is for the smoke profile: fewer wordings and documents, the same relations."""


class Convert(Section):
    max_quarantined_share: float = Field(0.2, ge=0, le=1)
    """Above this share of unreadable records in a source the run stops with a summary."""
    max_chars: int = Field(2_000_000, gt=0)
    """A longer record is quarantined, never cut silently."""
    part_bytes: int = Field(64 << 20, gt=0)
    """A part of a source's records holds at most so many bytes (or one longer record)."""
    job_bytes: int = Field(256 << 20, gt=0)
    """JSON lines files above this size are converted in several jobs."""


class Assets(Section):
    """The language model behind the perplexity filter, trained from the converted records."""

    models: Literal["train", "folder"] = "train"
    """`train` them in the run, or take those in runtime.folders.models."""
    sources: list[str] | None = None
    """For `train`: the pre-training sources they learn from; None: all. A new source among them changes
    the models, and so makes every source be cleaned again: name a few when more data is to come."""
    vocab_size: int = 2000
    order: int = Field(3, ge=2, le=5)
    max_chars: int = 1_000_000
    """Characters of seed corpus used."""


class Clean(Section):
    recipe: Literal["steel", "paper", "original-yaml"] = "steel"
    """A recipe set in tasks/clean/recipes: <recipe>-text.yaml, -dialogue.yaml, -code.yaml."""
    assets: Assets = Assets()
    trace_examples: int = 10
    """Before/after examples kept per operator."""
    dedup_min_chars: int = 100
    """Shorter texts are deduplicated exactly only: shingles of a short text say little."""
    ngram: int = Field(13, ge=4)
    """Decontamination: characters (zh) or words (en) of overlap with a benchmark question."""
    decontaminate: Literal["drop", "report"] = "drop"
    """What happens to records that hold a benchmark question; `report` keeps and counts them."""


class Tokenize(Section):
    tokenizer: Literal["train", "folder"] = "train"
    """`train` a BPE in the run, or take the one in runtime.folders.tokenizer."""
    vocab_size: int = Field(4096, ge=260)
    """For `train`: the size of the vocabulary, special tokens included (256 bytes and 3 are given)."""
    merge_han: bool = False
    """For `train`: may a token span several Chinese characters? A small corpus made from templates
    would otherwise turn whole phrases into one token."""
    max_token_bytes: int = Field(16, ge=4)
    """For `train`: no token is longer than so many UTF-8 bytes."""
    block_size: int = Field(2048, gt=0)
    """Tokens a model sees at once; a block holds block_size + 1."""
    val_share: float = Field(0.01, ge=0, lt=0.5)
    """Share of documents per source held out for validation loss."""
    weights: dict[str, float] = {}
    """Source -> how many times it is seen per epoch (default 1): 0.5 is every second block once, 2.5 every
    block twice and every second one a third time. The counts are exact; 0 leaves a source out."""


# ----------------------------------------------------------------------------------- model
FfnKind = Literal["dense", "token", "prefix", "merge", "paper", "released"]
LEAKY_KINDS = ("paper", "released")
"""Kinds of FFN that see the future; model.steel has the same list, but planning must not load torch."""


class Model(Section):
    """Geometry, under transformers' names; model.steel.SteelConfig documents each."""

    hidden_size: int = 1792
    num_hidden_layers: int = 18
    num_attention_heads: int = 32
    num_key_value_heads: int = 32
    ffn: FfnKind = "token"
    expert: Literal["double_swiglu", "swiglu"] = "double_swiglu"
    num_experts: int = 6
    slots_per_expert: int = 1
    expert_width: int | None = None
    merge_segment: int = Field(256, gt=0)
    allow_future_leakage: bool = False
    vocab_size: int | None = None
    """None: the tokenizer's size, rounded up to a multiple of 64."""
    rope_theta: float = 1_000_000.0
    max_position_embeddings: int = 32768
    initializer_range: float = 0.02
    embedding_initializer_range: float | None = None
    embedding_multiplier: float = 1.0
    tie_word_embeddings: bool = False

    @model_validator(mode="after")
    def _no_leak_unasked(self) -> Model:
        if self.ffn in LEAKY_KINDS and not self.allow_future_leakage:
            raise ValueError(
                f"ffn: {self.ffn} shows later tokens, the answer among them, to every position; its loss means nothing "
                "for generation. Choose token, prefix or merge, or set allow_future_leakage: true to study it."
            )
        return self


class Optim(Section):
    lr: float = Field(3e-4, gt=0)
    betas: tuple[float, float] = (0.9, 0.95)
    eps: float = 1e-8
    weight_decay: float = 0.05
    """Not applied to norms, biases, the router's phi and scale."""
    grad_clip: float = 1.0
    schedule: Literal["wsd", "cosine", "linear"] = "wsd"
    warmup_steps: int = 100
    decay_share: float = Field(0.6, ge=0, le=1)
    """wsd: the last share of the steps in which lr falls linearly to min_lr_ratio · lr."""
    min_lr_ratio: float = 0.0
    z_loss: float = 0.0


class Train(Section):
    """What every trained stage has."""

    optim: Optim = Optim()
    steps: int | None = Field(None, gt=0)
    """Optimizer steps; or give epochs. Choose one."""
    epochs: float | None = Field(None, gt=0)
    batch_size: int = Field(8, gt=0)
    """Global: blocks (or pairs) per optimizer step, over all ranks and micro-steps."""
    precision: Literal["auto", "bf16", "fp32"] = "auto"
    """`auto`: bf16 where the device computes it natively, else fp32."""
    log_every: int = 10
    eval_every: int = 100
    save_every: int = 200
    """Steps between checkpoints; a crash loses at most so many."""

    @model_validator(mode="after")
    def _one_length(self) -> Train:
        if (self.steps is None) == (self.epochs is None):
            raise ValueError("give either steps or epochs. Choose one.")
        return self


class ContinueFrom(Section):
    """The run that a training goes on from, instead of starting afresh."""

    run: str
    """The parent: the first digits of its fingerprint, or the path of its artifact or work folder."""
    step: int | Literal["latest"] = "latest"
    """A step of which it keeps a checkpoint. `pretrain.steps` and `epochs` count from the parent's start."""
    on_changed: Literal["refuse", "keep"] = "refuse"
    """Where a source's shards are no longer the parent's: stop, or go on with the parent's shards of it."""

    @field_validator("run", mode="before")
    @classmethod
    def _digits(cls, value: Any) -> Any:
        return str(value) if isinstance(value, int) else value  # a prefix that happens to be a number


class Pretrain(Train):
    continue_from: ContinueFrom | None = None


class Variant(Section):
    """One SFT mixture: data set -> share of its records to take (1.0 = all, 0.2 = a fifth)."""

    mixture: dict[str, float]
    note: str = ""


class Sft(Section):
    train: Train = Train(epochs=1)
    max_tokens: int = 768
    """A longer example keeps its reply's head; what was cut is counted."""
    packed_tokens: int = 768
    """Tokens per packed row."""
    variants: dict[str, Variant] = {}
    select_protocol: Literal["cloze", "paper-first-token"] = "cloze"
    """The variant with the best accuracy by this protocol on the `select` split goes on to DPO."""


class Dpo(Section):
    train: Train = Train(epochs=1)
    beta: float = 0.1
    nll_weight: float = 0.0
    """Weight of an extra length-normalised NLL term on the chosen reply."""
    max_tokens: int = 768
    mixture: dict[str, float] = {}
    """Preference set -> share of its pairs."""
    zh_per_en: float | None = None
    """If set, English pairs are thinned to this many Chinese pairs per English one."""
    held_out: int = 300
    """Pairs kept out of training to measure the effect."""


class Evaluate(Section):
    benchmarks: list[str] = []
    """Names of sources with use: benchmark."""
    protocols: list[Literal["cloze", "paper-first-token"]] = ["cloze", "paper-first-token"]
    chat: bool = True
    """Ask tuned models in the chat template; the untrained and base models are asked plainly."""
    controls: Literal["none", "reported", "all"] = "reported"
    """Which models are also asked with the question removed (options-only): `reported` are the untrained,
    the base and the final one; `all` adds every SFT variant."""
    batch_tokens: int = 16384
    max_questions: int | None = None


class Ablation(Section):
    """The flow steel-ablation/ffn: kinds of feed-forward layer side by side, on this profile's shards."""

    kinds: list[FfnKind] = [
        "dense",
        "token",
        "merge",
        "prefix",
        "paper",
        "released",
    ]
    """`paper` and `released` leak the future; here they may be trained, to show what that does."""
    seeds: list[int] = Field([1, 2, 3], min_length=1)
    """Of the fresh weights and the order of data; every kind gets each."""
    steps: int | None = Field(None, gt=0)
    """Optimizer steps of each training; None: as many as pretrain's."""
    merge_segment: int | None = Field(None, gt=0)
    """Of the kind merge, where documents are shorter than the model's own segment; None: the model's."""
    honest_rows: int = Field(64, gt=0)
    """Validation rows whose targets are also scored from their prefix alone,"""
    honest_positions: int = Field(32, gt=0)
    """at so many places of each row."""


class Report(Section):
    generations: list[str] = []
    """Prompts for the sample generations."""
    max_new_tokens: int = 48


# --------------------------------------------------------------------------------- runtime
class Folders(Section):
    """Local data, for sources with hub: folder."""

    sources: Path | None = None
    posttrain: Path | None = None
    tokenizer: Path | None = None
    models: Path | None = None
    """For clean.assets.models: folder. <lang>.sp.model and <lang>.arpa.bin."""
    benchmarks: Path | None = None


class Endpoints(Section):
    """Where the hubs are; mirrors are tried in this order. The token goes to each that is asked."""

    huggingface: list[str] = Field(["https://huggingface.co"], min_length=1)
    modelscope: list[str] = Field(["https://modelscope.cn"], min_length=1)


class Runtime(Section):
    """How the run is executed. Nothing here may change what an artifact means."""

    artifacts: Path = Path("artifacts")
    device: Literal["auto", "cpu", "cuda"] = "auto"
    nproc: int | None = Field(None, gt=0)
    """Training ranks on this node; None: one per GPU, or 2 on a CPU."""
    micro_batch_size: int | None = Field(None, gt=0)
    """Blocks per rank and micro-step; None: batch_size / ranks."""
    threads_per_rank: int = Field(1, gt=0)
    compile: bool = False
    """torch.compile each block."""
    attention: Literal["auto", "flash_attention_4", "flash_attention_2", "varlen", "sdpa", "eager"] = "auto"
    """What computes attention in training; `auto`: the best that the machine has. One that is missing is refused."""
    kernels: Literal["auto", "off", "on"] = "auto"
    """The fused operators of kernels/: `auto` takes them on CUDA where triton is installed."""
    parallel_trainings: int = Field(1, gt=0)
    """SFT variants trained side by side."""
    sft_nproc: int | None = Field(None, gt=0)
    """Ranks of an SFT or DPO training; None: as nproc."""
    data_workers: int = Field(2, gt=0)
    """Processes for converting, cleaning, tokenizing and scoring."""
    engine: Literal["local", "ray"] = "local"
    """Where partitions of convert, clean and tokenize are worked on: those processes, or Ray's workers."""
    ray_address: str | None = None
    """For `ray`: an existing cluster that shares the artifacts' file system; None starts one here."""
    keep_checkpoints: int = Field(2, gt=0)
    """The newest ones are kept; those of pre-training also in its artifact, to continue from."""
    verify_shards: Literal["start", "off"] = "start"
    """`start`: hash every shard before the first step of a training, each rank its share."""
    max_restarts: int = Field(0, ge=0)
    """torchrun's own restarts after a rank died."""
    grace_seconds: float = Field(120.0, gt=0)
    """How long a training that is told to stop may take to save: longer than two saves take."""
    watchdog_seconds: float = Field(1800.0, ge=0)
    """Without a step for so long the ranks of a training log where they are, end, and are started again; 0: never."""
    backend_timeout_seconds: float | None = Field(None, gt=0)
    """How long a collective may wait for a rank; None: torch's own (gloo 30 minutes, NCCL 10)."""
    keep_every: int = Field(0, ge=0)
    """Of a training's checkpoints every so many is kept for good, beside the newest (0: none)."""
    encoder: Literal["auto", "fastokens", "tokenizers"] = "auto"
    """What turns text into ids, with the same result: `auto` is fastokens where it agrees with tokenizers."""
    verify: Literal["size", "full"] = "size"
    """How artifacts are checked before they are reused: sizes, or sha256 of every file."""
    folders: Folders = Folders()
    endpoints: Endpoints = Endpoints()
    downloads: int = Field(4, gt=0)
    """Files of one source that are fetched side by side."""


class SteelRun(Section):
    """The tree itself."""

    profile: str
    seed: int = 1234
    sources: dict[str, Source] = {}
    """Every data set of the run: pre-training sources, SFT and preference sets, benchmarks."""
    world: World = World()
    convert: Convert = Convert()
    clean: Clean = Clean()
    tokenize: Tokenize = Tokenize()
    model: Model = Model()
    pretrain: Pretrain = Pretrain(steps=1000)
    sft: Sft = Sft()
    dpo: Dpo = Dpo()
    evaluate: Evaluate = Evaluate()
    report: Report = Report()
    ablation: Ablation = Ablation()
    keep_trained_on_code_change: bool = False
    """Big profiles: a changed line in the trainer must not throw away a month (on_code_change: keep)."""
    runtime: Runtime = Runtime()

    def using(self, *uses: str) -> dict[str, Source]:
        """The sources with one of these uses, in order."""
        return {name: s for name, s in self.sources.items() if s.use in uses}
