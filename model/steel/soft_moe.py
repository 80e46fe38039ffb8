"""The Soft MoE: every expert sees every token, a router weighs them.

    C_te = softmax_e( s * cos(x_t, phi_e) )          router, FP32
    y_t  = sum_e C_te f_e(x_t)                       f_e: double SwiGLU or SwiGLU

All experts are computed together. Their first layers lie side by side and are one product. The weight C_te is
applied to the narrow h_te (expert_width numbers) instead of the wide output (hidden_size numbers):

    double SwiGLU   y_t = sum_e silu(h_te G2_e) * ((C_te h_te) U2_e)
    SwiGLU          y_t = [C_t1 h_t1 ... C_tn h_tn] D                    one product

which is the same sum and saves several passes over [experts, tokens, hidden_size].

Parameters (shared by all kinds, so that one state dict can be scored under each; `dense` lacks the first two):
phi [d, n*p], scale [1], experts.{gate_up_proj, up_proj, gate_down_proj, down_proj}, each [n*w, d] with the rows
of expert e at e*w ... (e+1)*w. Two dimensions with a long first one shard evenly over any number of ranks.

Shape suffixes: N tokens, D hidden_size, E experts, W expert_width.
This file is copied into every exported model folder: it imports nothing of this repository.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from .configuration import SteelConfig
from .ops import PLAIN


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
        """x [N, D], weights [N, E] (None: one expert, weight 1) -> [N, D]."""
        h_NEW = F.silu(F.linear(x_ND, self.gate_up_proj)) * F.linear(x_ND, self.up_proj)
        if weights_NE is None:
            if self.double:
                return F.silu(h_NEW @ self.gate_down_proj) * (h_NEW @ self.down_proj)
            return h_NEW @ self.down_proj
        h_NEW = h_NEW.unflatten(-1, (self.count, -1))
        if self.double:
            return self.ops.combine_experts(h_NEW, weights_NE, self.gate_down_proj, self.down_proj)
        return (weights_NE.to(h_NEW.dtype).unsqueeze(-1) * h_NEW).flatten(1) @ self.down_proj


class SteelFFN(nn.Module):
    """The feed-forward layer of one block, of the kind that the config names."""

    def __init__(self, config: SteelConfig):
        super().__init__()
        self.routed = config.ffn != "dense"
        self.num_experts = config.num_experts
        if self.routed:
            self.phi = nn.Parameter(torch.empty(config.hidden_size, config.num_slots))
            self.scale = nn.Parameter(torch.empty(1))
        self.experts = SteelExperts(config)

    def forward(self, x: Tensor) -> Tensor:
        """x [..., D] -> [..., D]."""
        x_ND = x.flatten(0, -2)
        weights_NE = self.combine_weights(x_ND) if self.routed else None
        return self.experts(x_ND, weights_NE).view(x.shape)

    def combine_weights(self, x_ND: Tensor) -> Tensor:
        """C [N, E] in FP32: the softmax runs over all slots, an expert's slots add up."""
        x_ND = x_ND.float()
        length_N1 = torch.linalg.vector_norm(x_ND, dim=-1, keepdim=True).clamp_min(1e-12)
        cosine = x_ND @ F.normalize(self.phi.float(), dim=0) / length_N1
        weights = torch.softmax(self.scale.float() * cosine, dim=-1)
        return weights.unflatten(-1, (self.num_experts, -1)).sum(-1)
