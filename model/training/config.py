"""The engine's own configuration: what one training run is, as the JSON file it is started with.

Plain dataclasses, because the engine runs where pydantic may be missing, and without torch, because whoever starts the
engine builds them too. Unknown keys, wrong types, numbers out of bounds and contradictions are refused when the file is
read, with one line that names the place. tasks.settings.config has the same names and defaults (a test compares them).
"""

from __future__ import annotations

import dataclasses
import json
import math
import types
import typing
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any

OBJECTIVES = ("pretrain", "sft", "dpo", "logprobs", "grpo")
OPTIMIZERS = ("adamw", "muon")
SCHEDULES = ("wsd", "cosine", "linear", "constant")
PRECISIONS = ("auto", "bf16", "fp32")
DEVICES = ("auto", "cpu", "cuda")
ATTENTIONS = ("auto", "flash_attention_4", "flash_attention_2", "varlen", "sdpa", "eager")
KERNELS = ("auto", "off", "on")
CHECKPOINTING = ("none", "selective", "full")
FLOAT8 = ("off", "tensorwise", "rowwise")
EXPORT_DTYPES = ("float32", "bfloat16")
ADVANTAGES = ("group", "right")
DPO_LOSSES = ("sigmoid", "sigmoid_norm", "ipo")
POSITIVE, NOT_NEGATIVE, COUNT, GROUP = "(0, inf)", "[0, inf)", "[1, inf)", "[2, inf)"
SHARE, DECAY, INSIDE, FLIPPED = "[0, 1]", "[0, 1)", "(0, 1)", "[0, 0.5)"
SECONDS, SOME_SECONDS = "[0, 1e9]", "(0, 1e9]"
"""Bounds of numbers, written as intervals: a bracket takes the end in, a parenthesis leaves it out. 1e9 seconds are 31
years: clocks of C have an end."""


class ConfigError(ValueError):
    """A configuration that cannot be run: one clear line."""


@dataclass(frozen=True)
class FileConfig:
    """One shard (pretrain, sft), one file of pairs (dpo, logprobs) or of prompts (grpo)."""

    path: str
    repeats: int = 1
    """How many times each of its rows is seen per epoch."""
    extra_rows: int = 0
    """How many of its rows, evenly spread, are seen once more per epoch (shards.row_of)."""
    source: str = ""
    """Name under which its loss is reported."""
    sources: list[str] = field(default_factory=list)
    """Of a shard that says every document's source by a number: the names, by number; "" is not reported."""
    rows: int | None = None
    """Known from the manifest; None: read from the file."""
    digest: str | None = None
    """Content hash from the manifest; None: computed when the loader starts."""


@dataclass(frozen=True)
class DataConfig:
    files: list[FileConfig] = field(default_factory=list)
    val_files: list[FileConfig] = field(default_factory=list)
    verify: bool = True
    """Hash every file that has a digest before the first step, each rank its share of them."""


@dataclass(frozen=True)
class OptimConfig:
    """The optimizer and the schedule of its learning rate."""

    name: str = "adamw"
    """`muon`: Muon for the matrices of the blocks, AdamW for all else (model/training/muon.py)."""
    lr: Annotated[float, POSITIVE] = 3e-4
    betas: Annotated[list[float], DECAY] = field(default_factory=lambda: [0.9, 0.95])
    eps: Annotated[float, POSITIVE] = 1e-8
    adamw_lr: Annotated[float | None, POSITIVE] = None
    """muon: the largest rate of what AdamW updates; the schedule is the same. None: lr."""
    momentum: Annotated[float, DECAY] = 0.95
    """muon: decay of the average of the gradient (Nesterov's form)."""
    weight_decay: Annotated[float, NOT_NEGATIVE] = 0.05
    """Not applied to norms, biases, phi and scale."""
    decay_embeddings: bool = True
    grad_clip: Annotated[float, NOT_NEGATIVE] = 1.0
    """Largest norm of the whole gradient; 0: no clipping."""
    schedule: str = "wsd"
    warmup_steps: Annotated[int, NOT_NEGATIVE] = 100
    """Steps in which the rate rises linearly to lr; 0: none."""
    decay_share: Annotated[float, SHARE] = 0.6
    """wsd: the last share of all steps, in which the rate falls linearly."""
    min_lr_ratio: Annotated[float, SHARE] = 0.0
    """The rate at the end, as a share of lr."""
    max_skipped: Annotated[int, NOT_NEGATIVE] = 0
    """So many steps in a row may be left out whose gradient is not finite (or a spike); 0: the first one ends the run."""
    spike_factor: Annotated[float, NOT_NEGATIVE] = 0.0
    """With max_skipped: a loss or gradient norm of more than so many times the mean of the last 128 steps is a spike; 0:
    none is."""
    z_loss: Annotated[float, NOT_NEGATIVE] = 0.0
    """Weight of logsumexp^2 per target (pretrain, sft)."""


