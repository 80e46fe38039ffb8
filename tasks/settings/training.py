"""Settings of what is trained: optimizer and length, pre-training, SFT, DPO and reinforcement learning."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, Literal, Self

from pydantic import Field, field_validator, model_validator

from tasks.settings.section import Decay, Section, Share


class Optim(Section):
    """The optimizer and the schedule of its learning rate. model.training.config.OptimConfig has the same fields."""

    name: Literal["adamw", "muon"] = "adamw"
    """Optimizer. `muon`: Muon for the matrices of the blocks, AdamW for embeddings, head, norms, biases and router."""
    lr: float = Field(3e-4, gt=0)
    """Largest learning rate, reached after the warm-up."""
    betas: tuple[Decay, Decay] = (0.9, 0.95)
    """Decay rates of AdamW's averages of the gradient and of its square."""
    eps: float = Field(1e-8, gt=0)
    """AdamW's epsilon."""
    adamw_lr: float | None = Field(None, gt=0)
    """For `muon`: largest learning rate of what AdamW updates; it follows the same schedule. Not set: lr."""
    momentum: float = Field(0.95, ge=0, lt=1)
    """For `muon`: decay rate of the average of the gradient."""
    weight_decay: float = Field(0.05, ge=0)
    """Decoupled weight decay. Not applied to norms, biases, and the router's phi and scale."""
    decay_embeddings: bool = True
    """Apply the weight decay to the embedding table, too."""
    grad_clip: float = Field(1.0, ge=0)
    """Largest norm of the whole gradient. 0: no clipping."""
    schedule: Literal["wsd", "cosine", "linear", "constant"] = "wsd"
    """Course of the learning rate after the warm-up. `wsd`: constant, then a linear fall over decay_share;
    `cosine` and `linear`: a fall over the whole training; `constant`: no fall."""
    warmup_steps: int = Field(100, ge=0)
    """Number of steps in which the learning rate rises linearly to lr. 0: no warm-up."""
    decay_share: float = Field(0.6, ge=0, le=1)
    """For `wsd`: share of all steps, at the end, in which the learning rate falls linearly."""
    min_lr_ratio: float = Field(0.0, ge=0, le=1)
    """Learning rate at the end, as a share of lr. Not for `constant`."""
    max_skipped: int = Field(0, ge=0)
    """Number of steps in a row that may be left out because their gradient is not finite, or a spike. 0: the first
    one ends the run."""
    spike_factor: float = Field(0.0, ge=0)
    """With max_skipped: a loss or gradient norm of more than so many times the mean of the last 128 steps is a spike.
    0: none is."""
    z_loss: float = Field(0.0, ge=0)
    """Weight of the squared logsumexp of each target's logits in the loss (pre-training and SFT). 0: none."""

    @model_validator(mode="after")
    def _one_rate(self) -> Self:
        if self.adamw_lr is not None and self.name != "muon":
            raise ValueError("adamw_lr is for name muon; AdamW alone has lr")
        return self

    @model_validator(mode="after")
    def _spikes_are_skipped(self) -> Self:
        if self.spike_factor and not self.max_skipped:
            raise ValueError("spike_factor needs max_skipped: how many steps in a row may be left out")
        return self


class Train(Section):
    """What every training has."""

    optim: Optim = Optim()
    """Optimizer and learning rate."""
    steps: int | None = Field(None, gt=0)
    """Number of optimizer steps. Give either steps or epochs."""
    epochs: float | None = Field(None, gt=0)
    """Number of passes over the data. Give either steps or epochs."""
    batch_size: int = Field(8, gt=0)
    """Number of blocks (or pairs) in an optimizer step, over all ranks and micro-steps."""
    precision: Literal["auto", "bf16", "fp32"] = "auto"
    """Precision of the computation. `auto`: bf16 where the device computes it natively, else fp32."""
    float8: Literal["off", "tensorwise", "rowwise"] = "off"
    """Compute the products of the blocks' linear layers in FP8, scaled by tensor or by row. Needs torchao and a GPU with
    FP8; it has not been run yet."""
    export_dtype: Literal["float32", "bfloat16"] = "float32"
    """Number format of the exported weights. `bfloat16` halves the export; what continues from it starts from
    rounded weights."""
    log_every: int = Field(10, gt=0)
    """Number of steps between two lines of metrics."""
    eval_every: int = Field(100, ge=0)
    """Number of steps between two validation losses; there is also one at the end. 0: only at the end."""
    save_every: int = Field(200, gt=0)
    """Number of steps between two checkpoints. A crash loses at most this many steps."""

    @model_validator(mode="after")
    def _one_length(self) -> Train:
        if (self.steps is None) == (self.epochs is None):
            raise ValueError("give either steps or epochs. Choose one.")
        return self

    @model_validator(mode="after")
    def _fp8_or_fp32(self) -> Train:
        if self.float8 != "off" and self.precision == "fp32":
            raise ValueError(f"float8: {self.float8} and precision: fp32 cannot go together")
        return self


