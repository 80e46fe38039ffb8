"""The training loop, top to bottom.

One optimizer step: read the batch, agree on how many units it has (and whether to stop), forward and backward per
micro-step, clip, update, report. Everything a step needs follows from its number, so a run that is stopped and resumed
goes through the same steps with the same bytes as one that is not (same machine, ranks and threads; on CPUs, docs/training.md).
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch

from model.families import counts
from model.training import lines
from model.training.checkpoint import STATE, Checkpoints, DamagedError, check, load, read_state
from model.training.config import ConfigError, TrainConfig
from model.training.detail import Detail
from model.training.export import full_weights, write_export
from model.training.exports import Exports
from model.training.inputs import fitting_files, make_loader, validation_batches, verify_files
from model.training.loader import Prefetch
from model.training.metrics import Metrics, Window, peak_flops
from model.training.neftune import Neftune
from model.training.now import Now
from model.training.objectives import Scorer, make_objective
from model.training.optim import clip, decay_begins, learning_rate, local_gradients, make_optimizer, set_rate
from model.training.pace import Pace, memory
from model.training.pairs import PairLoader, write_logprobs
from model.training.parallel import World, build
from model.training.preference import reply_logprobs
from model.training.resume import check_allowed, hold, hold_order, resolved, say_jump
from model.training.sharding import begin_micro_step, reshard
from model.training.sources import SourceLoss
from model.training.spikes import Skips
from model.training.stop import StopFlag
from model.training.trace import Trace
from model.training.watch import Watch

log = logging.getLogger("steel.training")


class TrainingError(RuntimeError):
    """Training cannot go on: one clear line."""


def train(config: TrainConfig, world: World, stop: StopFlag, watch: Watch, now: Now) -> bool:
    """Run or resume; True when finished, False when stopped at a checkpoint."""
    work = Path(config.work_dir)
    check_allowed(config.allow_changed)
    now.at("checks the data")
    verify_files(config, world)
    fitting_files(config, world)
    now.at("reads the checkpoint and the model")
    checkpoints = Checkpoints(
        work / "checkpoints", config.keep_checkpoints, config.keep_every * config.save_every
    )
    at = checkpoints.newest_sound()
    joins = at is None and config.continue_from is not None
    if joins:
        at = Path(config.continue_from)
        if not (at / STATE).is_file():
            raise ConfigError(f"continue_from: {at} is no complete checkpoint")
        try:
            check(at)
        except DamagedError as error:
            raise ConfigError(f"continue_from: {error}") from None
    state: dict[str, Any] = {"step": 0, "tokens": 0, "window": None, "loader": None}
    if at is not None:
        state = read_state(at)
        hold_order(at, state.get("config"), config)
    begin, tokens = state["step"], state["tokens"]
    loader = make_loader(config, world, state["loader"], append=joins)
    steps = config.steps or loader.steps_for(config.epochs)
    if joins and begin >= steps:
        raise ConfigError(
            f"the run to continue was at step {begin}: steps count on from there, {steps} are too few"
        )
    refuse_fewer(at, begin, steps)
    scorer = build(config, world)
    if isinstance(loader, PairLoader):
        loader.share_prompts = scorer.shares_prompts
    by_source = SourceLoss(getattr(loader, "sources", []), world.device, state.get("sources"))
    objective = make_objective(config, by_source)
    optimizer = make_optimizer(scorer, config.optim, world.dtype)
    settings = resolved(
        config, scorer.lm.config.to_dict(), "bf16" if world.dtype is torch.bfloat16 else "fp32"
    )
    if at is not None:
        hold(at, state.get("config"), settings, joins=joins)
        load(at, scorer, optimizer)
    rate = state.get("rate")
    if begin and begin < steps:
        say_jump(rate, begin, *(learning_rate(config.optim, step, steps) for step in (begin - 1, begin)))
    spare = spare_step(config, steps)
    ready = Prefetch(loader, 2 if world.device.type == "cuda" else 0, steps, world.device)
    exports = Exports(config, checkpoints, begin, active=world.first)
    skips = Skips(config.optim, state.get("skips"))
    metrics = Metrics(work / "metrics.jsonl", active=world.first, step=begin)
    window = Window(objective.stats, state["window"])
    flops = getattr(scorer.lm.config, "num_flops_per_token", None) or counts.flops_per_token(scorer.lm)
    peak = config.peak_tflops * 1e12 if config.peak_tflops else peak_flops(world.device)
    pace, trace = Pace(world.rank, world.size), Trace(config, world, steps)
    detail = Detail(config, world, scorer, steps)
    neftune = Neftune(scorer.lm, config.neftune_alpha, config.seed)

    def save(step: int) -> None:
        kept = {
            "tokens": tokens, "window": window.state(), "loader": loader.state(step), "config": settings,
            "rate": rate, "sources": by_source.state(), "validation_due": due, **({"skips": skips.state()} if skips.active or skips.skipped else {}),
        }  # fmt: skip
        checkpoints.save(step, scorer, optimizer, kept, spare)

    def validated(done: int) -> bool:
        """Write the line of a validation; False where a stop came between."""
        found = validate(config, world, scorer, objective, watch, stop, now)
        now.rest()
        if found is not None:
            metrics.write({"step": done, **found})
        return found is not None

    def stopped(step: int) -> bool:
        ready.close()
        return end_early(step, steps, trace, exports, metrics, checkpoints, save)

    now.rest()
    due = bool(state.get("validation_due")) and not validated(begin)
    for step in range(begin, steps):
        clock = time.perf_counter()
        watch.beat()
        exports.poll()
        trace.begin(step + 1)
        with pace.reading():
            batches = ready.batch(step)
        units = [objective.units(b) for b in batches]
        seen = sum(b.input_ids.numel() for b in batches)
        total, new_tokens, stopping, *seconds = world.sum(sum(units), seen, stop.requested, *pace.arrive())
        pace.meet(seconds)
        if stopping:
            return stopped(step)

        # FSDP averages over the ranks; the factor makes it the sum over all units divided by their number
        scale = world.size / max(1.0, total)
        stats = torch.zeros(len(objective.stats), dtype=torch.float64, device=world.device)
        look = detail.step(step)
        for i, batch in enumerate(batches):
            begin_micro_step(scorer, config, last=i == len(batches) - 1)
            batch = batch.to(world.device)
            if look is not None:
                look.batch(batch)
            with neftune.on(batch, step):
                loss, sums = objective(scorer, batch, scale)
            loss.backward()
            stats += sums

        if look is not None:
            look.gradients()
        stats = torch.cat([stats, by_source.take()])
        norm, stats = clip(local_gradients(scorer), config.optim.grad_clip, stats, world.copies)
        pace.part()
        reason = skips.reason(stats[0].item() / max(1.0, total) if skips.active else 0.0, norm)
        if reason is not None and not skips.skip():
            checkpoints.wait()
            raise TrainingError(
                f"the gradient of step {step + 1} is not finite (norm {norm}); lower the learning rate"
                if not skips.active
                else f"step {step + 1} is one too many to leave out: {reason}"
            )
        rate = learning_rate(config.optim, step, steps)
        set_rate(optimizer, rate)
        if reason is None:
            if look is not None:
                look.before_update()
            optimizer.step()
            if look is not None:
                look.after_update()
        else:
            log.warning("step %d is left out (%d so far): %s", step + 1, skips.skipped, reason)
        optimizer.zero_grad(set_to_none=True)

        done = step + 1
        tokens += int(new_tokens)
        work_done = new_tokens * flops(batches[0].input_ids.shape[1])
        sums = stats.tolist()
        counted = (sums[: len(objective.stats)], total) if reason is None else None
        if reason is None:
            by_source.count(sums[len(objective.stats) :])
        took = time.perf_counter() - clock
        window.add(counted, new_tokens, work_done, took)
        pace.made(done, took)
        if done % config.log_every == 0 or done == steps:
            line = {**window.close(world.size, peak), **pace.close(done, steps)}
            left_out = {"skipped": skips.skipped} if skips.active else {}
            size = {"grad_norm": norm} if np.isfinite(norm) else {}
            line = {
                "step": done,
                "lr": rate,
                **size,
                "tokens": tokens,
                **line,
                "memory_gb": memory(world.device),
            }
            metrics.write({**line, **left_out})
            log.info("%s", lines.describe(line, steps))
        if look is not None:
            metrics.write({"step": done, **look.close(), **by_source.close()})
        trace.end(done)
        if config.data.val_files and (done == steps or (config.eval_every and done % config.eval_every == 0)):
            due = not validated(done)
        if saves(config, exports, done, steps, spare):
            exports.add(done)
            save(done)

    if due:
        return stopped(steps)
    watch.rest()
    ready.close()
    now.at("writes the last checkpoint and the export")
    finish_saving(config, steps, trace, metrics, checkpoints)
    export(config, world, scorer, work / "export")
    return exports.finish(stop)


def logprobs(config: TrainConfig, world: World, stop: StopFlag, watch: Watch, now: Now) -> bool:
    """Score every pair with the model and write work_dir/logprobs.arrow; False when stopped."""
    now.at("reads the model")
    scorer = build(config, world)
    scorer.eval()
    loader = make_loader(config, world)
    assert isinstance(loader, PairLoader)
    loader.share_prompts = scorer.shares_prompts
    sums, counts = (torch.zeros(len(loader), 2, dtype=torch.float64) for _ in range(2))
    metrics = Metrics(Path(config.work_dir) / "metrics.jsonl", active=world.first, step=0)
    now.rest()
    batches = loader.in_order()
    steps = len(batches)
    begin = time.perf_counter()
    for done, batch in enumerate(batches, 1):
        watch.beat()
        if done <= config.log_every:  # then the lines tell
            now.count("scores the pairs", done - 1, steps, "batches")
        with torch.no_grad():
            found = reply_logprobs(scorer, batch.to(world.device)).double().cpu()
        real = batch.index >= 0
        sums[batch.index[real]] = found[real]
        counts[batch.index[real]] = batch.reply_tokens[real].double()
        if world.sum(stop.requested)[0]:
            metrics.close()
            return False
        if done % config.log_every == 0 or done == steps:
            seconds = (time.perf_counter() - begin) / done
            speed = loader.micro * world.size / seconds
            eta = round(seconds * (steps - done), 1)
            now.rest()
            metrics.write({"step": done, "steps": steps, "pairs_per_s": speed, "eta_s": eta})
    watch.rest()
    now.rest()
    metrics.close()
    both = torch.stack([sums, counts]).to(world.device)
    torch.distributed.all_reduce(both)
    sums, counts = both.cpu().numpy()
    if world.first:
        write_logprobs(Path(config.work_dir) / "logprobs.arrow", loader.ids, sums, counts)
        log.info("%d pairs in %.1f s", len(loader), time.perf_counter() - begin)
    return True


@torch.no_grad()
def validate(
    config: TrainConfig,
    world: World,
    scorer: Scorer,
    objective: Any,
    watch: Watch,
    stop: StopFlag,
    now: Now,
) -> dict[str, Any] | None:
    """The loss on the validation files, each row once: in all, and by source. None: a rank was told to stop meanwhile."""
    files = config.data.val_files
    scorer.eval()
    table = torch.zeros(len(files), 2, dtype=torch.float64, device=world.device)
    stopping = False
    batches = validation_batches(config, world, share_prompts=scorer.shares_prompts)
    for done, batch in enumerate(batches):
        watch.beat()
        now.count("validation", done, len(batches), "batches")
        table += objective.evaluate(scorer, batch.to(world.device), len(files))
        if stopping := bool(world.sum(stop.requested)[0]):
            break
    scorer.train()
    reshard(scorer)
    if stopping:
        return None
    torch.distributed.all_reduce(table)
    sources: dict[str, np.ndarray] = {}
    for file, sums in zip(files, table.cpu().numpy(), strict=True):
        sources[file.source] = sources.get(file.source, 0) + sums
    total, units = sum(sources.values(), start=np.zeros(2))
    by_source = {name: s / n for name, (s, n) in sorted(sources.items()) if name and n}
    return {"val_loss": total / units, **({"val_loss_by_source": by_source} if by_source else {})}


# ---------------------------------------------------------- of every training with steps, GRPO's too
def refuse_fewer(at: Path | None, begin: int, steps: int) -> None:
    """ConfigError where the checkpoint `at` is of a later step than the last one."""
    if begin > steps:
        raise ConfigError(f"{at} is of step {begin}, and the run is to have {steps} steps: it has had more")


def spare_step(config: TrainConfig, steps: int) -> int | None:
    """Where another run would continue with the rate still up: the checkpoint of this step stays."""
    return decay_begins(config.optim, steps) if config.keep_final and config.optim.schedule == "wsd" else None


def saves(config: TrainConfig, exports: Exports, done: int, steps: int, spare: int | None) -> bool:
    """Whether a checkpoint is saved after so many steps."""
    due = done % config.save_every == 0 or exports.due(done)
    return (due and done < steps) or done == spare or (done == steps and config.keep_final)


def end_early(
    step: int,
    steps: int,
    trace: Trace,
    exports: Exports,
    metrics: Metrics,
    checkpoints: Checkpoints,
    save: Callable[[int], None],
) -> bool:
    """Save, and end as a run that was told to stop; `step` is the next one to make."""
    trace.close(step)
    exports.stop()
    save(step)
    metrics.close()
    if not checkpoints.wait():
        raise TrainingError(f"stopped by a signal before step {step + 1}, without a checkpoint of it")
    log.info("stopped by a signal before step %d of %d", step + 1, steps)
    return False


def finish_saving(
    config: TrainConfig, steps: int, trace: Trace, metrics: Metrics, checkpoints: Checkpoints
) -> None:
    """After the last step, before the export."""
    trace.close(steps)
    metrics.close()
    if not checkpoints.wait() and config.keep_final:
        raise TrainingError("the training has ended, but its last checkpoint could not be saved")


def export(config: TrainConfig, world: World, scorer: Scorer, folder: Path) -> None:
    """Gather the weights and write the export folder (first rank)."""
    weights = full_weights(scorer.lm, getattr(torch, config.export_dtype), keep=world.first)
    if world.first:
        try:
            write_export(folder, scorer.lm.config, weights, config.tokenizer_dir, config.init_from)
        except OSError as error:
            raise TrainingError(
                f"the training has ended, but its model could not be written: {error}"
            ) from error
        log.info("exported to %s", folder)
    torch.distributed.barrier()