@dataclass(frozen=True)
class DpoConfig:
    beta: Annotated[float, POSITIVE] = 0.1
    nll_weight: Annotated[float, NOT_NEGATIVE] = 0.0
    """Weight of the chosen reply's negative log-likelihood per token."""
    loss: str = "sigmoid"
    label_smoothing: Annotated[float, FLIPPED] = 0.0
    """Share of the pairs that are taken to be the wrong way round."""
    reference: str = ""
    """The file that the objective `logprobs` wrote with the reference model."""


@dataclass(frozen=True)
class RlConfig:
    """Reinforcement learning (grpo)."""

    group: Annotated[int, GROUP] = 8
    """Replies sampled to each prompt."""
    max_new_tokens: Annotated[int, COUNT] = 64
    """Of a reply."""
    inner_steps: Annotated[int, COUNT] = 1
    """Updates on the same replies."""
    clip_low: Annotated[float, INSIDE] = 0.2
    clip_high: Annotated[float, POSITIVE] = 0.28
    """The ratio's part in the loss is clipped to 1 - clip_low ... 1 + clip_high."""
    kl_weight: Annotated[float, NOT_NEGATIVE] = 0.0
    """Of the divergence from the start model; 0: no reference model."""
    advantage: str = "group"
    mask_truncated: bool = True
    """Replies without an end token are not trained on."""


@dataclass(frozen=True)
class ParallelConfig:
    """How the ranks share the model: `replicate` copies of it, each cut into `shard` parts (HSDP)."""

    replicate: Annotated[int, COUNT] = 1
    shard: Annotated[int | None, COUNT] = None
    """None: all ranks of a copy."""


