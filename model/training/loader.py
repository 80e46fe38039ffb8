"""Batches of a training run: rank slices of one global order of blocks.

The order comes from model.training.plan; a step reads the next `batch_size` positions of it, a rank its contiguous
share of them. World size and micro-batch size decide who reads a block, never which block is read: a run resumed on
other machines, or with another batch size, sees the same token stream. Nothing here is advanced by reading, so there is
no state to lose: a checkpoint keeps `state(step)`, a few integers and hashes, equal on all ranks.

Data appended in mid-run: hand over the old files followed by the new ones, with the checkpoint's state and
`append=True`.

Measured cost (bench/loader.py): about 4 µs of one core a block of 2,048 tokens.
"""

from __future__ import annotations

import hashlib
import itertools
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, Generic, TypeVar

import numpy as np
import torch

from model.training.batch import IGNORED, Batch
from model.training.config import undealable
from model.training.gather import DataError, Rows
from model.training.plan import Plan
from model.training.shards import file_digest, row_of

__all__ = ["IGNORED", "Batch", "BlockLoader", "DataError", "Once", "Prefetch", "val_batches"]

T = TypeVar("T")

STATE_VERSION = 2
PLANNED = 8192
"""Blocks of a rank whose order is computed at a time (at most an epoch): NumPy's calls cost as much for one."""


