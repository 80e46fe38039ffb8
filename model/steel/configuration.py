"""SteelConfig: the geometry of a Steel model, with its parameter and FLOP counts.

`SteelConfig()` is Steel-1B: exactly 1,122,922,770 parameters. Counts are methods, so that they can be
tested and printed without building anything.

This file is copied into every exported model folder (transformers' remote code): it imports nothing of
this repository.
"""

from __future__ import annotations

from transformers import PreTrainedConfig

FFN_KINDS = ("dense", "token", "prefix", "merge", "paper", "released")
LEAKY_KINDS = ("paper", "released")
EXPERT_KINDS = ("double_swiglu", "swiglu")
ROUTER_KINDS = ("cosine", "linear")
WHOLE = (
    *("vocab_size", "hidden_size", "num_hidden_layers", "num_attention_heads", "num_key_value_heads"),
    *("max_position_embeddings", "num_experts", "slots_per_expert", "expert_width", "merge_segment"),
)
POSITIVE = (
    *("rope_theta", "rms_norm_eps", "initializer_range", "embedding_initializer_range"),
    "embedding_multiplier",
)
OPTIONAL = ("num_key_value_heads", "expert_width", "embedding_initializer_range")
"""Of these numbers, those that may be None."""


class SteelConfig(PreTrainedConfig):
    """Fields carry transformers' names; those of the Soft MoE come last."""

    model_type = "steel"
    keys_to_ignore_at_inference = ["past_key_values"]

    vocab_size: int = 151936
    hidden_size: int = 1792
    num_hidden_layers: int = 18
    num_attention_heads: int = 32
    num_key_value_heads: int | None = None
    """Fewer than heads: grouped-query attention. None: as many as heads."""
    max_position_embeddings: int = 32768
    """Not a limit of the network (RoPE has none): what generation may go up to."""
    rope_theta: float = 1_000_000.0
    rms_norm_eps: float = 1e-6
    initializer_range: float = 0.02
    """Standard deviation of the weight matrices at the start. A double SwiGLU is of degree four near
    zero: a small width wants about 0.85 / sqrt(hidden_size), which 0.02 is at width 1792."""
    embedding_initializer_range: float | None = None
    """The same for the embedding table; None: initializer_range."""
    embedding_multiplier: float = 1.0
    """Factor on the embedded tokens. sqrt(hidden_size) suits a tied table, whose entries must stay
    small for the sake of the head."""
    tie_word_embeddings: bool = False
    use_cache: bool = True
    bos_token_id: int | None = 151643
    eos_token_id: int | list[int] | None = 151645
    pad_token_id: int | None = 151643

    ffn: str = "token"
    """`token`: y_t = sum_e C_te f_e(x_t). `dense`: one f as wide as all experts, no router. `prefix`: the experts see
    running means of the document so far. `merge`: one expert a segment, merged by the routing of the segment before.
    `paper`, `released`: running over the whole document, later tokens included (for study and old weights)."""
    expert: str = "double_swiglu"
    """`double_swiglu`: h = silu(x G1) * (x U1), f(x) = silu(h G2) * (h U2). `swiglu`: f(x) = h D."""
    router: str = "cosine"
    """`cosine`: l = scale * cos(x, phi_s). `linear`: l = scale * x phi_s / sqrt(hidden_size), which starts alike and has
    the form of other libraries' mixtures of experts. `dense` has none."""
    num_experts: int = 6
    slots_per_expert: int = 1
    """Columns of phi per expert. Kinds without slots add up an expert's weights."""
    expert_width: int | None = None
    """Width of h in one expert; None: hidden_size // 4."""
    merge_segment: int = 256
    """Tokens per segment of the kind `merge`, counted from each document's start."""
    allow_future_leakage: bool = False
    """Training refuses the leaky kinds `paper` and `released` unless this says that they are wanted as they are."""

    def __post_init__(self, **kwargs):
        self._check_numbers()
        if self.num_key_value_heads is None:
            self.num_key_value_heads = self.num_attention_heads
        if self.expert_width is None:
            self.expert_width = self.hidden_size // 4
        super().__post_init__(**kwargs)
        self._check()

    def _check_numbers(self) -> None:
        given = {name: getattr(self, name) for name in (*WHOLE, *POSITIVE)}
        for name, value in given.items():
            if value is None and name in OPTIONAL:
                continue
            if name in WHOLE and (type(value) is not int or value < 1):
                raise ValueError(f"{name} must be a whole number of at least 1, not {value!r}.")
            if type(value) not in (int, float) or not value > 0:
                raise ValueError(f"{name} must be a number above 0, not {value!r}.")

    def _check(self) -> None:
        if self.ffn not in FFN_KINDS:
            raise ValueError(f"ffn: {self.ffn} is unknown. Choose one of {', '.join(FFN_KINDS)}.")
        if self.expert not in EXPERT_KINDS:
            raise ValueError(f"expert: {self.expert} is unknown. Choose one of {', '.join(EXPERT_KINDS)}.")
        if self.router not in ROUTER_KINDS:
            raise ValueError(f"router: {self.router} is unknown. Choose one of {', '.join(ROUTER_KINDS)}.")
        if self.hidden_size % (2 * self.num_attention_heads):
            raise ValueError(
                f"hidden_size {self.hidden_size} does not split into {self.num_attention_heads} heads of even size."
            )
        if self.num_attention_heads % self.num_key_value_heads:
            raise ValueError(
                f"{self.num_attention_heads} heads cannot share {self.num_key_value_heads} key/value heads evenly."
            )

    def to_dict(self) -> dict:
        """Without the router where it is the first kind: folders keep the bytes that they had before there was a choice."""
        values = super().to_dict()
        if values.get("router") == ROUTER_KINDS[0]:
            del values["router"]
        return values

    def refuse_leakage(self) -> None:
        """Raise unless this model may be trained: it is causal, or its leak is asked for."""
        if self.ffn in LEAKY_KINDS and not self.allow_future_leakage:
            raise ValueError(
                f"ffn: {self.ffn} mixes later tokens, the answer among them, into every position: its loss would be too "
                "good, and generation, which has no later tokens, would compute another function. Choose token, prefix "
                "or merge, or set allow_future_leakage: true to study it."
            )

    @property
    def ffn_needs_layout(self) -> bool:
        """The FFN looks beyond its token, so it must know where documents begin and what is padding."""
        return self.ffn in ("prefix", "merge", "paper", "released")

    @property
    def ffn_keeps_state(self) -> bool:
        """Cached generation needs a state of the FFN beside keys and values."""
        return self.ffn in ("prefix", "merge")

    @property
    def ffn_keeps_shapes(self) -> bool:
        """The FFN's shapes do not depend on where documents lie, so that a block compiles as one graph."""
        return self.ffn in ("dense", "token", "prefix")

    @property
    def head_dim(self) -> int:
        return self.hidden_size // self.num_attention_heads

    @property
    def ffn_width(self) -> int:
        """Width of all experts together, which is also that of `dense`."""
        return self.num_experts * self.expert_width

    @property
    def num_slots(self) -> int:
        return self.num_experts * self.slots_per_expert

    def num_params(self, *, embeddings: bool = True) -> int:
        """Parameters of the model, or of all but the embedding table and the head."""
        d, kv = self.hidden_size, self.num_key_value_heads * self.head_dim
        attention = 2 * d * d + 2 * d * kv + d + 2 * kv
        matrices = 4 if self.expert == "double_swiglu" else 3
        ffn = matrices * d * self.ffn_width
        router = d * self.num_slots + 1 if self.ffn != "dense" else 0
        body = self.num_hidden_layers * (attention + ffn + router + 2 * d) + d
        tables = self.vocab_size * d * (1 if self.tie_word_embeddings else 2)
        return body + (tables if embeddings else 0)

    def num_flops_per_token(self, seq_len: int = 2048, *, backward: bool = True) -> float:
        """Floating-point operations per token of documents of this length: the forward pass, or with the backward.

        Products only, two operations each; attention is counted causally, (seq_len + 1) / 2 keys a query. The
        backward pass costs twice the forward one.
        """
        return self._forward_flops((seq_len + 1) / 2, seq_len) * (3 if backward else 1)

    def num_flops_per_decoded_token(self, context: int = 2048) -> float:
        """The same for one more token behind a cache of `context`."""
        return self._forward_flops(context + 1, 1 if self.ffn in LEAKY_KINDS else context + 1)

    flops_per_token = num_flops_per_token

    def _forward_flops(self, keys: float, seq_len: int) -> float:
        d, kv = self.hidden_size, self.num_key_value_heads * self.head_dim
        layer = 2 * (2 * d * d + 2 * d * kv) + 4 * d * keys + self._ffn_flops(seq_len)
        return self.num_hidden_layers * layer + 2 * self.vocab_size * d

    def _ffn_flops(self, seq_len: int) -> float:
        """Of one layer's FFN and router, forward, per token."""
        d, n, p = self.hidden_size, self.num_experts, self.slots_per_expert
        expert = 2 * (4 if self.expert == "double_swiglu" else 3) * d * self.expert_width
        router, mixing, weighing = 2 * d * self.num_slots, 2 * d * self.num_slots, 2 * d * n
        if self.ffn == "dense":
            return n * expert
        if self.ffn == "token":
            return n * expert + router + weighing
        if self.ffn == "prefix":
            return n * p * expert + router + mixing + p * weighing
        if self.ffn == "merge":
            # one expert a token; merging costs a multiplication and an addition per weight and segment
            return expert + router + n * expert / min(self.merge_segment, seq_len)
        return n * p * expert / seq_len + router + mixing + p * weighing

    def num_decode_state(self, context: int) -> int:
        """Numbers that a sequence of `context` tokens keeps between decoding steps, over all layers: keys and values,
        and the FFN's own state."""
        d, kv = self.hidden_size, self.num_key_value_heads * self.head_dim
        ffn = 0
        if self.ffn == "prefix":
            ffn = self.num_slots * (d + 2)
        elif self.ffn == "merge":
            ffn = (
                (4 if self.expert == "double_swiglu" else 3) * d * self.expert_width
                + 2 * self.num_experts
                + 1
            )
        return self.num_hidden_layers * (2 * kv * context + ffn)


__all__ = ["SteelConfig"]
