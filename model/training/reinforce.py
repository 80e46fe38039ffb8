"""Reinforcement learning with verifiable rewards: the loop of the objective `grpo`.

One step: every rank samples replies to its prompts with the weights as they are, grades them, and the groups that have
something to teach are gone through `inner_steps` times, each time with an update. A checkpoint stands between two
steps. What is sampled is a function of (weights, seed, step), so a run that is stopped and resumed goes through the
same bytes as one that is not.

The log-probabilities that a ratio refers to are those of the first pass itself, so its ratio is exactly 1. The sampler
computes the same numbers another way (cached, few rows at a time): how far it is off is measured and logged, never
corrected for.
"""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.tensor import DTensor

from model import scoring
from model.families import counts, network
from model.rewards import REWARDS
from model.sampling import Sample, graded, sample
from model.tokenizer import TextTokenizer
from model.training import lines
from model.training.checkpoint import Checkpoints, load, read_state
from model.training.config import ConfigError, TrainConfig
from model.training.detail import Detail, Look
from model.training.exports import Exports
from model.training.grpo import STATS, Group, GroupBatch, Grpo, batch_of
from model.training.inputs import verify_files, vocabulary
from model.training.loop import (
    TrainingError,
    end_early,
    export,
    finish_saving,
    refuse_fewer,
    saves,
    spare_step,
)
from model.training.metrics import Metrics, Window, peak_flops
from model.training.now import Now
from model.training.objectives import Scorer
from model.training.optim import clip, learning_rate, local_gradients, make_optimizer, set_rate
from model.training.pace import Pace, memory
from model.training.parallel import World, build, read_geometry
from model.training.prompts import Prompt, PromptLoader
from model.training.resume import check_allowed, hold, hold_order, resolved, say_jump
from model.training.sharding import begin_micro_step
from model.training.stop import StopFlag
from model.training.trace import Trace
from model.training.watch import Watch

log = logging.getLogger("steel.training")

SEEN = ("groups", "zero", "replies", "reward", "reward_squares", "tokens", "cut", "entropy", "work")
"""Counted while sampling: groups and those without signal, replies, sums of rewards, sampled tokens, truncated replies,
the sum of entropies, and the model's operations."""


