"""The Soft MoE: every expert sees every token, a router weighs them. Here: experts, router, and the kinds by token.

    l_ts = scale * cos(x_t, phi_s)                   router, FP32; C_ts = softmax over the slots s
    l_ts = scale * x_t phi_s / sqrt(d)               the same with `router: linear`
    y_t  = sum_e C_te f_e(x_t)                       `token`; f_e: double SwiGLU or SwiGLU

`dense` is one f as wide as all experts. `prefix`, `paper` and `released` (slots.py) give the experts mixtures of tokens;
`merge` (merge.py) mixes the experts' weights.

All experts are computed together. Their first layers lie side by side and are one product. The weight C_te is
applied to the narrow h_te (expert_width numbers) instead of the wide output (hidden_size numbers):

    double SwiGLU   y_t = sum_e silu(h_te G2_e) * ((C_te h_te) U2_e)
    SwiGLU          y_t = [C_t1 h_t1 ... C_tn h_tn] D                    one product

which is the same sum and saves several passes over [experts, tokens, hidden_size].

Parameters (shared by all kinds, so that one state dict can be scored under each; `dense` lacks the first two):
phi [d, n*p], scale [1], experts.{gate_up_proj, up_proj, gate_down_proj, down_proj}, each [n*w, d] with the rows
of expert e at e*w ... (e+1)*w. Two dimensions with a long first one shard evenly over any number of ranks.

Shape suffixes: N tokens, D hidden_size, E experts, W expert_width, P slots, R rows of slots, G segments, S their tokens.
This file is copied into every exported model folder: it imports nothing of this repository.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from .cache import SteelCacheLayer
from .configuration import SteelConfig
from .layout import Layout
from .merge import merge
from .ops import PLAIN
from .slots import prefix, whole


class SteelExperts(nn.Module):
    """The experts' weights; `dense` is one expert of the whole width."""

    def __init__(self, config: SteelConfig):
        super().__init__()
        self.count = 1 if config.ffn == "dense" else config.num_experts
        self.double = config.expert == "double_swiglu"
        shape = (config.ffn_width, config.hidden_size)
        self.gate_up_proj = nn.Parameter(torch.empty(shape))
        self.up_proj = nn.Parameter(torch.empty(shape))
        if self.double:
            self.gate_down_proj = nn.Parameter(torch.empty(shape))
        self.down_proj = nn.Parameter(torch.empty(shape))
        self.ops = PLAIN

    def forward(self, x_ND: Tensor, weights_NE: Tensor | None) -> Tensor:
        """Every expert on every token: x [N, D], weights [N, E] (None: one expert, weight 1) -> [N, D]."""
        h = F.silu(F.linear(x_ND, self.gate_up_proj)) * F.linear(x_ND, self.up_proj)
        if weights_NE is not None:
            return self.combine(h.unflatten(-1, (self.count, -1)), weights_NE)
        if self.double:
            return F.silu(h @ self.gate_down_proj) * (h @ self.down_proj)
        return h @ self.down_proj

    def on_slots(self, z_RED: Tensor) -> Tensor:
        """The first layer of every expert on an input of its own: z [R, E, D] -> h [R, E, W]."""
        gate, up = (self._by_expert(w).mT for w in (self.gate_up_proj, self.up_proj))
        z_ERD = z_RED.transpose(0, 1)
        return (F.silu(torch.bmm(z_ERD, gate)) * torch.bmm(z_ERD, up)).transpose(0, 1)

    def combine(self, h_NEW: Tensor, weights_NE: Tensor) -> Tensor:
        """The second layers, weighed and added up: [N, D]."""
        if self.double:
            return self.ops.combine_experts(h_NEW, weights_NE, self.gate_down_proj, self.down_proj)
        return (weights_NE.to(h_NEW.dtype).unsqueeze(-1) * h_NEW).flatten(1) @ self.down_proj

    def each(self, h_REW: Tensor) -> Tensor:
        """The second layer of every expert, not added up: [R, E, D]."""
        h_ERW = h_REW.transpose(0, 1)
        y_ERD = torch.bmm(h_ERW, self._by_expert(self.down_proj))
        if self.double:
            y_ERD = F.silu(torch.bmm(h_ERW, self._by_expert(self.gate_down_proj))) * y_ERD
        return y_ERD.transpose(0, 1)

    def merged(self, routing_GE: Tensor) -> tuple[Tensor, ...]:
        """sum_e r_e W_e of each matrix [G, W, D], in the order in which `merged_forward` takes them."""
        second = (self.gate_down_proj, self.down_proj) if self.double else (self.down_proj,)
        return tuple(
            (routing_GE.to(w.dtype) @ self._by_expert(w).flatten(1)).unflatten(1, (-1, w.shape[1]))
            for w in (self.gate_up_proj, self.up_proj, *second)
        )

    def merged_forward(self, x_GSD: Tensor, matrices: tuple[Tensor, ...]) -> Tensor:
        """One expert a segment: x [G, S, D] -> [G, S, D]."""
        gate, up, *second = matrices
        h_GSW = F.silu(torch.bmm(x_GSD, gate.mT)) * torch.bmm(x_GSD, up.mT)
        y_GSD = torch.bmm(h_GSW, second[-1])
        return F.silu(torch.bmm(h_GSW, second[0])) * y_GSD if self.double else y_GSD

    def _by_expert(self, weight: Tensor) -> Tensor:
        return weight.unflatten(0, (self.count, -1))