@dataclass(frozen=True)
class TrainConfig:
    """One run of the engine."""

    objective: str
    work_dir: str
    """Metrics, checkpoints and the export go here."""
    model: dict[str, Any] | None = None
    """Start from fresh weights: SteelConfig's fields, or `model_type` and the fields of another model of transformers."""
    init_from: str | None = None
    """An export folder, or any model folder of transformers: start from its weights. Choose model or init_from."""
    continue_from: str | None = None
    """A checkpoint folder of another run: go on from its step, on its data and what is listed behind it. Steps count
    on; once this run has checkpoints of its own, it resumes from those."""
    tokenizer_dir: str | None = None
    """Copied into the export, and gives the special tokens' ids."""
    data: DataConfig = field(default_factory=DataConfig)
    batch_size: Annotated[int, COUNT] = 8
    """Blocks, pairs or prompts per optimizer step over all ranks."""
    micro_batch_size: Annotated[int | None, COUNT] = None
    """Of one rank and micro-step; None: all of the rank's share at once."""
    steps: Annotated[int | None, COUNT] = None
    epochs: Annotated[float | None, POSITIVE] = None
    """Choose steps or epochs."""
    optim: OptimConfig = field(default_factory=OptimConfig)
    dpo: DpoConfig = field(default_factory=DpoConfig)
    rl: RlConfig = field(default_factory=RlConfig)
    neftune_alpha: Annotated[float, NOT_NEGATIVE] = 0.0
    """Of sft: the noise on the embeddings (model/training/neftune.py); 0: none."""
    precision: str = "auto"
    """`auto`: bf16 where the device computes it natively, else fp32."""
    float8: str = "off"
    """What the blocks' linear layers are scaled by in FP8 products (torchao); needs a GPU with FP8. Not run yet."""
    compile: bool = False
    activation_checkpointing: str = "none"
    """What is computed a second time in the backward pass instead of kept: `selective`, every second block; `full`, every
    block. The numbers stay the same."""
    reshard_after_forward: bool = False
    """Drop a block's gathered weights after its forward pass, too, and gather them again for the backward pass."""
    parallel: ParallelConfig = field(default_factory=ParallelConfig)
    expandable_segments: bool = False
    """CUDA's allocator grows its segments instead of making new ones: less memory lost to fragmentation."""
    deterministic: bool = False
    """Refuse an operation that has no deterministic form; false: use those forms where there are, and warn."""
    attention: str = "auto"
    """What computes packed rows (model/steel/attention_choice.py); `auto`: the best that the machine has."""
    kernels: str = "auto"
    """The fused operators of kernels/: `auto` takes them on CUDA where triton is installed."""
    seed: int = 1234
    """Of the fresh weights and the order of the data."""
    device: str = "auto"
    log_every: Annotated[int, COUNT] = 10
    """Steps between two lines of metrics."""
    detail_every: Annotated[int, NOT_NEGATIVE] = 50
    """Steps between two lines of what costs more to know: norms by group, loss by source, the experts' use, waiting
    ranks, memory of all (0: none)."""
    peak_tflops: Annotated[float | None, POSITIVE] = None
    """Peak of a device in the precision of the training, for `mfu`; None: BF16 by a table of GPUs, and none for a CPU."""
    profile_steps: Annotated[list[int] | None, COUNT] = None
    """[first, last] step, from 1, that is traced by torch.profiler (model/training/trace.py)."""
    eval_every: Annotated[int, NOT_NEGATIVE] = 100
    """Validation loss every so many steps and at the end (0: at the end only)."""
    save_every: Annotated[int, COUNT] = 200
    keep_checkpoints: Annotated[int, COUNT] = 2
    keep_every: Annotated[int, NOT_NEGATIVE] = 0
    """Every so many saves one is kept for good (0: none)."""
    keep_final: bool = False
    """Save a checkpoint after the last step, too, and keep the one with which the decay of wsd begins: another run can
    continue from them."""
    export_dtype: str = "float32"
    export_every: Annotated[int, NOT_NEGATIVE] = 0
    """Every so many steps the model is exported to exports/step-…, beside the training (0: at the end only)."""
    export_steps: Annotated[list[int], COUNT] = field(default_factory=list)
    """Steps at which it is, too."""
    allow_changed: list[str] = field(default_factory=list)
    """Fields that define the result (`optim.lr`, `precision`; model/training/resume.py lists them) and may differ from
    those of the checkpoint to go on from; any other that differs is refused."""
    watchdog_seconds: Annotated[float, SECONDS] = 1800.0
    """Without a step, or a batch of the validation, for so long all ranks log where they are and end, so that torchrun
    starts them again (0: never). More than the first step takes, with what it compiles."""
    backend_timeout_seconds: Annotated[float | None, SOME_SECONDS] = None
    """How long a collective may wait for a rank; more than a save takes. None: torch's own (30 minutes for gloo, 10 for NCCL)."""

    def __post_init__(self) -> None:
        _check_bounds(self, "")
        _one_of("objective", self.objective, OBJECTIVES)
        _one_of("optim.schedule", self.optim.schedule, SCHEDULES)
        _one_of("precision", self.precision, PRECISIONS)
        _one_of("device", self.device, DEVICES)
        _one_of("attention", self.attention, ATTENTIONS)
        _one_of("kernels", self.kernels, KERNELS)
        _one_of("optim.name", self.optim.name, OPTIMIZERS)
        _one_of("float8", self.float8, FLOAT8)
        _one_of("activation_checkpointing", self.activation_checkpointing, CHECKPOINTING)
        _one_of("export_dtype", self.export_dtype, EXPORT_DTYPES)
        _one_of("dpo.loss", self.dpo.loss, DPO_LOSSES)
        if self.dpo.label_smoothing and self.dpo.loss == "ipo":
            raise ConfigError("dpo.label_smoothing is not for the loss ipo")
        if (self.model is None) == (self.init_from is None):
            raise ConfigError("give model or init_from. Choose one.")
        if not self.data.files:
            raise ConfigError("data.files is empty: there is nothing to read")
        if self.objective != "logprobs" and (self.steps is None) == (self.epochs is None):
            raise ConfigError("give steps or epochs. Choose one.")
        if self.objective == "dpo" and not self.dpo.reference:
            raise ConfigError(
                "dpo.reference is missing: run the objective logprobs with the reference model first"
            )
        if self.neftune_alpha and self.objective != "sft":
            raise ConfigError("neftune_alpha is for the objective sft")
        if self.objective == "grpo":
            self._check_rl()
        if self.optim.z_loss and self.objective in ("dpo", "grpo"):
            raise ConfigError(
                f"optim.z_loss is for the objectives pretrain and sft, not for {self.objective}"
            )
        if self.objective in ("dpo", "logprobs", "grpo") and self.init_from is None:
            raise ConfigError(f"the objective {self.objective} needs a trained model: give init_from")
        if self.objective in ("dpo", "logprobs") and any(file.extra_rows for file in self.data.files):
            raise ConfigError(
                f"extra_rows of data.files is for blocks; the objective {self.objective} reads pairs"
            )
        span = self.profile_steps
        if span is not None and (len(span) != 2 or span[0] > span[1]):
            raise ConfigError(
                f"profile_steps must be the first and the last step, from 1, such as [100, 102]: {span}"
            )
        if self.continue_from is not None and self.objective != "pretrain":
            raise ConfigError(
                f"continue_from is for the objective pretrain; {self.objective} takes init_from"
            )
        if self.optim.spike_factor and not self.optim.max_skipped:
            raise ConfigError(
                "optim.spike_factor needs optim.max_skipped: how many steps in a row may be left out"
            )
        if len(self.optim.betas) != 2:
            raise ConfigError("optim.betas needs two numbers")
        self._refuse_options()

    def _refuse_options(self) -> None:
        """Options that cannot go together."""
        if self.optim.adamw_lr is not None and self.optim.name != "muon":
            raise ConfigError("optim.adamw_lr is for optim.name muon; AdamW alone has optim.lr")
        if self.float8 != "off":
            for name, value in (("precision", "fp32"), ("device", "cpu")):
                if getattr(self, name) == value:
                    raise ConfigError(f"float8: {self.float8} and {name}: {value} cannot go together")

    def _check_rl(self) -> None:
        _one_of("rl.advantage", self.rl.advantage, ADVANTAGES)
        if self.tokenizer_dir is None:
            raise ConfigError("the objective grpo needs tokenizer_dir: replies are graded as text")
        if self.optim.max_skipped or self.data.val_files:
            raise ConfigError("optim.max_skipped and data.val_files are not for the objective grpo")
        if any(file.repeats != 1 or file.extra_rows for file in self.data.files):
            raise ConfigError("repeats and extra_rows of data.files are not for the objective grpo")


