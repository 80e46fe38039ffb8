"""Settings of the network: Steel's own geometry, or another model of transformers."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

from pydantic import Field, SerializerFunctionWrapHandler, model_serializer, model_validator

from tasks.settings.errors import NodeError
from tasks.settings.section import Section

FfnKind = Literal["dense", "token", "prefix", "merge", "paper", "released"]
LEAKY_KINDS = ("paper", "released")
"""Kinds of FFN that see later tokens. model.steel.configuration has the same list (a test compares them), but its
import loads torch, and planning a run must not."""


OTHER_MODELS = ("transformers", "pretrained")
"""Fields of `model` that take another model than Steel's."""


class Model(Section):
    """Geometry of the network. The names are those of transformers and of model.steel.SteelConfig.

    `transformers` or `pretrained` takes another model than Steel's; then no other field may be given.
    """

    transformers: dict[str, Any] | None = None
    """Another model of transformers, from fresh weights: model_type and fields of its configuration. vocab_size, if not
    given, is the tokenizer's, rounded up to a multiple of 64."""
    pretrained: Path | None = None
    """Folder of a model of transformers to continue from, with config.json and weights. Needs its own tokenizer:
    tokenize.tokenizer `folder`."""

    hidden_size: int = Field(1792, ge=4)
    """Width of the residual stream."""
    num_hidden_layers: int = Field(18, gt=0)
    """Number of layers."""
    num_attention_heads: int = Field(32, gt=0)
    """Number of attention heads; it divides hidden_size."""
    num_key_value_heads: int = Field(32, gt=0)
    """Number of key/value heads. Fewer than num_attention_heads: grouped-query attention."""
    ffn: FfnKind = "token"
    """Kind of feed-forward layer. `dense`: no router; `token`, `prefix`, `merge`: Soft MoE kinds that see no later
    token; `paper` and `released`: kinds that do, for study only."""
    expert: Literal["double_swiglu", "swiglu"] = "double_swiglu"
    """Inner form of an expert. `double_swiglu`: two gated layers, as in Steel-LLM; `swiglu`: one."""
    router: Literal["cosine", "linear"] = "cosine"
    """How a Soft MoE layer weighs its experts. `cosine`: by scale * cos(x, phi), as in Steel-LLM; `linear`: by
    scale * x·phi / sqrt(hidden_size), with which `ffn: token` and `expert: swiglu` can leave as Qwen2-MoE."""
    num_experts: int = Field(6, gt=0)
    """Number of experts of a Soft MoE layer."""
    slots_per_expert: int = Field(1, gt=0)
    """Number of slots of each expert."""
    expert_width: int | None = Field(None, gt=0)
    """Inner width of an expert. Not set: hidden_size // 4."""
    merge_segment: int = Field(256, gt=0)
    """For ffn `merge`: number of tokens in a segment, which has one expert, merged by the routing of the one before."""
    allow_future_leakage: bool = False
    """Allow an ffn that sees later tokens. False by default, because the loss of such a model means nothing for
    generation."""
    vocab_size: int | None = Field(None, gt=0)
    """Number of rows of the embedding table. Not set: the tokenizer's size, rounded up to a multiple of 64."""
    rope_theta: float = Field(1_000_000.0, gt=0)
    """Base of the rotary position embedding."""
    max_position_embeddings: int = Field(32768, gt=0)
    """Largest number of positions that the model promises to handle."""
    initializer_range: float = Field(0.02, gt=0)
    """Standard deviation of the fresh weights."""
    embedding_initializer_range: float | None = Field(None, gt=0)
    """Standard deviation of the fresh embedding table. Not set: initializer_range."""
    embedding_multiplier: float = Field(1.0, gt=0)
    """Factor on the embeddings before the first layer."""
    tie_word_embeddings: bool = False
    """Use one table for the embeddings and the output layer."""

    @model_validator(mode="after")
    def _one_model(self) -> Model:
        given = [name for name in type(self).model_fields if name in self.model_fields_set]
        chosen = [name for name in OTHER_MODELS if getattr(self, name) is not None]
        others = [name for name in given if name not in OTHER_MODELS]
        if len(chosen) > 1:
            raise ValueError("transformers and pretrained are both given. Choose one.")
        if chosen and others:
            raise ValueError(
                f"{chosen[0]} takes another model than Steel's, so {', '.join(others)} of Steel's own have no meaning: "
                "give one or the other"
            )
        if self.transformers is not None and not isinstance(self.transformers.get("model_type"), str):
            raise ValueError("transformers needs model_type, such as qwen2")
        return self

    @model_serializer(mode="wrap")
    def _what_is_meant(self, handler: SerializerFunctionWrapHandler) -> dict[str, Any]:
        """Of another model its own fields only, so that Steel's recipes read as ever."""
        chosen = [name for name in OTHER_MODELS if getattr(self, name) is not None]
        values: dict[str, Any] = handler(self)
        return {k: v for k, v in values.items() if (k in chosen if chosen else k not in OTHER_MODELS)}

    @property
    def own(self) -> bool:
        """Whether it is Steel's own network."""
        return self.transformers is None and self.pretrained is None

    @property
    def geometry(self) -> dict[str, Any]:
        """The fields of config.json as far as they are known before training."""
        if self.own:
            return self.model_dump(mode="json")
        return self.transformers if self.transformers is not None else self._brought()

    @property
    def context(self) -> int | None:
        """Largest number of positions; None: not known here."""
        return self._field("max_position_embeddings")

    @property
    def vocabulary(self) -> int | None:
        """Rows of the embedding table; None: those of the tokenizer."""
        return self._field("vocab_size")

    def _field(self, name: str) -> int | None:
        if self.own:
            value: int | None = getattr(self, name)
            return value
        return self.geometry.get(name)

    def _brought(self) -> dict[str, Any]:
        assert self.pretrained is not None
        if not self.pretrained.is_dir():
            raise NodeError(
                f"model.pretrained: there is no folder {self.pretrained}; docs/training.md (real weights) says how one is made"
            )
        from model.place import ModelError, read_config

        try:
            return read_config(self.pretrained)
        except ModelError as error:
            raise NodeError(f"model.pretrained: {error}") from None

    @model_validator(mode="after")
    def _geometry(self) -> Model:
        # as model.steel.SteelConfig does, which planning must not load: torch takes seconds
        if self.hidden_size % (2 * self.num_attention_heads):
            raise ValueError(
                f"hidden_size {self.hidden_size} does not split into {self.num_attention_heads} heads of even size"
            )
        if self.num_attention_heads % self.num_key_value_heads:
            raise ValueError(
                f"{self.num_attention_heads} heads cannot share {self.num_key_value_heads} key/value heads evenly"
            )
        return self

    @model_validator(mode="after")
    def _no_leak_unasked(self) -> Model:
        if self.ffn in LEAKY_KINDS and not self.allow_future_leakage:
            raise ValueError(
                f"ffn: {self.ffn} shows later tokens, the answer among them, to every position; its loss means nothing "
                "for generation. Choose token, prefix or merge, or set allow_future_leakage: true to study it."
            )
        return self
