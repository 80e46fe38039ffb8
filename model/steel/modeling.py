"""The Steel network: Qwen1.5's block around a Soft MoE, as a transformers model with generation.

    x = x + Attention(RMSNorm(x));  x = x + FFN(RMSNorm(x))      then RMSNorm and an (untied) head

RMSNorm and RoPE compute in FP32 whatever the dtype; q, k and v have a bias, nothing else has. Rows may be packed
with several documents: `doc_index` numbers them, and attention never crosses from one to another (position_ids
that start again do the same, unless padding is masked or a cache is asked for). No logit depends on a later token, unless the config's kind
of FFN says so (`paper`, `released`).

Knows nothing of training or distribution. This file is copied into every exported model folder: it imports
nothing of this repository.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import PreTrainedModel
from transformers import initialization as init
from transformers.cache_utils import Cache, DynamicCache
from transformers.generation import GenerationMixin
from transformers.masking_utils import create_causal_mask
from transformers.modeling_layers import GradientCheckpointingLayer
from transformers.modeling_outputs import BaseModelOutputWithPast, CausalLMOutputWithPast
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from .attention import Documents, packed_attention
from .attention_choice import choose
from .cache import with_ffn_state
from .configuration import SteelConfig
from .layout import Layout
from .ops import PLAIN, Ops
from .soft_moe import SteelFFN


class SteelRMSNorm(nn.Module):
    def __init__(self, hidden_size: int, eps: float):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(hidden_size))
        self.eps = eps
        self.ops = PLAIN

    def forward(self, x: Tensor) -> Tensor:
        return self.ops.rms_norm(x, self.weight, self.eps)

    def after(self, x: Tensor, residual: Tensor) -> tuple[Tensor, Tensor]:
        """The norm of residual + x, and that sum."""
        return self.ops.rms_norm_residual(x, residual, self.weight, self.eps)


class SteelAttention(nn.Module):
    """Multi-head or grouped-query attention; `attn_implementation` names the kernel (attention_choice.py)."""

    is_causal = True

    def __init__(self, config: SteelConfig, layer_idx: int):
        super().__init__()
        self.config, self.layer_idx, self.head_dim = config, layer_idx, config.head_dim
        self.num_key_value_groups = config.num_attention_heads // config.num_key_value_heads
        self.scaling = config.head_dim**-0.5
        width, kv_width = config.hidden_size, config.num_key_value_heads * config.head_dim
        self.q_proj = nn.Linear(width, width, bias=True)
        self.k_proj = nn.Linear(width, kv_width, bias=True)
        self.v_proj = nn.Linear(width, kv_width, bias=True)
        self.o_proj = nn.Linear(width, width, bias=False)
        self.ops = PLAIN

    def forward(
        self,
        x: Tensor,
        mask: Tensor | Documents | None,
        rope: tuple[Tensor, Tensor],
        cache: Cache | None,
        **kwargs,
    ) -> tuple[Tensor, Tensor | None]:
        """x [B, T, D], mask as the attention kernel wants it -> [B, T, D], weights (eager attention only)."""
        q, k, v = (
            proj(x).unflatten(-1, (-1, self.head_dim)).transpose(1, 2)
            for proj in (self.q_proj, self.k_proj, self.v_proj)
        )
        q, k = self.ops.rotate(q, k, *rope)
        if cache is not None:
            k, v = cache.update(k, v, self.layer_idx)
        if isinstance(mask, Documents):
            return self.o_proj(packed_attention(q, k, v, mask, self.scaling).flatten(2)), None
        attend = ALL_ATTENTION_FUNCTIONS.get_interface(self.config._attn_implementation, eager_attention)
        out, weights = attend(self, q, k, v, mask, dropout=0.0, scaling=self.scaling, **kwargs)
        return self.o_proj(out.flatten(2)), weights


class SteelDecoderLayer(GradientCheckpointingLayer):
    def __init__(self, config: SteelConfig, layer_idx: int):
        super().__init__()
        self.layer_idx, self.stateful = layer_idx, config.ffn_keeps_state
        self.self_attn = SteelAttention(config, layer_idx)
        self.mlp = SteelFFN(config)
        self.input_layernorm = SteelRMSNorm(config.hidden_size, config.rms_norm_eps)
        self.post_attention_layernorm = SteelRMSNorm(config.hidden_size, config.rms_norm_eps)

    def forward(
        self,
        x: Tensor,
        mask: Tensor | Documents | None,
        rope: tuple[Tensor, Tensor],
        past_key_values: Cache | None = None,
        layout: Layout | None = None,
        **kwargs,
    ) -> tuple[Tensor, Tensor | None]:
        mixed, weights = self.self_attn(self.input_layernorm(x), mask, rope, past_key_values, **kwargs)
        normed, x = self.post_attention_layernorm.after(mixed, x)
        memory = (
            past_key_values.layers[self.layer_idx] if self.stateful and past_key_values is not None else None
        )
        return x + self.mlp(normed, layout, memory), weights


class SteelPreTrainedModel(PreTrainedModel):
    config_class = SteelConfig
    base_model_prefix = "model"
    supports_gradient_checkpointing = True
    _no_split_modules = ["SteelDecoderLayer"]
    _skip_keys_device_placement = ["past_key_values"]
    _supports_sdpa = True
    _supports_flash_attn = True
    _supports_flex_attn = True
    _supports_attention_backend = True
    _can_compile_fullgraph = True

    def _init_weights(self, module: nn.Module) -> None:
        for name, parameter in module.named_parameters(recurse=False):
            kind = type(module).__name__
            mean, std = initial_distribution(self.config, kind, name)
            if std:
                init.normal_(parameter, mean=mean, std=std)
            else:
                init.constant_(parameter, mean)


class SteelModel(SteelPreTrainedModel):
    """The network up to the final norm."""

    def __init__(self, config: SteelConfig):
        super().__init__(config)
        self.embed_tokens = nn.Embedding(config.vocab_size, config.hidden_size)
        self.layers = nn.ModuleList(SteelDecoderLayer(config, i) for i in range(config.num_hidden_layers))
        self.norm = SteelRMSNorm(config.hidden_size, config.rms_norm_eps)
        self.gradient_checkpointing = False
        self.chunk_documents: bool | None = None
        self.post_init()

    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        position_ids: Tensor | None = None,
        past_key_values: Cache | None = None,
        inputs_embeds: Tensor | None = None,
        use_cache: bool | None = None,
        doc_index: Tensor | None = None,
        max_documents: int | None = None,
        branch_index: Tensor | None = None,
        output_hidden_states: bool | None = None,
        output_attentions: bool | None = None,
        **kwargs,
    ) -> BaseModelOutputWithPast:
        """input_ids [B, T]; doc_index [B, T] numbers the documents of packed rows (no cache then), at most
        `max_documents` in all (None: they are counted, which waits for a GPU); branch_index [B, T] numbers the
        branches of each, of which no one sees another (attention.py). position_ids must then be given."""
        if (input_ids is None) == (inputs_embeds is None):
            raise ValueError("Give input_ids or inputs_embeds. Choose one.")
        x = self.embed_tokens(input_ids) if inputs_embeds is None else inputs_embeds
        if self.config.embedding_multiplier != 1.0:
            x = x * self.config.embedding_multiplier
        if doc_index is not None and attention_mask is not None and not attention_mask.all():
            raise ValueError(
                "attention_mask has zeros and doc_index is given, too. Number padding as a document of its own in "
                "doc_index, and give no mask."
            )
        if branch_index is not None and self.config.ffn_needs_layout:
            raise ValueError(
                f"ffn {self.config.ffn} looks at several tokens: its documents have no branches."
            )
        paged = (
            "attention_instances" in kwargs or "cache" in kwargs
        )  # serving: attention keeps the documents apart
        if doc_index is None and position_ids is not None and not use_cache and not paged:
            doc_index = self.documents(position_ids, attention_mask, past_key_values)
        use_cache = self.config.use_cache and not self.training if use_cache is None else use_cache
        if use_cache and past_key_values is None and doc_index is None:
            past_key_values = DynamicCache(config=self.config)
        layout = None
        if self.config.ffn_needs_layout:
            layout = self.layout(x, doc_index, attention_mask, past_key_values)
        if position_ids is None:
            seen = past_key_values.get_seq_length() if past_key_values is not None else 0
            position_ids = torch.arange(seen, seen + x.shape[1], device=x.device).unsqueeze(0)
        if doc_index is not None:
            doc_index = doc_index.expand(x.shape[0], -1)
            how = choose(self.config._attn_implementation, x.device, x.dtype)
            mask = Documents.of(doc_index, x.dtype, how, self.chunk_documents, max_documents, branch_index)
        else:
            mask = create_causal_mask(
                config=self.config,
                inputs_embeds=x,
                attention_mask=attention_mask,
                past_key_values=past_key_values,
                position_ids=position_ids,
            )
        rope = tuple(table.expand(x.shape[0], -1, -1) for table in self.rope(position_ids))
        states, attentions = [], []
        for layer in self.layers:
            if output_hidden_states:
                states.append(x)
            x, weights = layer(x, mask, rope, past_key_values, layout=layout, **kwargs)
            if output_attentions:
                attentions.append(weights)
        x = self.norm(x)
        return BaseModelOutputWithPast(
            last_hidden_state=x,
            past_key_values=past_key_values if use_cache else None,
            hidden_states=(*states, x) if output_hidden_states else None,
            attentions=tuple(attentions) if output_attentions else None,
        )

    @staticmethod
    def documents(position_ids: Tensor, attention_mask: Tensor | None, cache: Cache | None) -> Tensor | None:
        """doc_index [B, T] of rows whose positions begin again, where neither padding nor a cache explains it."""
        if cache is not None:
            return None
        begins = position_ids[:, 1:] != position_ids[:, :-1] + 1
        packed = begins.any()
        if attention_mask is not None:
            packed &= attention_mask.all()  # as many waits for a GPU as without a mask: one
        return F.pad(begins.cumsum(1), (1, 0)) if packed else None

    def layout(
        self, x: Tensor, doc_index: Tensor | None, attention_mask: Tensor | None, cache: Cache | None
    ) -> Layout:
        """Where the FFN must begin anew: where attention does."""
        if self.config.ffn_keeps_state and cache is not None:
            with_ffn_state(cache, len(self.layers))
        behind = cache is not None and cache.get_seq_length() > 0
        padding = attention_mask if doc_index is None else None
        return Layout.of(*x.shape[:2], x.device, doc_index=doc_index, attention_mask=padding, behind=behind)

    @torch.no_grad()
    def rope(self, position_ids: Tensor) -> tuple[Tensor, Tensor]:
        """cos and sin [B, T, head_dim], FP32, both halves alike. The frequencies are no buffer: `model.to(bfloat16)`
        would round them, and with them every position beyond a few hundred."""
        half = torch.arange(0, self.config.head_dim, 2, dtype=torch.float32, device=position_ids.device)
        frequencies = 1.0 / self.config.rope_theta ** (half / self.config.head_dim)
        angle = position_ids.unsqueeze(-1).float() * frequencies
        return angle.cos().repeat(1, 1, 2), angle.sin().repeat(1, 1, 2)


class SteelForCausalLM(SteelPreTrainedModel, GenerationMixin):
    """The network with its head; `generate`, `save_pretrained`, `from_pretrained` as any transformers model."""

    _tied_weights_keys = {"lm_head.weight": "model.embed_tokens.weight"}

    def __init__(self, config: SteelConfig):
        super().__init__(config)
        self.model = SteelModel(config)
        self.lm_head = nn.Linear(config.hidden_size, config.vocab_size, bias=False)
        self._is_stateful = config.ffn_keeps_state  # generate then refuses what takes tokens back
        self.post_init()

    def set_ops(self, ops: Ops) -> None:
        """Compute with these operators from now on (see ops.py)."""
        for module in self.modules():
            if hasattr(module, "ops"):
                module.ops = ops

    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        position_ids: Tensor | None = None,
        past_key_values: Cache | None = None,
        inputs_embeds: Tensor | None = None,
        labels: Tensor | None = None,
        use_cache: bool | None = None,
        logits_to_keep: int | Tensor = 0,
        return_dict: bool | None = None,
        num_items_in_batch: Tensor | int | None = None,
        shift_labels: Tensor | None = None,
        **kwargs,
    ) -> CausalLMOutputWithPast | tuple:
        """Logits [B, T or logits_to_keep, V] and, with labels, the mean loss (labels are shifted here, unless
        `shift_labels` brings them shifted).

        `num_items_in_batch`: the labels of the whole batch, where this call is one of several micro-batches. The loss
        is then the sum over this call divided by it, so that the losses of the micro-batches add up to the mean
        (transformers' Trainer passes it, and no longer divides by its gradient accumulation).
        """
        out = self.model(
            input_ids=input_ids,
            attention_mask=attention_mask,
            position_ids=position_ids,
            past_key_values=past_key_values,
            inputs_embeds=inputs_embeds,
            use_cache=use_cache,
            **kwargs,
        )
        kept = slice(-logits_to_keep, None) if isinstance(logits_to_keep, int) else logits_to_keep
        logits = self.lm_head(out.last_hidden_state[:, kept])
        loss = None
        if labels is not None:
            loss = self.loss_function(
                logits,
                labels,
                self.config.vocab_size,
                num_items_in_batch=num_items_in_batch,
                shift_labels=shift_labels,
            )
        result = CausalLMOutputWithPast(
            loss=loss,
            logits=logits,
            past_key_values=out.past_key_values,
            hidden_states=out.hidden_states,
            attentions=out.attentions,
        )
        return result.to_tuple() if return_dict is False else result


def initial_distribution(config: SteelConfig, module: str, name: str) -> tuple[float, float]:
    """(mean, standard deviation) of a parameter at the start, by its module's class and its own name."""
    if module == "SteelRMSNorm" or name == "scale":
        return 1.0, 0.0
    if name == "bias":
        return 0.0, 0.0
    if name == "phi":
        return 0.0, config.hidden_size**-0.5
    if module == "Embedding" and config.embedding_initializer_range is not None:
        return 0.0, config.embedding_initializer_range
    if module == "SteelExperts" and config.ffn == "merge":
        # the mean of n independent matrices is sqrt(n) times smaller, and a double SwiGLU of it n^2 times
        return 0.0, config.initializer_range * config.num_experts**0.5
    return 0.0, config.initializer_range


def eager_attention(
    module: SteelAttention, q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, *, scaling: float, **_
) -> tuple[Tensor, Tensor]:
    """The definition, with the weights at hand: softmax(q k^T * scaling + mask) v."""
    k = k.repeat_interleave(module.num_key_value_groups, dim=1)
    v = v.repeat_interleave(module.num_key_value_groups, dim=1)
    scores = (q @ k.transpose(2, 3)) * scaling
    if mask is not None:
        scores = scores + mask
    weights = torch.softmax(scores, dim=-1, dtype=torch.float32).to(q.dtype)
    return (weights @ v).transpose(1, 2), weights


__all__ = ["SteelForCausalLM", "SteelModel", "SteelPreTrainedModel"]