class ContinueFrom(Section):
    """The run that a training goes on from, instead of starting afresh."""

    run: str
    """The run to continue: the first digits of its fingerprint, or the path of its artifact or work folder."""
    step: int | Literal["latest"] = "latest"
    """Step of a checkpoint that the run keeps. `pretrain.steps` and `epochs` count from that run's start."""
    on_changed: Literal["refuse", "keep"] = "refuse"
    """What happens when the shards of a source are no longer those of the run to continue. `refuse`: stop;
    `keep`: go on with that run's shards of the source."""

    @field_validator("run", mode="before")
    @classmethod
    def _digits(cls, value: Any) -> Any:
        return str(value) if isinstance(value, int) else value  # a prefix that happens to be a number


class Pretrain(Train):
    """Pre-training from fresh weights, or from another run."""

    continue_from: ContinueFrom | None = None
    """The run to continue. Not set: the training starts from fresh weights."""

    @property
    def train(self) -> Train:
        """The settings that every training has, without those of pre-training alone."""
        return Train.model_validate(self.model_dump(include=set(Train.model_fields)))


Rate = Annotated[float, Field(ge=0, le=1)]
"""A share that may be none."""
Count = Annotated[int, Field(gt=0, strict=True)]
"""A number of records."""


class Variant(Section):
    """One SFT mixture: give either mixture or counts, and zh_share with either."""

    mixture: dict[str, Share] = {}
    """Share of the records to take from each data set: 1.0 is all of them, 0.2 a fifth."""
    counts: dict[str, Count] = {}
    """Number of records to take from each data set, instead of shares. More than there are stops the run."""
    zh_share: Rate | None = None
    """Share of Chinese among the supervised tokens. The language that is above it is thinned, all its data sets alike,
    so that mixture and counts are then the most that is taken. Whole records may leave it by a point. Not set: as the
    data sets have it."""
    note: str = ""
    """A remark for the report."""

    @model_validator(mode="after")
    def _shares_or_counts(self) -> Self:
        if self.mixture and self.counts:
            raise ValueError("give either mixture (shares) or counts (numbers of records). Choose one.")
        if not self.model_fields_set & {"mixture", "counts"}:
            raise ValueError("mixture is missing: give mixture (shares) or counts (numbers of records)")
        return self

    @property
    def sets(self) -> Mapping[str, float]:
        """The data sets, with shares or numbers."""
        return self.counts or self.mixture


class Sft(Section):
    """Supervised fine-tuning: one training for each variant."""

    train: Train = Train(epochs=1)
    """Length, batch and optimizer of every variant's training."""
    max_tokens: int = Field(768, gt=1)
    """Largest length of an example in tokens. What becomes of a longer one says too_long; both fates are counted."""
    too_long: Literal["head", "drop"] = "head"
    """What becomes of an example longer than max_tokens. `head`: it loses its end; `drop`: it is left out."""
    loss_on: Literal["replies", "last_reply"] = "replies"
    """What of a dialogue is learned. `replies`: every reply; `last_reply`: the last one, the rest is its prompt."""
    neftune_alpha: float = Field(0.0, ge=0)
    """Size of the uniform noise on the embeddings in training: each number moves by at most alpha / sqrt(L d), L tokens in
    the example, d the hidden size. The NEFTune paper tries 5, 10 and 15. 0: no noise."""
    packed_tokens: int = Field(768, gt=1)
    """Number of tokens in a packed row. It is not below max_tokens, because an example is packed whole."""
    variants: dict[str, Variant] = {}
    """The mixtures to compare, by name. Empty: no fine-tuning."""
    select_protocol: Literal["cloze", "paper-first-token"] = "cloze"
    """Protocol that chooses the variant for DPO: the one with the best accuracy on a split that is never reported."""

    @model_validator(mode="after")
    def _rows_hold_examples(self) -> Sft:
        if self.packed_tokens < self.max_tokens:
            raise ValueError(
                f"packed_tokens {self.packed_tokens} is below max_tokens {self.max_tokens}: a packed row holds whole "
                "examples. Lower max_tokens, or raise packed_tokens."
            )
        return self


