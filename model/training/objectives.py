"""What is learned: the loss of a micro-batch, and what is reported of it.

Every objective adds up a sum over *units* (target tokens, or pairs) and the loop divides by the units of the whole
optimizer step, over all ranks and micro-steps. So the gradient does not depend on how a batch is cut, and a long
example does not weigh more because it sat in a small micro-batch.

    pretrain, sft   -log p per target token, + z_loss * logsumexp^2
    dpo             model/training/preference.py, per pair
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from model.families import head, probe
from model.families.attention import PackedRows
from model.steel.attention import KERNELS
from model.steel.modeling import SteelForCausalLM
from model.training.config import TrainConfig
from model.training.loader import IGNORED
from model.training.loss import cross_entropy_sum, token_logprobs
from model.training.preference import Dpo
from model.training.sources import SourceLoss


class Scorer(nn.Module):
    """The network up to what a loss needs of it: sharded as one, so that the head's weight is gathered once."""

    lm: Any
    fused: bool
    shares_prompts: bool
    """Documents may have branches: several replies behind one prompt (model/training/sequences.py)."""

    def __init__(self, lm: SteelForCausalLM, fused: bool = False):
        """`fused`: the loss by kernels/cross_entropy.py."""
        super().__init__()
        self.lm, self.fused = lm, fused
        self.shares_prompts = False

    def forward(
        self,
        batch: Any,
        *,
        per_token: bool,
        scale: float = 1.0,
        z_loss: float = 0.0,
        each: Tensor | None = None,
    ) -> Any:
        """`per_token`: log p of every target, FP32 [N], in reading order. Else (scaled loss sum, -log p sum); `each`: FP32
        [N], to be filled with every target's -log p."""
        hidden = self.lm.model(
            input_ids=batch.input_ids,
            position_ids=batch.position_ids,
            doc_index=batch.doc_index,
            max_documents=batch.max_documents,
            branch_index=batch.branch_index,
            use_cache=False,
        ).last_hidden_state.flatten(0, 1)
        labels = batch.labels.flatten()
        rows = target_rows(labels, batch.targets if self.fused else None)
        if per_token:
            return token_logprobs(hidden, self.lm.lm_head.weight, labels[rows], rows)
        return cross_entropy_sum(
            hidden, self.lm.lm_head.weight, labels[rows], rows, scale, z_loss, fused=self.fused, each_N=each
        )


class FamilyScorer(Scorer):
    """The same of another model of transformers (model/families)."""

    def __init__(
        self, lm: PreTrainedModel, dtype: torch.dtype, how: str, chunked: bool, *, fused: bool = False
    ):
        """`dtype`: what products are computed in; `how`, `chunked`: model.steel.attention.Documents.of."""
        nn.Module.__init__(self)
        self.lm, self.fused, self.dtype, self.how, self.chunked = lm, fused, dtype, how, chunked
        self.auxiliary, self.cap = head.auxiliary_weight(lm), head.soft_cap(lm)
        self.shares_prompts = False

    def train(self, mode: bool = True) -> FamilyScorer:
        """As of any module, but the model itself stays as it is asked: whatever it leaves out or adds by chance in training
        (dropout, layers, noise of a router) is off, for a resumed run repeats every step."""
        super().train(mode)
        self.lm.eval()
        return self

    def forward(
        self,
        batch: Any,
        *,
        per_token: bool = False,
        scale: float = 1.0,
        z_loss: float = 0.0,
        each: Tensor | None = None,
    ) -> Any:
        """As Scorer's; the experts' auxiliary loss is part of the loss to differentiate, weighted by the targets.
        `batch` None: hold the model against transformers' own forward (raises FamilyError); True if branches of a
        document are exact, too."""
        if batch is None:
            return probe.check(self.lm, self._probed, self.dtype, branches=self.how not in KERNELS)
        balance = bool(self.auxiliary) and not per_token
        packed = PackedRows(
            batch.doc_index,
            batch.position_ids,
            self.how,
            self.chunked,
            batch.max_documents,
            batch.branch_index,
        )
        out = self._body(batch.input_ids, packed, balance=balance)
        labels = batch.labels.flatten()
        rows = target_rows(labels, batch.targets if self.fused else None)
        hidden, weight = head.with_head(self.lm, out.last_hidden_state.flatten(0, 1))
        if per_token:
            return token_logprobs(hidden, weight, labels[rows], rows, self.cap)
        loss, nll = cross_entropy_sum(
            hidden, weight, labels[rows], rows, scale, z_loss, fused=self.fused, each_N=each, cap=self.cap
        )
        if balance:
            real = torch.arange(batch.input_ids.shape[1], device=labels.device) < batch.valid[:, None]
            loss = loss + scale * self.auxiliary * len(rows) * head.auxiliary_loss(
                self.lm, out.router_logits, real
            )
        return loss, nll

    def _body(self, ids: Tensor, packed: PackedRows, *, balance: bool) -> Any:
        """The forward pass up to the last norm, each document alone."""
        more = {"output_router_logits": True} if balance else {}
        return self.lm.base_model(
            input_ids=ids, position_ids=packed.position_ids, use_cache=False, documents=packed, **more
        )

    def _probed(
        self, ids: Tensor, positions: Tensor, documents: Tensor, branches: Tensor | None = None
    ) -> Tensor:
        packed = PackedRows(documents, positions, self.how, self.chunked, 2, branches)
        return self._body(ids, packed, balance=False).last_hidden_state[0]


def target_rows(labels: Tensor, count: int | None) -> Tensor:
    """Positions that have a label, in order. Counting them on a GPU waits for it, so `count` says how many there are."""
    if count is None:
        return (labels != IGNORED).nonzero().squeeze(1)
    return torch.nonzero_static(labels != IGNORED, size=count).squeeze(1)


class NextToken:
    """pretrain and sft: cross-entropy of the targets."""

    stats = ("loss",)

    def __init__(self, config: TrainConfig, sources: SourceLoss | None = None):
        """`sources`: gets what each target cost."""
        self.z_loss, self.sources = config.optim.z_loss, sources

    def units(self, batch: Any) -> int:
        return batch.targets

    def __call__(self, scorer: Scorer, batch: Any, scale: float) -> tuple[Tensor, Tensor]:
        """(scale * sum over the units, to differentiate; FP64 sums of `stats`)."""
        each = None if self.sources is None else self.sources.room(batch)
        loss, nll = scorer(batch, per_token=False, scale=scale, z_loss=self.z_loss, each=each)
        if self.sources is not None and each is not None:
            self.sources.add(batch, each)
        return loss, nll.detach().double().reshape(1)

    def evaluate(self, scorer: Scorer, batch: Any, sources: int) -> Tensor:
        """FP64 [sources, 2]: -log p and targets of the batch's rows, by their file."""
        logp = scorer(batch, per_token=True)
        row = (batch.labels != IGNORED).nonzero()[:, 0]
        file = batch.files.to(logp.device).long()[row]
        table = torch.zeros(sources, 2, dtype=torch.float64, device=logp.device)
        table[:, 0].index_add_(0, file, -logp.double())
        table[:, 1].index_add_(0, file, torch.ones_like(logp, dtype=torch.float64))
        return table


def make_objective(config: TrainConfig, sources: SourceLoss | None = None) -> NextToken | Dpo:
    return Dpo(config) if config.objective == "dpo" else NextToken(config, sources)
