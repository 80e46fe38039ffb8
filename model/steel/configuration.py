"""SteelConfig: the geometry of a Steel model, with its parameter and FLOP counts.

`SteelConfig()` is Steel-1B: exactly 1,122,922,770 parameters. Counts are methods, so that they can be
tested and printed without building anything.

This file is copied into every exported model folder (transformers' remote code): it imports nothing of
this repository.
"""

from __future__ import annotations

from transformers import PreTrainedConfig

FFN_KINDS = ("dense", "token")
FFN_KINDS_LATER = ("prefix", "merge", "paper", "released")
EXPERT_KINDS = ("double_swiglu", "swiglu")


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
    """`token`: y_t = sum_e C_te f_e(x_t). `dense`: one f as wide as all experts, no router."""
    expert: str = "double_swiglu"
    """`double_swiglu`: h = silu(x G1) * (x U1), f(x) = silu(h G2) * (h U2). `swiglu`: f(x) = h D."""
    num_experts: int = 6
    slots_per_expert: int = 1
    """Columns of phi per expert. Kinds without slots add up an expert's weights."""
    expert_width: int | None = None
    """Width of h in one expert; None: hidden_size // 4."""
    merge_segment: int = 256
    """Tokens per segment of the kind `merge`."""
    allow_future_leakage: bool = False
    """Says that the leaky kinds `paper` and `released` are wanted as they are."""

    def __post_init__(self, **kwargs):
        if self.num_key_value_heads is None:
            self.num_key_value_heads = self.num_attention_heads
        if self.expert_width is None:
            self.expert_width = self.hidden_size // 4
        super().__post_init__(**kwargs)
        self._check()

    def _check(self) -> None:
        if self.ffn in FFN_KINDS_LATER:
            raise ValueError(f"ffn: {self.ffn} comes later; {' and '.join(FFN_KINDS)} work now.")
        if self.ffn not in FFN_KINDS:
            raise ValueError(f"ffn: {self.ffn} is unknown. Choose one of {', '.join(FFN_KINDS)}.")
        if self.expert not in EXPERT_KINDS:
            raise ValueError(f"expert: {self.expert} is unknown. Choose one of {', '.join(EXPERT_KINDS)}.")
        if self.hidden_size % (2 * self.num_attention_heads):
            raise ValueError(
                f"hidden_size {self.hidden_size} does not split into {self.num_attention_heads} heads of even size."
            )
        if self.num_attention_heads % self.num_key_value_heads:
            raise ValueError(
                f"{self.num_attention_heads} heads cannot share {self.num_key_value_heads} key/value heads evenly."
            )
        if self.num_experts < 1 or self.slots_per_expert < 1 or self.expert_width < 1:
            raise ValueError("num_experts, slots_per_expert and expert_width must be at least 1.")

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

    def flops_per_token(self, seq_len: int, *, backward: bool = True) -> float:
        """Floating-point operations per token at this length: the forward pass, or with the backward.

        Products only, two operations each; attention is counted causally, (seq_len + 1) / 2 keys a query.
        The backward pass costs twice the forward one.
        """
        d, kv = self.hidden_size, self.num_key_value_heads * self.head_dim
        projections = 2 * (2 * d * d + 2 * d * kv)
        scores = 4 * d * (seq_len + 1) / 2
        ffn = 2 * (4 if self.expert == "double_swiglu" else 3) * d * self.ffn_width
        router = 0 if self.ffn == "dense" else 2 * d * self.num_slots + 2 * d * self.num_experts
        forward = self.num_hidden_layers * (projections + scores + ffn + router) + 2 * self.vocab_size * d
        return forward * (3 if backward else 1)


__all__ = ["SteelConfig"]
