"""The training loop, top to bottom.

One optimizer step: read the batch, agree on how many units it has (and whether to stop), forward and backward per
micro-step, clip, update, report. Everything a step needs follows from its number, so a run that is stopped and resumed
goes through the same steps with the same bytes as one that is not (same machine, ranks and threads; on CPUs, docs/training.md).
"""

from __future__ import annotations

import logging
import time
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import torch

from model.families import counts
from model.training import lines
from model.training.batch import Batch
from model.training.checkpoint import STATE, Checkpoints, DamagedError, check, load, read_state
from model.training.config import ConfigError, TrainConfig
from model.training.detail import Detail
from model.training.export import full_weights, needed_tokens, write_export
from model.training.exports import Exports
from model.training.gather import DataError, Rows
from model.training.loader import BlockLoader, Prefetch, val_batches
from model.training.metrics import Metrics, Window, peak_flops
from model.training.neftune import Neftune
from model.training.objectives import Scorer, make_objective
from model.training.optim import clip, decay_begins, learning_rate, local_gradients, make_optimizer, set_rate
from model.training.pace import Pace, memory
from model.training.pairs import PairLoader, write_logprobs
from model.training.parallel import World, build, read_geometry
from model.training.preference import reply_logprobs
from model.training.resume import check_allowed, hold, hold_order, resolved, say_jump
from model.training.sharding import begin_micro_step, reshard
from model.training.shards import ShardError, look_over, verify
from model.training.sources import SourceLoss
from model.training.spikes import Skips
from model.training.stop import StopFlag
from model.training.trace import Trace
from model.training.watch import Watch

log = logging.getLogger("steel.training")


class TrainingError(RuntimeError):
    """Training cannot go on: one clear line."""


def train(config: TrainConfig, world: World, stop: StopFlag, watch: Watch) -> bool:
    """Run or resume; True when finished, False when stopped at a checkpoint."""
    work = Path(config.work_dir)
    needed_tokens(config)  # what will not do is refused before the training, not after
    check_allowed(config.allow_changed)
    verify_files(config, world)
    fitting_files(config, world)
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
    if begin > steps:
        raise ConfigError(f"{at} is of step {begin}, and the run is to have {steps} steps: it has had more")
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
    # where another run would continue: with the rate still up, and at the end
    spare = (
        decay_begins(config.optim, steps) if config.keep_final and config.optim.schedule == "wsd" else None
    )
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
        found = validate(config, world, scorer, objective, watch, stop)
        if found is not None:
            metrics.write({"step": done, **found})
        return found is not None

    def stopped(step: int) -> bool:
        """Save, and end; the step is the next one to make."""
        trace.close(step)
        exports.stop()
        save(step)
        ready.close()
        metrics.close()
        if not checkpoints.wait():
            raise TrainingError(f"stopped by a signal before step {step + 1}, without a checkpoint of it")
        log.info("stopped by a signal before step %d of %d", step + 1, steps)
        return False

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
        if (
            (done % config.save_every == 0 and done < steps)
            or done == spare
            or (done == steps and config.keep_final)
            or (exports.due(done) and done < steps)
        ):
            exports.add(done)
            save(done)

    if due:
        return stopped(steps)
    watch.rest()
    trace.close(steps)
    ready.close()
    metrics.close()
    if not checkpoints.wait() and config.keep_final:
        raise TrainingError("the training has ended, but its last checkpoint could not be saved")
    export(config, world, scorer, work / "export")
    return exports.finish(stop)