class RlSet(Section):
    """A data set of questions with one right answer each."""

    share: Share = 1.0
    """Share of the records to take: 1.0 is all of them."""
    reward: Literal["exact", "letter", "arithmetic", "format"] = "exact"
    """What grades a reply (model/rewards.py). `exact`: the whole reply is the answer; `letter`: it is the option's
    letter, alone or with the option; `arithmetic`: it is the number, or ends with a line `#### number`; `format`: `<think>…</think>` and then
    the right answer."""


class OnPolicy(Section):
    """Preference pairs that the model to be trained makes itself: its own wrong replies against the right answers."""

    mixture: dict[str, RlSet] = {}
    """The data sets of questions: sources with use: sft, whose last reply is the right answer. Empty: no such pairs."""
    samples: int = Field(8, ge=1)
    """Number of replies that are sampled to each prompt; the commonest wrong one is the rejected reply of a pair."""
    max_new_tokens: int = Field(64, gt=0)
    """Largest length of a sampled reply in tokens."""
    keep_share: Rate = 0.0
    """Share of the prompts that also give a pair of the right answer against the answer of another question, so that
    training keeps what the model knows."""
    alike: str = ""
    """Field of the records' meta, such as `relation`: the other question of a keep pair has the same value in it.
    Empty: it is any other."""


class Dpo(Section):
    """Preference training (DPO) of the chosen SFT variant."""

    train: Train = Train(epochs=1)
    """Length, batch and optimizer of the training."""
    beta: float = Field(0.1, gt=0)
    """Strength of the pull back to the reference model; a larger beta keeps the model closer to it."""
    nll_weight: float = Field(0.0, ge=0)
    """Weight of an extra loss on the chosen reply: the mean over pairs of its negative log-likelihood per token. 0:
    none."""
    loss: Literal["sigmoid", "sigmoid_norm", "ipo"] = "sigmoid"
    """What is minimised. `sigmoid`: the DPO paper's loss on summed log-probabilities; `sigmoid_norm`: the same on means
    per token; `ipo`: a squared distance on means per token."""
    label_smoothing: float = Field(0.0, ge=0, lt=0.5)
    """Share of the pairs that are taken to be the wrong way round. Not for `ipo`."""
    max_tokens: int = Field(768, gt=1)
    """Largest length of prompt and reply together in tokens. A longer reply loses its end; what was cut is counted."""
    mixture: dict[str, Share] = {}
    """Share of the pairs to take from each preference set. Empty: no DPO."""
    zh_per_en: float | None = Field(None, gt=0)
    """Number of Chinese pairs for each English one; surplus English pairs are left out. Not set: all are used."""
    held_out: int = Field(300, ge=0)
    """Number of pairs that are kept out of the training to measure its effect; as many again of the pairs that the
    model makes itself, at most a quarter of them."""
    on_policy: OnPolicy = OnPolicy()
    """Pairs that the start model makes itself, beside those of the mixture."""
    traits: dict[str, list[str]] = {}
    """For a preference set: phrases that mark what its chosen replies have and the others do not. The share of replies
    with any of them is measured before and after."""
    trait_tokens: int = Field(64, gt=0)
    """Largest length in tokens of the replies in which the phrases of `traits` are looked for."""
    collapse_alarm: float = Field(0.5, gt=0)
    """Fall of the chosen replies' mean log-probability per token, in nats, at which a warning is given: the training
    then unlearns what it should prefer."""

    @model_validator(mode="after")
    def _smoothed(self) -> Self:
        if self.loss == "ipo" and self.label_smoothing:
            raise ValueError("label_smoothing is not for the loss ipo")
        for name, phrases in self.traits.items():
            if not all(phrase.strip() for phrase in phrases):
                raise ValueError(f"traits.{name} has an empty phrase, which every reply contains")
        own = self.on_policy
        if own.mixture and not self.mixture:
            raise ValueError(
                "on_policy.mixture is given and mixture is empty: own pairs stand beside those of a preference set. Name one, "
                "or take on_policy.mixture away."
            )
        if own.mixture and own.max_new_tokens >= self.max_tokens:
            raise ValueError(
                f"on_policy.max_new_tokens {own.max_new_tokens} leaves no room for a prompt in max_tokens "
                f"{self.max_tokens}. Lower it, or raise max_tokens."
            )
        if unknown := sorted(set(self.traits) - set(self.mixture)):
            raise ValueError(f"traits names {unknown[0]!r}, which the mixture does not")
        if self.train.optim.z_loss:
            raise ValueError("train.optim.z_loss is for pre-training and SFT")
        return self


