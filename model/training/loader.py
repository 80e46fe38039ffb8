"""Batches of a training run: rank slices of one global order of blocks.

The order comes from model.training.plan; a step s reads the positions [s·batch, (s + 1)·batch), a
rank its contiguous share of them. World size and micro-batch size decide who reads a block, never
which block is read: a run resumed on other machines sees the same token stream. Nothing here is
advanced by reading, so there is no state to lose: a checkpoint keeps `state(step)`, a few integers
and a hash, equal on all ranks.

Data appended in mid-run: hand over the old files followed by the new ones, with the checkpoint's
state and `append=True`.
"""

from __future__ import annotations

import hashlib
from collections import OrderedDict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from model.training.plan import Plan
from model.training.shards import ShardError, ShardFile, file_digest

STATE_VERSION = 1
IGNORED = -100
"""The label of a position that is not a target (torch's ignore_index)."""
OPEN_FILES = 256


class DataError(ValueError):
    """Data and settings that do not fit each other: one clear line."""


@dataclass(frozen=True)
class Batch:
    """One rank's micro-batch; b rows of T = block_size positions."""

    input_ids: Tensor
    """int64 [b, T]"""
    labels: Tensor
    """int64 [b, T], already shifted: labels[t] is the token after input_ids[t]. -100 where that is
    padding, the first token of another document, or switched off by the loss mask."""
    position_ids: Tensor
    """int64 [b, T], from 0 in every document."""
    doc_index: Tensor
    """int32 [b, T], which document of its row a position belongs to (padding is a document too)."""
    blocks: Tensor
    """int64 [b], number of each row's block in the manifest; -1 for a filler row."""
    files: Tensor
    """int32 [b], index of each row's file in the list given; -1 for a filler row."""

    @property
    def targets(self) -> int:
        """Number of positions that have a label."""
        return int((self.labels != IGNORED).sum())

    def to(self, device: torch.device | str) -> Batch:
        """A copy with what the model reads on the device; blocks and files stay."""
        moved = {
            name: getattr(self, name).to(device, non_blocking=True)
            for name in ("input_ids", "labels", "position_ids", "doc_index")
        }
        return replace(self, **moved)


class _Files:
    """The shards of a run in their order, opened when first read."""

    def __init__(self, files: Sequence[Mapping[str, Any]]) -> None:
        if not files:
            raise DataError("there are no shard files to read")
        self.paths = [Path(f["path"]) for f in files]
        self.repeats = np.array([int(f.get("repeats", 1)) for f in files], np.int64)
        if (self.repeats < 0).any():
            raise DataError("repeats of a shard file are 0 or more")
        self._open: OrderedDict[int, ShardFile] = OrderedDict()
        given = [f.get("rows") for f in files]
        self.rows = np.array(
            [self.shard(i).rows if r is None else int(r) for i, r in enumerate(given)], np.int64
        )
        self.block_size = self.shard(0).block_size

    def shard(self, index: int) -> ShardFile:
        """A file by index, opened; the least recently used ones are closed."""
        if index in self._open:
            self._open.move_to_end(index)
            return self._open[index]
        try:
            shard = ShardFile(self.paths[index])
        except ShardError as error:
            raise DataError(str(error)) from None
        if hasattr(self, "block_size") and shard.block_size != self.block_size:
            raise DataError(f"{shard.path} has blocks of {shard.block_size}, not {self.block_size}")
        if hasattr(self, "rows") and shard.rows != self.rows[index]:
            raise DataError(f"{shard.path} has {shard.rows} rows, not {self.rows[index]}")
        self._open[index] = shard
        while len(self._open) > OPEN_FILES:
            self._open.popitem(last=False)
        return shard

    def batch(self, files: np.ndarray, rows: np.ndarray, blocks: np.ndarray) -> Batch:
        """Gather rows; a file index of -1 asks for a filler row without targets."""
        count, width = len(rows), self.block_size + 1
        tokens = np.zeros((count, width), np.int64)
        starts = np.zeros((count, width), bool)
        starts[:, 0] = True
        valid = np.zeros((count, 1), np.int64)
        mask: np.ndarray | None = None
        for i, (file, row) in enumerate(zip(files.tolist(), rows.tolist(), strict=True)):
            if file < 0:
                continue
            columns, place = self.shard(file).locate(row)
            tokens[i] = columns.input_ids[place]
            starts[i, columns.starts[columns.offsets[place] : columns.offsets[place + 1]]] = True
            valid[i] = end = columns.valid[place]
            if end < width:
                starts[i, end] = True  # padding is its own document
            if columns.loss_mask is not None:
                if mask is None:
                    mask = np.ones((count, width), np.uint8)
                mask[i] = columns.loss_mask[place]
        place_in_row = np.arange(width, dtype=np.int64)
        target = (place_in_row < valid) & ~starts
        if mask is not None:
            target &= mask != 0
        begun = np.maximum.accumulate(np.where(starts, place_in_row, 0)[:, :-1], axis=1)
        return Batch(
            input_ids=torch.from_numpy(tokens[:, :-1].copy()),
            labels=torch.from_numpy(np.where(target[:, 1:], tokens[:, 1:], IGNORED)),
            position_ids=torch.from_numpy(place_in_row[:-1] - begun),
            doc_index=torch.from_numpy(np.cumsum(starts[:, :-1], axis=1, dtype=np.int32) - 1),
            blocks=torch.from_numpy(np.where(files >= 0, blocks, -1)),
            files=torch.from_numpy(files.astype(np.int32)),
        )


