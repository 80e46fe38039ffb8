"""GRPO: what is learned from groups of graded replies (Shao et al. 2024; token-level sums and clip-higher of Yu et al. 2025).

    advantage   A = (r - mean) / (std + 1e-4) over the replies to one prompt, std with ddof 1
    ratio       w = exp(log p - log p of the same weights before the first update on these replies)
    loss        sum over tokens of -min(w A, clip(w, 1 - low, 1 + high) A) + kl_weight * k3,
                divided by the tokens of all replies that are trained on
    k3          exp(q - p) - (q - p) - 1, p and q the log-probabilities of the policy and of the start model

With the advantage `right` it is rejection sampling instead (RAFT, Xiong et al. 2025): A is 1 for a right reply, and
nothing else is trained on; on the first pass that is fine-tuning on the model's own right replies.

A group whose rewards are all equal has no signal: it is left out and counted. A truncated reply is masked: its reward
counts in its group's mean, its tokens are not trained on. Equal replies to a prompt are one sequence with a weight.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields, replace

import torch
from torch import Tensor

from model.training.sequences import pack

EPSILON = 1e-4
"""Added to the standard deviation."""


@dataclass(frozen=True)
class Group:
    """One prompt, its replies and what they earned."""

    prompt: Sequence[int]
    replies: Sequence[Sequence[int]]
    rewards: Sequence[float]
    trained: Sequence[bool]
    """False: the reply is masked."""
    logps: Sequence[Sequence[float]] = ()
    """The sampler's log-probability of every token; empty: not known."""

    @property
    def useful(self) -> bool:
        """The rewards differ: there is something to learn."""
        return len(set(self.rewards)) > 1


@dataclass(frozen=True)
class GroupBatch:
    """One rank's micro-batch: the replies that are trained on, packed into b rows of T positions, N targets in all."""

    input_ids: Tensor
    labels: Tensor
    position_ids: Tensor
    doc_index: Tensor
    branch_index: Tensor | None
    advantage: Tensor
    """float32 [N], of the reply that a target belongs to."""
    copies: Tensor
    """float32 [N]: how many equal replies the target stands for. 0 for a filler, which keeps ranks in step."""
    sampled: Tensor
    """float32 [N]: the sampler's log-probability; NaN where it is not known."""
    replies: int

    @property
    def targets(self) -> int:
        return len(self.advantage)

    @property
    def max_documents(self) -> int:
        """A bound that needs no counting."""
        return self.replies + len(self.input_ids)

    def to(self, device: torch.device | str) -> GroupBatch:
        moved = {f.name: v.to(device) for f in fields(self) if isinstance(v := getattr(self, f.name), Tensor)}
        return replace(self, **moved)


def advantages(rewards: Sequence[float]) -> list[float]:
    """Of one group, computed in FP32."""
    r = torch.tensor(rewards, dtype=torch.float32)
    return ((r - r.mean()) / (r.std() + EPSILON)).tolist()


def gains(group: Group, advantage: str) -> list[float]:
    """The advantage of each reply; 0: it is not trained on. `advantage`: `group` or `right`."""
    if advantage == "right":
        values = list(map(float, group.rewards))
    else:
        values = advantages(group.rewards) if group.useful else [0.0] * len(group.rewards)
    return [value if on else 0.0 for value, on in zip(values, group.trained, strict=True)]


def batch_of(groups: Sequence[Group], advantage: str = "group", *, share_prompts: bool = False) -> GroupBatch:
    """The replies that are trained on, behind one copy of their prompt if it is shared; a filler if there are none."""
    prompts: list[Sequence[int]] = []
    replies: list[Sequence[int]] = []
    gain: list[float] = []
    copies: list[float] = []
    sampled: list[Sequence[float]] = []
    for group in groups:
        place: dict[tuple[int, ...], int] = {}
        values = gains(group, advantage)
        for i, reply in enumerate(group.replies):
            if not values[i]:
                continue
            at = place.setdefault(tuple(reply), len(replies))
            if at < len(replies):
                copies[at] += 1
                continue
            prompts.append(group.prompt)
            replies.append(reply)
            gain.append(values[i])
            copies.append(1.0)
            sampled.append(group.logps[i] if group.logps else [float("nan")] * len(reply))
    if not replies:
        first = groups[0]
        prompts, replies, gain, copies = [first.prompt], [first.replies[0]], [0.0], [0.0]
        sampled = [[float("nan")] * len(first.replies[0])]
    packed = pack(prompts, replies, share=share_prompts)
    # targets of a sequence are read in its order, but sequences were placed in any
    order = packed.owner
    start = torch.zeros(len(replies), dtype=torch.int64)
    place_in = torch.zeros(len(order), dtype=torch.int64)
    for k, owner in enumerate(order.tolist()):
        place_in[k] = start[owner]
        start[owner] += 1
    flat = torch.tensor([lp for each in sampled for lp in each], dtype=torch.float32)
    begin = torch.tensor([0, *map(len, sampled)]).cumsum(0)[:-1]
    return GroupBatch(
        input_ids=packed.input_ids,
        labels=packed.labels,
        position_ids=packed.position_ids,
        doc_index=packed.doc_index,
        branch_index=packed.branch_index,
        advantage=torch.tensor(gain, dtype=torch.float32)[order],
        copies=torch.tensor(copies, dtype=torch.float32)[order],
        sampled=flat[begin[order] + place_in],
        replies=len(replies),
    )


STATS = ("loss", "kl", "clip_ratio/low_mean", "clip_ratio/high_mean", "clip_ratio/region_mean")


@dataclass(frozen=True)
class Grpo:
    """The loss of a micro-batch."""

    clip_low: float = 0.2
    clip_high: float = 0.28
    kl_weight: float = 0.0

    def __call__(
        self, logp: Tensor, old: Tensor, reference: Tensor | None, batch: GroupBatch
    ) -> tuple[Tensor, Tensor]:
        """(sum over tokens, to differentiate; FP64 [5] sums of STATS). `logp`, `old`, `reference`: FP32 [N]."""
        a = batch.advantage
        ratio = (logp - old).exp()
        low, high = 1 - self.clip_low, 1 + self.clip_high
        loss = -torch.minimum(ratio * a, ratio.clamp(low, high) * a)
        kl = torch.zeros_like(logp)
        if reference is not None and self.kl_weight:
            gap = reference - logp
            kl = gap.exp() - gap - 1
            loss = loss + self.kl_weight * kl
        below, above = (ratio < low) & (a < 0), (ratio > high) & (a > 0)
        shown = torch.stack([loss, kl, below.float(), above.float(), (below | above).float()]).detach()
        return (loss * batch.copies).sum(), (shown * batch.copies).double().sum(1)