def reinforce(config: TrainConfig, world: World, stop: StopFlag, watch: Watch, now: Now) -> bool:
    """Run or resume; True when finished, False when stopped at a checkpoint."""
    work = Path(config.work_dir)
    check_allowed(config.allow_changed)
    now.at("checks the data")
    verify_files(config, world)
    now.at("reads the checkpoint and the models")
    checkpoints = Checkpoints(
        work / "checkpoints", config.keep_checkpoints, config.keep_every * config.save_every
    )
    at = checkpoints.newest_sound()
    state: dict[str, Any] = {"step": 0, "tokens": 0, "updates": 0, "window": []}
    if at is not None:
        state = read_state(at)
        hold_order(at, state.get("config"), config)
    begin, tokens, updates = state["step"], state["tokens"], state["updates"]
    loader = prompts_of(config, world)
    if at is not None and state["loader"] != loader.state():
        raise ConfigError(f"{at} was trained on other prompts")
    steps = config.steps or loader.steps_for(config.epochs or 1)
    trainer = Trainer(config, world)
    settings = resolved(
        config, trainer.scorer.lm.config.to_dict(), "bf16" if world.dtype is torch.bfloat16 else "fp32"
    )
    refuse_fewer(at, begin, steps)
    if at is not None:
        hold(at, state.get("config"), settings, joins=False)
        load(at, trainer.scorer, trainer.optimizer)
    rate = state.get("rate")
    if begin and begin < steps:
        say_jump(rate, begin, *(learning_rate(config.optim, step, steps) for step in (begin - 1, begin)))
    spare = spare_step(config, steps)
    sampler = Sampler(config, world)
    exports = Exports(config, checkpoints, begin, active=world.first)
    metrics = Metrics(work / "metrics.jsonl", active=world.first, step=begin)
    window: list[dict[str, float]] = state["window"]
    speed, shares = Window(()), []
    peak = config.peak_tflops * 1e12 if config.peak_tflops else peak_flops(world.device)
    pace, trace = Pace(world.rank, world.size), Trace(config, world, steps)
    detail = Detail(config, world, trainer.scorer, steps)

    def save(step: int) -> None:
        kept = {
            "tokens": tokens, "updates": updates, "window": window, "loader": loader.state(), "config": settings,
            "rate": rate,
        }  # fmt: skip
        checkpoints.save(step, trainer.scorer, trainer.optimizer, kept, spare)

    for step in range(begin, steps):
        clock = time.perf_counter()
        watch.beat()
        exports.poll()
        trace.begin(step + 1)
        with pace.reading():
            prompts = loader.batch(step)
        stopping, *seconds = world.sum(stop.requested, *pace.arrive())
        pace.meet(seconds)
        if stopping:
            return end_early(step, steps, trace, exports, metrics, checkpoints, save)
        now.at(f"samples the replies of step {step + 1}")
        sampler.refresh(trainer.scorer.lm)
        pace.part()
        groups, seen = sampler.groups(prompts)
        watch.beat()
        now.at(f"learns from the replies of step {step + 1}")
        sampling = time.perf_counter() - clock
        # ranks sample by themselves: whoever has the longest replies is waited for here
        sums = world.sum(*seen, *pace.arrive())
        total = dict(zip(SEEN, sums[: len(SEEN)], strict=True))
        pace.meet(sums[len(SEEN) :])
        rate = learning_rate(config.optim, step, steps)
        learned = trainer.learn(groups, loader.micro, rate, step, detail)
        pace.part()
        updates += learned.updates
        done = step + 1
        tokens += int(total["tokens"])
        window.append({**_shown(total), **learned.line})
        took = time.perf_counter() - clock
        speed.add(None, total["tokens"], total["work"] + learned.work, took)
        shares.append(sampling / took)
        pace.made(done, took)
        if done % config.log_every == 0 or done == steps:
            means = {name: _mean(window, name) for name in dict.fromkeys(n for each in window for n in each)}
            line = {
                "step": done,
                "lr": rate,
                "tokens": tokens,
                **means,
                **speed.close(world.size, peak),
                "sampling_share": sum(shares) / len(shares),
                **pace.close(done, steps),
                "memory_gb": memory(world.device),
            }
            metrics.write(line)
            log.info("%s", lines.describe(line, steps))
            window, shares = [], []
        if learned.look is not None:
            metrics.write({"step": done, **learned.look.close()})
        now.rest()
        trace.end(done)
        if saves(config, exports, done, steps, spare):
            exports.add(done)
            save(done)
    watch.rest()
    now.at("writes the last checkpoint and the export")
    finish_saving(config, steps, trace, metrics, checkpoints)
    export(config, world, trainer.scorer, work / "export")
    return exports.finish(stop)


def prompts_of(config: TrainConfig, world: World) -> PromptLoader:
    """The run's prompts; ConfigError where one does not fit the model."""
    loader = PromptLoader(
        [{"path": file.path} for file in config.data.files],
        seed=config.seed, batch_size=config.batch_size, rank=world.rank, world_size=world.size,
        micro_batch_size=config.micro_batch_size,
    )  # fmt: skip
    if loader.largest_id >= vocabulary(config):
        raise ConfigError(
            f"data.files hold the token id {loader.largest_id}; the model has {vocabulary(config)}"
        )
    assert config.init_from is not None
    context = getattr(read_geometry(config, Path(config.init_from)), "max_position_embeddings", None)
    if context and loader.longest + config.rl.max_new_tokens > context:
        raise ConfigError(
            f"a prompt of {loader.longest} tokens and rl.max_new_tokens {config.rl.max_new_tokens} exceed the model's "
            f"context of {context}"
        )
    return loader