class BlockLoader:
    """The batches of a run; `batch(step)` is a pure function of the step.

    `files`: [{"path", "repeats"?, "rows"?, "digest"?}], in manifest order; `digest` is the content
    hash that shards.json has of a shard, computed from the file where it is not given.
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
    ) -> None:
        if batch_size % world_size:
            raise DataError(f"batch_size {batch_size} cannot be shared evenly by {world_size} ranks")
        share = batch_size // world_size
        micro = micro_batch_size or share
        if share % micro:
            raise DataError(f"{share} blocks a rank are no multiple of micro_batch_size {micro}")
        if not 0 <= rank < world_size:
            raise DataError(f"there is no rank {rank} among {world_size}")
        self.seed, self.batch_size, self.rank = seed, batch_size, rank
        self.micro_batches, self.micro_batch_size = share // micro, micro
        self._files = _Files(files)
        self.block_size = self._files.block_size
        sizes = self._files.rows * self._files.repeats
        # Block numbers of file f: [_first[f], _first[f + 1]), its rows `repeats` times over.
        self._first = np.concatenate([[0], np.cumsum(sizes)])
        if self._first[-1] == 0:
            raise DataError("the shard files hold no blocks (all repeats 0, or no rows)")
        self._chain = _digest_chain(files, self._files)
        self._origin = (0, 0)
        self._history = [self._entry(position=0, files=len(files))]
        if state is not None:
            self._continue(state, append)
        self._plan = Plan(seed, self._history[0]["blocks"])
        for before, entry in zip(self._history, self._history[1:], strict=False):
            self._plan.append(entry["blocks"] - before["blocks"], entry["position"])

    # ------------------------------------------------------------------------------ sizes
    @property
    def blocks_per_epoch(self) -> int:
        """Blocks of an epoch, repeats counted."""
        return self._plan.blocks

    @property
    def steps_per_epoch(self) -> float:
        """Optimizer steps of an epoch; an epoch may end inside a step."""
        return self.blocks_per_epoch / self.batch_size

    def position(self, step: int) -> int:
        """Blocks consumed before `step`."""
        step0, position0 = self._origin
        if step < step0:
            raise DataError(f"this loader goes on from step {step0}; step {step} lies before it")
        return position0 + (step - step0) * self.batch_size

    # ---------------------------------------------------------------------------- reading
    def batch(self, step: int) -> list[Batch]:
        """This rank's micro-batches of optimizer step `step` (counted from 0)."""
        share = self.micro_batches * self.micro_batch_size
        first = self.position(step) + self.rank * share
        blocks = self._plan.block(np.arange(first, first + share))
        files = np.searchsorted(self._first, blocks, side="right") - 1
        rows = (blocks - self._first[files]) % self._files.rows[files]
        parts = [slice(i, i + self.micro_batch_size) for i in range(0, share, self.micro_batch_size)]
        return [self._files.batch(files[p], rows[p], blocks[p]) for p in parts]

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
        }

    def check_state(self, state: Mapping[str, Any]) -> None:
        """Refuse a checkpoint whose stream is not this loader's, by what differs first."""
        self._check_settings(state)
        if list(state["history"]) != self._history:
            raise DataError(
                "the checkpoint was trained on other data than the files given "
                f"(manifest {state['history'][-1]['digest'][:16]}, here {self._history[-1]['digest'][:16]})"
            )
        if self.position(state["step"]) != state["position"]:
            raise DataError(
                f"step {state['step']} of the checkpoint is block {state['position']}, here it would be "
                f"{self.position(state['step'])}: construct the loader with state=, the batch size differs"
            )

    def _check_settings(self, state: Mapping[str, Any]) -> None:
        expected = {"version": STATE_VERSION, "seed": self.seed, "block_size": self.block_size}
        for key, value in expected.items():
            if state.get(key) != value:
                raise DataError(f"the checkpoint's data {key} is {state.get(key)}, this run's is {value}")

    def _continue(self, state: Mapping[str, Any], append: bool) -> None:
        """Go on where `state` was taken, with the same files or (append) with more behind them."""
        self._check_settings(state)
        history = [dict(entry) for entry in state["history"]]
        for entry in history:
            known = entry["files"] < len(self._chain)
            if not known or self._entry(entry["position"], entry["files"]) != entry:
                raise DataError(
                    f"the checkpoint was trained on other data than the files given: its first "
                    f"{entry['files']} shards, their repeats or their order differ"
                )
        added = len(self._chain) - 1 - history[-1]["files"]
        if added and not append:
            raise DataError(f"{added} shards are new since the checkpoint; say append to train on them")
        if added and self._first[-1] > history[-1]["blocks"]:
            history.append(self._entry(int(state["position"]), len(self._chain) - 1))
        self._origin = (int(state["step"]), int(state["position"]))
        self._history = history

    def _entry(self, position: int, files: int) -> dict[str, Any]:
        """History: from `position` on, the first `files` files were the manifest."""
        digest = self._chain[files]
        return {"position": position, "files": files, "blocks": int(self._first[files]), "digest": digest}