def unshardable(parallel: Any, world_size: int) -> str:
    """Why so many ranks cannot share the model as `parallel` (replicate, shard) says; "" if they can."""
    if parallel.shard is None:
        if world_size % parallel.replicate == 0:
            return ""
        return f"parallel.replicate {parallel.replicate} does not divide {world_size} ranks"
    if parallel.replicate * parallel.shard == world_size:
        return ""
    return f"parallel: {parallel.replicate} copies of {parallel.shard} shards are not {world_size} ranks"


def undealable(batch_size: int, world_size: int, micro_batch_size: int | None, unit: str = "blocks") -> str:
    """Why a batch cannot be dealt to so many ranks in whole micro-batches; "" if it can."""
    share, rest = divmod(batch_size, world_size)
    if rest:
        return f"batch_size {batch_size} cannot be shared evenly by {world_size} ranks"
    if micro_batch_size and share % micro_batch_size:
        return f"{share} {unit} a rank are no multiple of micro_batch_size {micro_batch_size}"
    return ""


def from_json(path: str | Path) -> TrainConfig:
    """Read and check a configuration file."""
    try:
        values = json.loads(Path(path).read_text("utf-8"))
    except FileNotFoundError:
        raise ConfigError(f"there is no configuration file {path}") from None
    except OSError as error:
        raise ConfigError(f"the configuration file {path} cannot be read: {error.strerror}") from None
    except (ValueError, RecursionError) as error:  # UTF-8's errors among them
        raise ConfigError(f"{path} is not JSON: {error}") from None
    return from_dict(values)