class Sampler:
    """A whole copy of the model on this rank, which samples and grades."""

    def __init__(self, config: TrainConfig, world: World):
        assert config.init_from is not None  # TrainConfig has seen to both
        assert config.tokenizer_dir is not None
        self.rl, self.model = config.rl, scoring.load(config.init_from, str(world.device), world.dtype)
        try:
            self.tokenizer = TextTokenizer.open(config.tokenizer_dir)
        except Exception as error:  # tokenizers raises bare ones
            raise ConfigError(f"tokenizer_dir: {config.tokenizer_dir} cannot be read: {error}") from error
        self.stops = self.tokenizer.stops
        if not self.stops:
            raise ConfigError(
                f"the tokenizer has no token {self.tokenizer.chat.turn_end}: no reply would ever end"
            )
        self._weights = dict(self.model.named_parameters())
        self._operations = operations(self.model)

    @torch.no_grad()
    def refresh(self, lm: nn.Module) -> None:
        """Take the trainer's weights (all ranks take part)."""
        for name, parameter in lm.named_parameters():
            full = parameter.detach()
            self._weights[name].copy_(full.full_tensor() if isinstance(full, DTensor) else full)
        network.put_kept(self.model, network.kept(lm))  # as exact as the trainer's: it chooses experts

    def groups(self, prompts: Sequence[tuple[Prompt, int]]) -> tuple[list[Group], list[float]]:
        """Sampled and graded groups, and the sums of SEEN."""
        rows = sample(
            self.model, [p.prompt for p, _ in prompts], stops=self.stops, group=self.rl.group,
            limit=self.rl.max_new_tokens, temperature=1.0, seeds=[seed for _, seed in prompts],
        )  # fmt: skip
        groups = []
        seen = dict.fromkeys(SEEN, 0.0)
        for (prompt, _), replies in zip(prompts, rows, strict=True):
            group = self._group(prompt, replies)
            groups.append(group)
            seen["groups"] += 1
            seen["zero"] += not group.useful
            seen["replies"] += len(replies)
            seen["reward"] += sum(group.rewards)
            seen["reward_squares"] += sum(r * r for r in group.rewards)
            seen["tokens"] += sum(len(r.ids) for r in replies)
            seen["cut"] += sum(not r.ended for r in replies)
            seen["entropy"] += sum(r.entropy for r in replies)
            # a forward pass, a third of what a trained token costs, of the prompt once and of each reply
            lengths = [len(r.ids) for r in replies]
            whole = len(prompt.prompt) + max(lengths)
            seen["work"] += (len(prompt.prompt) + sum(lengths)) * self._operations(whole) / 3
        return groups, [seen[name] for name in SEEN]

    def _group(self, prompt: Prompt, replies: Sequence[Sample]) -> Group:
        reward = REWARDS[prompt.reward]
        return Group(
            prompt=prompt.prompt,
            replies=[r.ids for r in replies],
            rewards=[reward(graded(self.tokenizer, r), prompt.answer) for r in replies],
            trained=[r.ended or not self.rl.mask_truncated for r in replies],
            logps=[r.logps for r in replies],
        )


def operations(lm: Any) -> Callable[[int], float]:
    """Row length -> operations of a trained token: three times the forward pass."""
    return getattr(lm.config, "num_flops_per_token", None) or counts.flops_per_token(lm)


class Learned(NamedTuple):
    """What one step's updates were."""

    line: dict[str, float]
    """The step's numbers over all ranks."""
    updates: int = 0
    work: float = 0.0
    """The model's operations, of all ranks."""
    look: Look | None = None
    """At the step's last update, if it was looked at."""