class BlockLoader:
    """The batches of a run; `batch(step)` is a pure function of the step.

    `files`: [{"path", "repeats"?, "extra_rows"?, "rows"?, "digest"?, "source"?, "sources"?}], in manifest order. In an epoch a file's rows are
    seen `repeats` times each, and `extra_rows` of them, evenly spread, once more. `digest` is the content hash that
    shards.json has of a shard, computed from the file where it is not given.
    """

    def __init__(
        self,
        files: Sequence[Mapping[str, Any]],
        *,
        seed: int,
        batch_size: int,
        rank: int = 0,
        world_size: int = 1,
        micro_batch_size: int | None = None,
        state: Mapping[str, Any] | None = None,
        append: bool = False,
        pin: bool = False,
    ) -> None:
        if reason := undealable(batch_size, world_size, micro_batch_size):
            raise DataError(reason)
        share = batch_size // world_size
        micro = micro_batch_size or share
        if not 0 <= rank < world_size:
            raise DataError(f"there is no rank {rank} among {world_size}")
        self.seed, self.batch_size, self.rank = seed, batch_size, rank
        self._share, self._micro = share, micro
        self._rows = Rows(files, pin=pin)
        self.block_size = self._rows.block_size
        self._numbering = Numbering(files, self._rows.rows)
        self._chain = _digest_chain(files, self._rows, self._numbering)
        self._history = [self._entry(position=0, files=len(files))]
        self._strides = [{"step": 0, "position": 0, "batch_size": batch_size}]
        if state is not None:
            self._continue(state, append)
        self._plan = Plan.of_history(seed, self._history)
        self._planned: tuple[int, int, np.ndarray] = (0, 0, np.zeros((0, share), np.int64))

    # ------------------------------------------------------------------------------ sizes
    @property
    def blocks_per_epoch(self) -> int:
        """Blocks of an epoch, repeats counted."""
        return self._plan.blocks

    @property
    def sources(self) -> list[str]:
        """What the sources of the documents are called, by number."""
        return self._rows.sources

    @property
    def steps_per_epoch(self) -> float:
        """Optimizer steps of an epoch; an epoch may end inside a step."""
        return self.blocks_per_epoch / self.batch_size

    def position(self, step: int) -> int:
        """Blocks consumed before `step`."""
        stride = next(s for s in reversed(self._strides) if s["step"] <= step or not s["step"])
        return stride["position"] + (step - stride["step"]) * stride["batch_size"]

    def steps_for(self, epochs: float) -> int:
        """The number of the step with which so many epochs, counted from the start of training, are through."""
        last = self._strides[-1]
        left = max(0, self._plan.end(epochs) - last["position"])
        return last["step"] + -(-left // self.batch_size)

    # ---------------------------------------------------------------------------- reading
    def batch(self, step: int) -> list[Batch]:
        """This rank's micro-batches of optimizer step `step` (counted from 0)."""
        if step < self._strides[-1]["step"]:
            raise DataError(
                f"this loader goes on from step {self._strides[-1]['step']}; step {step} lies before it"
            )
        begin, end, blocks = self._planned
        if not begin <= step < end:
            begin, end = step, step + max(1, min(PLANNED, self._plan.blocks) // self._share)
            first = self.position(step) + self.rank * self._share
            steps = np.arange(end - begin, dtype=np.int64)[:, None] * self.batch_size
            blocks = self._plan.block(first + steps + np.arange(self._share))
            self._planned = begin, end, blocks
        here = blocks[step - begin]
        files, rows = self._numbering.rows_of(here)
        return self._rows.batches(files, rows, here, self._micro)

    def rows_of_step(self, step: int) -> tuple[np.ndarray, np.ndarray]:
        """(file indices, rows) of all ranks' blocks of a step, also of one before a change of batch size."""
        return self._numbering.rows_of(
            self._plan.block(np.arange(self.position(step), self.position(step + 1)))
        )

    def steps_of_row(self, file: int, row: int, steps: int) -> list[tuple[int, int]]:
        """(epoch, step) of every time a row was read in the first `steps` steps, by the inverse of the plan."""
        blocks = self._numbering.blocks_of(file, row)
        found = []
        for position in self._plan.positions(blocks, self.position(steps)):
            stride = next(s for s in reversed(self._strides) if s["position"] <= position)
            step = stride["step"] + (position - stride["position"]) // stride["batch_size"]
            found.append((self._plan.epoch(position)[0], step))
        return found

    # ------------------------------------------------------------------------------ state
    def state(self, step: int) -> dict[str, Any]:
        """What a checkpoint taken before `step` keeps: small JSON, the same on every rank."""
        position = self.position(step)
        epoch, begun = self._plan.epoch(position)
        return {
            "version": STATE_VERSION,
            "seed": self.seed,
            "step": step,
            "position": position,
            "epoch": epoch,
            "position_in_epoch": position - begun,
            "block_size": self.block_size,
            "history": [dict(entry) for entry in self._history],
            "strides": [dict(stride) for stride in self._strides],
        }

    def _continue(self, state: Mapping[str, Any], append: bool) -> None:
        """Go on where `state` was taken, with the same files or (append) with more behind them."""
        expected = {"version": STATE_VERSION, "seed": self.seed, "block_size": self.block_size}
        for key, value in expected.items():
            if state.get(key) != value:
                raise DataError(f"the checkpoint's data {key} is {state.get(key)}, this run's is {value}")
        history = [dict(entry) for entry in state["history"]]
        for entry in history:
            known = entry["files"] < len(self._chain)
            if not known or self._entry(entry["position"], entry["files"]) != entry:
                raise DataError(
                    f"the checkpoint was trained on other data than the files given: its first "
                    f"{entry['files']} shards, their repeats or their order differ "
                    f"(manifest {entry['digest'][:16]}, here {self._chain[-1][:16]})"
                )
        added = len(self._chain) - 1 - history[-1]["files"]
        if added and not append:
            raise DataError(f"{added} shards are new since the checkpoint; say append to train on them")
        if added:
            if self._numbering.total == history[-1]["blocks"]:
                raise DataError(f"the {added} shards that are new since the checkpoint hold no blocks")
            history.append(self._entry(int(state["position"]), len(self._chain) - 1))
        strides = [dict(stride) for stride in state["strides"]]
        if strides[-1]["batch_size"] != self.batch_size:
            here = {"step": state["step"], "position": state["position"], "batch_size": self.batch_size}
            strides = [s for s in strides if s["step"] < state["step"]] + [here]
        self._history, self._strides = history, strides

    def _entry(self, position: int, files: int) -> dict[str, Any]:
        """History: from `position` on, the first `files` files were the manifest."""
        blocks = int(self._numbering.first[files])
        return {"position": position, "files": files, "blocks": blocks, "digest": self._chain[files]}


class Numbering:
    """Block numbers of an epoch, file by file: `repeats` passes over a file's rows, then `extra_rows` of them."""

    def __init__(self, files: Sequence[Mapping[str, Any]], rows: np.ndarray) -> None:
        self.rows = rows
        self.repeats = np.array([int(f.get("repeats", 1)) for f in files], np.int64)
        self.extra = np.array([int(f.get("extra_rows", 0)) for f in files], np.int64)
        if (self.repeats < 0).any() or (self.extra < 0).any() or (self.extra > rows).any():
            raise DataError("repeats of a shard file are 0 or more, and its extra_rows at most its rows")
        self.first = np.concatenate([[0], np.cumsum(rows * self.repeats + self.extra)])
        """File f has the blocks first[f] to first[f + 1] - 1."""
        self.total = int(self.first[-1])
        if not self.total:
            raise DataError("the shard files hold no blocks (all repeats 0, or no rows)")

    def rows_of(self, blocks: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """(file indices, rows) of block numbers."""
        files = np.searchsorted(self.first, blocks, side="right") - 1
        number = blocks - self.first[files]
        return files, row_of(number, self.rows[files], self.repeats[files], self.extra[files])

    def blocks_of(self, file: int, row: int) -> np.ndarray:
        """The block numbers of a row."""
        rows, repeats, extra = (int(x[file]) for x in (self.rows, self.repeats, self.extra))
        blocks = [int(self.first[file]) + pass_ * rows + row for pass_ in range(repeats)]
        number = -(-row * extra // rows)  # the first extra number whose row is not below this one
        if number < extra and number * rows // extra == row:
            blocks.append(int(self.first[file]) + repeats * rows + number)
        return np.array(blocks, np.int64)


def _digest_chain(files: Sequence[Mapping[str, Any]], opened: Rows, numbering: Numbering) -> list[str]:
    """Digest of the first k files for every k: each covers content, rows, repeats and order."""
    chain, seen = [hashlib.sha256(b"steel-manifest-1").hexdigest()], {}
    for i, file in enumerate(files):
        content = file.get("digest") or file_digest(opened.paths[i])
        if content in seen:
            raise DataError(f"{opened.paths[i]} has the same content as {seen[content]}; use repeats")
        seen[content] = opened.paths[i]
        extra = f" + {numbering.extra[i]}" if numbering.extra[i] else ""
        line = f"{chain[-1]} {content} {numbering.rows[i]} {numbering.repeats[i]}{extra}"
        chain.append(hashlib.sha256(line.encode()).hexdigest())
    return chain


class Prefetch:
    """`batch(step)` of a loader, with the steps after it being made in a thread meanwhile.

    On a GPU the loader's core works while the device computes. `ahead` 0 makes each batch when it is asked for: on a
    CPU that computes itself there is nothing to gain.
    """

    def __init__(self, loader: Any, ahead: int, steps: int, device: torch.device | None = None) -> None:
        self._loader, self._ahead, self._steps = loader, ahead, steps
        # page-locked memory belongs to a device's context, and a new thread's device is the first one
        on_device = device is not None and device.type == "cuda"
        start = {"initializer": torch.cuda.set_device, "initargs": (device,)} if on_device else {}
        self._pool = ThreadPoolExecutor(1, "loader", **start) if ahead else None
        self._waiting: dict[int, Future] = {}

    def batch(self, step: int) -> list[Any]:
        """The micro-batches of a step; what the thread met with is raised here."""
        if self._pool is None:
            return self._loader.batch(step)
        for wanted in range(step, min(step + 1 + self._ahead, self._steps)):
            if wanted not in self._waiting:
                self._waiting[wanted] = self._pool.submit(self._loader.batch, wanted)
        return self._waiting.pop(step).result()

    def close(self) -> None:
        if self._pool is not None:
            self._pool.shutdown(wait=True, cancel_futures=True)


class Once(Generic[T]):
    """Batches in order, to be read once; their number is known beforehand."""

    def __init__(self, number: int, batches: Iterator[T]):
        self._number, self._batches = number, batches

    def __len__(self) -> int:
        return self._number

    def __iter__(self) -> Iterator[T]:
        return self._batches


def val_batches(
    files: Sequence[Mapping[str, Any]], micro_batch: int, rank: int = 0, world: int = 1
) -> Once[Batch]:
    """All rows of the files once, in order: group g of `micro_batch` rows goes to rank g mod world.

    Every rank gets the same number of equally shaped batches (collectives must match); what is
    missing at the end is filled with rows that have no targets.
    """
    opened = Rows(files)
    file_of = np.repeat(np.arange(len(files)), opened.rows)
    row_of = np.concatenate([np.arange(rows) for rows in opened.rows])
    groups = -(-len(file_of) // (micro_batch * world)) * world
    filler = groups * micro_batch - len(file_of)
    file_of = np.concatenate([file_of, np.full(filler, -1)])
    row_of = np.concatenate([row_of, np.zeros(filler, np.int64)])
    blocks = np.arange(len(file_of))
    parts = [slice(g * micro_batch, (g + 1) * micro_batch) for g in range(rank, groups, world)]
    each = (opened.batches(file_of[p], row_of[p], blocks[p], micro_batch) for p in parts)
    return Once(len(parts), itertools.chain.from_iterable(each))