def from_dict(values: dict[str, Any]) -> TrainConfig:
    """The same from parsed JSON."""
    _refuse_infinite(values, "")
    return _build(TrainConfig, values, "")


def to_dict(config: TrainConfig) -> dict[str, Any]:
    """JSON again, with every default spelled out."""
    return dataclasses.asdict(config)


def _build(cls: type, values: Any, where: str) -> Any:
    if not isinstance(values, dict):
        raise ConfigError(
            f"{where.removesuffix('.') or 'the configuration'} must be an object of named values"
        )
    hints = typing.get_type_hints(cls)
    for key in values:
        if key not in hints:
            raise ConfigError(f"unknown key {where}{key}; known are {', '.join(hints)}")
    missing = [
        f.name
        for f in dataclasses.fields(cls)
        if f.name not in values
        and f.default is dataclasses.MISSING
        and f.default_factory is dataclasses.MISSING
    ]
    if missing:
        raise ConfigError(f"{where}{missing[0]} is missing")
    return cls(**{key: _value(hints[key], value, f"{where}{key}") for key, value in values.items()})


def _value(hint: Any, value: Any, where: str) -> Any:
    if isinstance(hint, type) and dataclasses.is_dataclass(hint):
        return _build(hint, value, f"{where}.")
    origin = typing.get_origin(hint)
    if origin in (types.UnionType, typing.Union):
        if value is None:
            return None
        return _value(next(a for a in typing.get_args(hint) if a is not type(None)), value, where)
    if origin is list:
        if not isinstance(value, list | tuple):
            raise ConfigError(f"{where} must be a list")
        (item,) = typing.get_args(hint)
        return [_value(item, v, f"{where}[{i}]") for i, v in enumerate(value)]
    plain = dict if origin is dict else hint
    if plain is float and isinstance(value, int) and not isinstance(value, bool):
        try:
            return float(value)
        except OverflowError:
            raise ConfigError(f"{where} is too large a number") from None
    if not isinstance(value, plain) or (plain is int and isinstance(value, bool)):
        raise ConfigError(f"{where} must be {plain.__name__}, not {value!r}")
    return value


def _refuse_infinite(values: Any, where: str) -> None:
    """JSON as Python reads it may hold NaN and Infinity, which pass every comparison or none; of `model`, too."""
    if isinstance(values, dict):
        for key, value in values.items():
            _refuse_infinite(value, f"{where}.{key}" if where else key)
    elif isinstance(values, list):
        for i, value in enumerate(values):
            _refuse_infinite(value, f"{where}[{i}]")
    elif isinstance(values, float) and not math.isfinite(values):
        raise ConfigError(f"{where} must be a finite number, not {values}")


def _check_bounds(section: Any, where: str) -> None:
    """Every number lies in the interval that stands beside its field."""
    for name, hint in typing.get_type_hints(type(section), include_extras=True).items():
        value = getattr(section, name)
        if dataclasses.is_dataclass(value):
            _check_bounds(value, f"{where}{name}.")
        elif typing.get_origin(hint) is Annotated and value is not None:
            for each in value if isinstance(value, list) else [value]:
                _refuse_outside(hint.__metadata__[0], each, f"{where}{name}")


def _refuse_outside(interval: str, value: float, where: str) -> None:
    low, high = interval[1:-1].split(", ")
    above, below = interval.startswith("("), interval.endswith(")")
    reaches = value > float(low) if above else value >= float(low)
    stays = value < float(high) if below else value <= float(high)
    if not (reaches and stays):
        due = f"{'above' if above else 'at least'} {low}"
        if high != "inf":
            due += f" and {'below' if below else 'at most'} {high}"
        raise ConfigError(f"{where} must be {due}, not {value}")


def _one_of(name: str, value: str, choices: tuple[str, ...]) -> None:
    if value not in choices:
        raise ConfigError(f"{name}: {value} is unknown. Choose one of {', '.join(choices)}.")
