"""The data of a run: what is refused of it before the first step, and the loaders that read it.

The ranks share the work of looking at files, and all end with the same words.
"""

from __future__ import annotations

import logging
import time
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

from model.training.batch import Batch
from model.training.config import TrainConfig
from model.training.gather import DataError, Rows
from model.training.loader import BlockLoader, Once, val_batches
from model.training.pairs import PairLoader
from model.training.parallel import World, read_geometry
from model.training.shards import ShardError, look_over, verify

log = logging.getLogger("steel.training")


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
        known_ids(file.path, number, vocabulary(config))
    if shards and not any(targets[: len(config.data.files)]):
        raise DataError("data.files hold nothing to predict: no rows, or nothing but masked tokens")
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


def known_ids(where: str, largest: int, size: int) -> None:
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
        rows = Rows(entries(files))
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
    files = entries(config.data.files)
    if config.objective in ("dpo", "logprobs"):
        loader = PairLoader(files, reference=config.dpo.reference, **settings)
        known_ids("data.files", loader.largest_id, vocabulary(config))
        if state is not None:
            loader.check_state(state)
        return loader
    return BlockLoader(files, state=state, append=append, pin=world.device.type == "cuda", **settings)


def validation_batches(config: TrainConfig, world: World, *, share_prompts: bool = False) -> Once[Any]:
    """This rank's batches of the validation files, each row (or pair) once; as many and as large on every rank."""
    files = entries(config.data.val_files)
    micro = config.micro_batch_size or max(1, config.batch_size // world.size)
    if config.objective != "dpo":
        return val_batches(files, micro, world.rank, world.size)
    loader = PairLoader(
        files, seed=0, batch_size=micro * world.size, rank=world.rank, world_size=world.size,
        reference=config.dpo.reference,
    )  # fmt: skip
    loader.share_prompts = share_prompts
    return loader.in_order()


def entries(files: list[Any]) -> list[dict[str, Any]]:
    return [{k: v for k, v in asdict(f).items() if v is not None} for f in files]