class RlSettings(Section):
    """Reinforcement learning with rewards that a program can check (GRPO)."""

    train: Train = Train(steps=40)
    """Length, batch (in prompts) and optimizer of the training."""
    start: Literal["sft", "dpo"] = "sft"
    """Model that the training starts from. `sft`: the selected variant; `dpo`: the model after DPO."""
    mixture: dict[str, RlSet] = {}
    """The data sets of questions: sources with use: sft, whose last reply is the right answer. Empty: no
    reinforcement learning."""
    group: int = Field(8, ge=2)
    """Number of replies that are sampled to each prompt; they are compared with each other."""
    max_new_tokens: int = Field(64, gt=0)
    """Largest length of a sampled reply in tokens. One that has not ended by then earns nothing."""
    max_prompt_tokens: int = Field(512, gt=0)
    """Largest length of a prompt in tokens. A longer one is left out and counted."""
    inner_steps: int = Field(1, ge=1)
    """Number of optimizer updates on the same sampled replies."""
    clip_low: float = Field(0.2, gt=0, lt=1)
    """How far below 1 the ratio of new to old probability of a token still counts."""
    clip_high: float = Field(0.28, gt=0)
    """How far above 1 the ratio of new to old probability of a token still counts."""
    kl_weight: float = Field(0.0, ge=0)
    """Weight of the divergence from the start model in the loss. 0: none, and no second model in memory."""
    advantage: Literal["group", "right"] = "group"
    """What a reply is worth. `group`: its reward against those of its group (GRPO); `right`: 1 for a right reply, and
    nothing else is trained on (rejection sampling)."""
    mask_truncated: bool = True
    """Do not train on replies that were cut at max_new_tokens; their reward, 0, still counts in their group."""
    pass_rate: tuple[Rate, Rate] = (0.2, 0.8)
    """Prompts are kept whose share of right replies at the start lies in this range, ends included. A prompt that is
    never or always answered rightly teaches nothing."""
    pass_samples: int = Field(8, ge=2)
    """Number of replies by which a prompt's share of right replies is measured before the training."""
    held_out: int = Field(0, ge=0)
    """Number of prompts that are kept out of the training to measure its effect."""
    open_benchmarks: list[str] = []
    """Benchmarks whose reported questions are also asked without their options, to measure the effect; the text of
    the right option is the answer, or the number of a question that has none (reader `arithmetic`). Questions whose
    answer no reward can grade are left out and counted."""
    asked_by: str = ""
    """Field of the records' meta that says what a question is about, such as `fact`. Open questions about what no
    prompt asks are reported apart. Empty: they are not told apart."""

    @model_validator(mode="after")
    def _a_range(self) -> Self:
        low, high = self.pass_rate
        if low > high:
            raise ValueError(f"pass_rate begins at {low}, above its end {high}")
        if self.train.optim.z_loss or self.train.optim.max_skipped:
            raise ValueError("train.optim.z_loss and max_skipped are not for reinforcement learning")
        return self