class Trainer:
    """The sharded model, its optimizer, and the update on a step's groups."""

    def __init__(self, config: TrainConfig, world: World):
        self.config, self.world = config, world
        self.scorer: Scorer = build(config, world)
        self.optimizer = make_optimizer(self.scorer, config.optim, world.dtype)
        self.operations = operations(self.scorer.lm)
        self.loss = Grpo(config.rl.clip_low, config.rl.clip_high, config.rl.kl_weight)
        self.reference = None
        if config.rl.kl_weight:
            self.reference = build(config, world)
            self.reference.eval()

    def learn(
        self, groups: Sequence[Group], micro: int, rate: float, step: int, detail: Detail | None = None
    ) -> Learned:
        """Go through this rank's groups."""
        batches = [
            batch_of(
                groups[i : i + micro], self.config.rl.advantage, share_prompts=self.scorer.shares_prompts
            ).to(self.world.device)
            for i in range(0, len(groups), micro)
        ]
        work = sum(b.input_ids.numel() * self.operations(b.input_ids.shape[1]) for b in batches)
        units, work = self.world.sum(sum(float(b.copies.sum()) for b in batches), work)
        if not units:  # no group of any rank has anything to teach
            return Learned({"loss": 0.0, "trained_tokens": 0.0, "updates": 0.0})
        set_rate(self.optimizer, rate)
        references = [self._reference(b) for b in batches]
        olds: list[Tensor] = []
        sums = torch.zeros(len(STATS), dtype=torch.float64)
        norms, gap = 0.0, torch.zeros(3, dtype=torch.float64)
        look, made = None, self.config.rl.inner_steps
        for passed in range(made):
            if detail is not None and passed == made - 1:
                look = detail.step(step)
            stats = torch.zeros(len(STATS), dtype=torch.float64, device=self.world.device)
            for i, batch in enumerate(batches):
                begin_micro_step(self.scorer, self.config, last=i == len(batches) - 1)
                if look is not None:
                    look.batch(batch)
                logp = self.scorer(batch, per_token=True)
                if not passed:
                    olds.append(logp.detach().clone())
                    gap = _further(gap, olds[-1], batch)
                loss, found = self.loss(logp, olds[i], references[i], batch)
                # FSDP averages over the ranks; the factor makes it the sum over all tokens by their number
                (loss * (self.world.size / units)).backward()
                stats += found
            if look is not None:
                look.gradients()
            limit = self.config.optim.grad_clip
            norm, stats = clip(local_gradients(self.scorer), limit, stats, self.world.copies)
            if not math.isfinite(norm):
                raise TrainingError(
                    f"the gradient of step {step + 1} is not finite (norm {norm}); lower the learning rate"
                )
            if look is not None:
                look.before_update()
            self.optimizer.step()
            if look is not None:
                look.after_update()
            self.optimizer.zero_grad(set_to_none=True)
            sums += stats.cpu()
            norms += norm
        line = {name: value / units / made for name, value in zip(STATS, sums.tolist(), strict=True)}
        if self.reference is None:
            del line["kl"]
        line |= {"grad_norm": norms / made, **self._gap(gap), "trained_tokens": units, "updates": made}
        passes = made if self.reference is None else made + 1 / 3  # the start model's is a forward pass
        return Learned(line, made, work * passes, look)

    @torch.no_grad()
    def _reference(self, batch: GroupBatch) -> Tensor | None:
        """log p of the start model, FP32 [N]; None without a KL term."""
        if self.reference is None:
            return None
        return self.reference(batch, per_token=True)

    def _gap(self, gap: Tensor) -> dict[str, float]:
        """The sampler's distance in nats a token, over all ranks."""
        total, count = self.world.sum(*gap[:2].tolist())
        largest = gap[2].to(self.world.device)
        dist.all_reduce(largest, dist.ReduceOp.MAX)
        if not count:
            return {}
        name = "sampling/sampling_logp_difference"
        return {f"{name}/mean": total / count, f"{name}/max": largest.item()}


def _further(gap: Tensor, logp: Tensor, batch: GroupBatch) -> Tensor:
    """FP64 [3]: sum, number and maximum of |trainer - sampler| so far."""
    known = ~batch.sampled.isnan()
    off = (logp - batch.sampled)[known].abs().double().cpu()
    if not len(off):
        return gap
    return torch.stack([gap[0] + off.sum(), gap[1] + len(off), torch.maximum(gap[2], off.max())])


def _shown(seen: dict[str, float]) -> dict[str, float]:
    """A step's numbers under TRL's names."""
    n = seen["replies"]
    spread = max(0.0, seen["reward_squares"] - seen["reward"] ** 2 / n) / max(1.0, n - 1)
    return {
        "reward": seen["reward"] / n,
        "reward_std": math.sqrt(spread),
        "frac_reward_zero_std": seen["zero"] / seen["groups"],
        "entropy": seen["entropy"] / seen["tokens"],
        "completions/mean_length": seen["tokens"] / n,
        "completions/clipped_ratio": seen["cut"] / n,
    }


def _mean(window: Sequence[dict[str, float]], name: str) -> float:
    """Over the steps that have the number; the largest of maxima."""
    values = [each[name] for each in window if name in each]
    return max(values) if name.endswith("/max") else sum(values) / len(values)