def logprobs(config: TrainConfig, world: World, stop: StopFlag, watch: Watch) -> bool:
    """Score every pair with the model and write work_dir/logprobs.arrow; False when stopped."""
    scorer = build(config, world)
    scorer.eval()
    loader = make_loader(config, world)
    assert isinstance(loader, PairLoader)
    loader.share_prompts = scorer.shares_prompts
    sums, counts = (torch.zeros(len(loader), 2, dtype=torch.float64) for _ in range(2))
    metrics = Metrics(Path(config.work_dir) / "metrics.jsonl", active=world.first, step=0)
    steps = -(-len(loader) // (loader.micro * world.size))
    begin = time.perf_counter()
    for done, batch in enumerate(loader.in_order(), 1):
        watch.beat()
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
            metrics.write({"step": done, "steps": steps, "pairs_per_s": speed, "eta_s": eta})
    watch.rest()
    metrics.close()
    both = torch.stack([sums, counts]).to(world.device)
    torch.distributed.all_reduce(both)
    sums, counts = both.cpu().numpy()
    if world.first:
        write_logprobs(Path(config.work_dir) / "logprobs.arrow", loader.ids, sums, counts)
        log.info("%d pairs in %.1f s", len(loader), time.perf_counter() - begin)
    return True


def verify_files(config: TrainConfig, world: World) -> None:
    """Refuse a file whose content is not what its digest says, a shard with a token that the model does not have, and
    shards without any target: each rank reads its share of them."""
    if not config.data.verify:
        return
    shards = config.objective in ("pretrain", "sft")
    files = [f for f in (*config.data.files, *config.data.val_files) if f.digest or shards]
    begin = time.perf_counter()
    seen = torch.zeros(2, len(files), dtype=torch.int64, device=world.device)  # largest id, targets
    reasons: dict[int, str] = {}
    for i in range(world.rank, len(files), world.size):
        try:
            if files[i].digest:
                verify(files[i].path, files[i].digest)
            if shards:
                seen[:, i] = torch.tensor(look_over(files[i].path))
        except ShardError as error:
            log.error("%s", error)
            reasons[i] = str(error)
    torch.distributed.all_reduce(seen)
    if wrong := _of_all_ranks(reasons, world):
        raise DataError(
            f"{len(wrong)} of {len(files)} data files have changed since they were written or cannot be read: "
            f"{wrong[min(wrong)]}"
        )
    largest, targets = seen.tolist()
    for file, number in zip(files, largest, strict=True):
        _known_ids(file.path, number, vocabulary(config))
    count = len(config.data.files)
    for name, found in (("files", targets[:count]), ("val_files", targets[count:])) if shards else ():
        if found and not any(found):
            raise DataError(f"data.{name} hold nothing to predict: no rows, or nothing but masked tokens")
    log.info(
        "%d data files have the content their digests name (%.1f s)",
        sum(f.digest is not None for f in files), time.perf_counter() - begin,
    )  # fmt: skip


def _of_all_ranks(reasons: dict[int, str], world: World) -> dict[int, str]:
    """What any rank has against a file, by the file's number."""
    told: list[dict[int, str]] = [{}] * world.size
    torch.distributed.all_gather_object(told, reasons)
    return {i: reason for each in told for i, reason in each.items()}


def vocabulary(config: TrainConfig) -> int:
    """The number of tokens that the model has."""
    return read_geometry(config, None if config.init_from is None else Path(config.init_from)).vocab_size


def _known_ids(where: str, largest: int, size: int) -> None:
    if largest >= size:
        raise DataError(f"{where} holds the token id {largest}; the model has {size} tokens, 0 to {size - 1}")


def fitting_files(config: TrainConfig, world: World) -> None:
    """Refuse, before the first step, files that do not fit each other or what is said of them, and validation files
    without a target (DataError on all ranks alike). Each rank opens its share."""
    reason, targets = None, not config.data.val_files
    try:
        if config.objective in ("pretrain", "sft"):
            _fitting_shards(config, world)
        targets = targets or any(_units(batch) for batch in validation_batches(config, world))
    except DataError as error:
        reason = str(error)
    told: list[Any] = [None] * world.size
    torch.distributed.all_gather_object(told, (reason, targets))
    if reasons := [reason for reason, _ in told if reason is not None]:
        raise DataError(reasons[0])
    if not any(targets for _, targets in told):
        raise DataError("data.val_files hold nothing to predict")


def _fitting_shards(config: TrainConfig, world: World) -> None:
    known = None
    for files in filter(None, (config.data.files, config.data.val_files)):
        rows = Rows(_entries(files))
        if known is not None and rows.tokenizer != known:
            raise DataError(
                f"{rows.paths[0]} was made with another tokenizer than {config.data.files[0].path}"
            )
        known = rows.tokenizer
        for i in range(world.rank, len(rows.paths), world.size):
            rows.shard(i)


def _units(batch: Any) -> int:
    """Targets of a batch of rows; of pairs, those that are none of the fillers."""
    return batch.targets if isinstance(batch, Batch) else int((batch.index >= 0).sum())


def make_loader(
    config: TrainConfig, world: World, state: dict[str, Any] | None = None, *, append: bool = False
) -> BlockLoader | PairLoader:
    """The loader of this objective's data, which goes on where `state` was taken."""
    settings = {
        "seed": config.seed,
        "batch_size": config.batch_size,
        "rank": world.rank,
        "world_size": world.size,
        "micro_batch_size": config.micro_batch_size,
    }
    files = _entries(config.data.files)
    if config.objective in ("dpo", "logprobs"):
        loader = PairLoader(files, reference=config.dpo.reference, **settings)
        _known_ids("data.files", loader.largest_id, vocabulary(config))
        if state is not None:
            loader.check_state(state)
        return loader
    return BlockLoader(files, state=state, append=append, pin=world.device.type == "cuda", **settings)


def validation_batches(config: TrainConfig, world: World, *, share_prompts: bool = False) -> Iterator[Any]:
    """This rank's batches of the validation files, each row (or pair) once; as many and as large on every rank."""
    files = _entries(config.data.val_files)
    micro = config.micro_batch_size or max(1, config.batch_size // world.size)
    if config.objective != "dpo":
        return val_batches(files, micro, world.rank, world.size)
    loader = PairLoader(
        files, seed=0, batch_size=micro * world.size, rank=world.rank, world_size=world.size,
        reference=config.dpo.reference,
    )  # fmt: skip
    loader.share_prompts = share_prompts
    return loader.in_order()


@torch.no_grad()
def validate(
    config: TrainConfig, world: World, scorer: Scorer, objective: Any, watch: Watch, stop: StopFlag
) -> dict[str, Any] | None:
    """The loss on the validation files, each row once: in all, and by source. None: a rank was told to stop meanwhile."""
    files = config.data.val_files
    scorer.eval()
    table = torch.zeros(len(files), 2, dtype=torch.float64, device=world.device)
    stopping = False
    for batch in validation_batches(config, world, share_prompts=scorer.shares_prompts):
        watch.beat()
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


def _entries(files: list[Any]) -> list[dict[str, Any]]:
    return [{k: v for k, v in asdict(f).items() if v is not None} for f in files]
