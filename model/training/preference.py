"""DPO: pairs of replies against the cached log-probabilities of a reference (Rafailov et al. 2023, equation 7).

c and r are the replies' log-probabilities, summed over their tokens in FP64: in FP32 a sum of some hundred nats is off
by as much as a step of training moves it. delta = (c - ref_c) - (r - ref_r), and delta_n the same with each reply's part
divided by its number of tokens.

    sigmoid        -log sigmoid(beta * delta)                                    the DPO paper's
    sigmoid_norm   -log sigmoid(beta * delta_n)                                  length-normalised
    ipo            (delta_n - 1 / (2 * beta))^2                                  Azar et al. 2023, length-normalised

label_smoothing e, for the first two: (1 - e) of the loss and e of the loss of the pair turned round.
nll_weight adds the chosen reply's negative log-likelihood: the mean over pairs of each pair's mean over its tokens (not
over all tokens of the batch: a long reply weighs no more than a short one).
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from model.training.config import TrainConfig


class Dpo:
    """Pairs of replies against cached reference log-probabilities. One unit is a pair."""

    stats = (
        "loss",
        "rewards/chosen",
        "rewards/rejected",
        "rewards/accuracies",
        "rewards/margins",
        "logps/chosen",
        "logps/rejected",
        "nll",
        "rewards/ties",
        "kl",
        "length_gap",
        "logps/chosen_change",
    )
    """TRL's names, and: pairs with equal rewards (all, before the first update; no part of the accuracy); k3 of the mean
    log-ratio per token of both replies, an estimate of the divergence from the reference on replies that the policy did
    not draw; tokens of the chosen reply less those of the rejected one; how far the chosen reply's log-probability per
    token has come from the reference's, which is negative when it falls."""

    def __init__(self, config: TrainConfig):
        dpo = config.dpo
        self.beta, self.nll_weight = dpo.beta, dpo.nll_weight
        self.loss_type, self.smoothing = dpo.loss, dpo.label_smoothing

    def units(self, batch: Any) -> int:
        return batch.pairs

    def __call__(self, scorer: Any, batch: Any, scale: float) -> tuple[Tensor, Tensor]:
        """(scale * sum over the units, to differentiate; FP64 sums of `stats`)."""
        logps = reply_logprobs(scorer, batch)
        change = logps - batch.reference
        rewards = self.beta * change
        margin = rewards[:, 0] - rewards[:, 1]
        per_token = change / batch.reply_tokens
        nll = -logps[:, 0] / batch.reply_tokens[:, 0]
        loss = self.loss(change, batch.reply_tokens)
        kl = (torch.exp(-per_token) + per_token - 1).mean(1)
        gap = batch.reply_tokens[:, 0] - batch.reply_tokens[:, 1]
        shown = [
            *(
                loss,
                rewards[:, 0],
                rewards[:, 1],
                (margin > 0).double(),
                margin,
                logps[:, 0],
                logps[:, 1],
                nll,
            ),
            *((margin == 0).double(), kl, gap, per_token[:, 0]),
        ]
        total = (loss + self.nll_weight * nll).sum()
        return scale * total, torch.stack([s.detach().double().sum() for s in shown])

    def loss(self, change: Tensor, tokens: Tensor) -> Tensor:
        """FP64 [pairs]. `change`: FP64 [pairs, 2], log-probability less the reference's; `tokens`: [pairs, 2]."""
        if self.loss_type != "sigmoid":
            change = change / tokens
        delta = change[:, 0] - change[:, 1]
        if self.loss_type == "ipo":
            return (delta - 1 / (2 * self.beta)) ** 2
        right = -F.logsigmoid(self.beta * delta)
        if not self.smoothing:
            return right
        return (1 - self.smoothing) * right - self.smoothing * F.logsigmoid(-self.beta * delta)

    def evaluate(self, scorer: Any, batch: Any, sources: int) -> Tensor:
        """FP64 [sources, 2]: loss and pairs of the batch, by file."""
        loss = self.loss(reply_logprobs(scorer, batch) - batch.reference, batch.reply_tokens)
        table = torch.zeros(sources, 2, dtype=torch.float64, device=loss.device)
        file = batch.files.to(loss.device).long()
        real = (file >= 0).double()
        table[:, 0].index_add_(0, file.clamp(min=0), loss * real)
        table[:, 1].index_add_(0, file.clamp(min=0), real)
        return table


def reply_logprobs(scorer: Any, batch: Any) -> Tensor:
    """FP64 [pairs, 2]: summed log-probability of each pair's chosen and rejected reply."""
    logp = scorer(batch, per_token=True)
    sums = torch.zeros(2 * batch.pairs, dtype=torch.float64, device=logp.device)
    return sums.index_add(0, batch.reply_of_target, logp.double()).view(batch.pairs, 2)