def _digest_chain(files: Sequence[Mapping[str, Any]], opened: _Files) -> list[str]:
    """Digest of the first k files for every k: each covers content, rows, repeats and order."""
    chain, seen = [hashlib.sha256(b"steel-manifest-1").hexdigest()], {}
    for i, file in enumerate(files):
        content = file.get("digest") or file_digest(opened.paths[i])
        if content in seen:
            raise DataError(f"{opened.paths[i]} has the same content as {seen[content]}; use repeats")
        seen[content] = opened.paths[i]
        line = f"{chain[-1]} {content} {opened.rows[i]} {opened.repeats[i]}"
        chain.append(hashlib.sha256(line.encode()).hexdigest())
    return chain


def val_batches(
    files: Sequence[Mapping[str, Any]], micro_batch: int, rank: int = 0, world: int = 1
) -> Iterator[Batch]:
    """All rows of the files once, in order: group g of `micro_batch` rows goes to rank g mod world.

    Every rank gets the same number of equally shaped batches (collectives must match); what is
    missing at the end is filled with rows that have no targets.
    """
    opened = _Files(files)
    file_of = np.repeat(np.arange(len(files)), opened.rows)
    row_of = np.concatenate([np.arange(rows) for rows in opened.rows])
    groups = -(-len(file_of) // (micro_batch * world)) * world
    filler = groups * micro_batch - len(file_of)
    file_of = np.concatenate([file_of, np.full(filler, -1)])
    row_of = np.concatenate([row_of, np.zeros(filler, np.int64)])
    blocks = np.arange(len(file_of))
    for group in range(rank, groups, world):
        part = slice(group * micro_batch, (group + 1) * micro_batch)
        yield opened.batch(file_of[part], row_of[part], blocks[part])