class SteelFFN(nn.Module):
    """The feed-forward layer of one block, of the kind that the config names."""

    def __init__(self, config: SteelConfig):
        super().__init__()
        self.kind, self.linear_router = config.ffn, config.router == "linear"
        self.routed = config.ffn != "dense"
        self.num_experts, self.merge_segment = config.num_experts, config.merge_segment
        if self.routed:
            self.phi = nn.Parameter(torch.empty(config.hidden_size, config.num_slots))
            self.scale = nn.Parameter(torch.empty(1))
        self.experts = SteelExperts(config)
        self.ops = PLAIN

    def forward(
        self, x: Tensor, layout: Layout | None = None, memory: SteelCacheLayer | None = None
    ) -> Tensor:
        """x [B, T, D] -> [B, T, D]. `layout` and, in cached generation, `memory` for the kinds that look beyond a
        token (`SteelConfig.ffn_needs_layout`, `ffn_keeps_state`)."""
        if self.kind in ("token", "dense"):
            x_ND = x.flatten(0, -2)
            weights_NE = self.combine_weights(x_ND) if self.routed else None
            return self.experts(x_ND, weights_NE).view(x.shape)
        if layout is None:
            layout = Layout.of(*x.shape[:2], x.device)
        if self.kind in ("paper", "released"):
            return whole(self, x, layout, unit=self.kind == "released")
        compute = prefix if self.kind == "prefix" else merge
        state = None if memory is None else memory.ffn
        y, state = compute(self, x, layout, state, keep=memory is not None)
        if memory is not None:
            memory.ffn = state
        return y

    def logits(self, x_ND: Tensor) -> Tensor:
        """l [N, P] in FP32."""
        x_ND = x_ND.float()
        if self.linear_router:
            return self.scale.float() * (x_ND @ self.phi.float()) * x_ND.shape[-1] ** -0.5
        length_N1 = torch.linalg.vector_norm(x_ND, dim=-1, keepdim=True).clamp_min(1e-12)
        cosine = x_ND @ F.normalize(self.phi.float(), dim=0) / length_N1
        return self.scale.float() * cosine

    def combine_weights(self, x_ND: Tensor) -> Tensor:
        """C [N, E] in FP32: the softmax runs over all slots, an expert's slots add up."""
        weights = torch.softmax(self.logits(x_ND), dim=-1)
        return weights.unflatten(-1, (self.num_experts, -1)).sum(-1)
