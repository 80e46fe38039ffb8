"""Preference pairs: their file format, and the batches that DPO reads.

A file of pairs is an uncompressed Arrow IPC file with one pair a row:

    id        string            unique in the file
    prompt    list<uint32>      token ids, template included, up to where the reply begins
    chosen    list<uint32>      the better reply, its end token included
    rejected  list<uint32>      the worse one

and a file of log-probabilities, made by the objective `logprobs`, one row for each pair:

    id string · chosen, rejected double (summed log-probability of the reply) · chosen_tokens, rejected_tokens int32

The sequences of a micro-batch (prompt + chosen and prompt + rejected of every pair) are packed into rows as separate
documents: attention does not mix them, and short pairs waste nothing. The order of pairs is model.training.plan's, a
function of (seed, epoch) alone; equal input gives equal bytes.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import torch
from torch import Tensor

from model.training.config import undealable
from model.training.loader import DataError, Once
from model.training.plan import Plan
from model.training.sequences import pack
from model.training.shards import flat

FORMAT = "1"
TOKENS = pa.list_(pa.uint32())
PAIRS = pa.schema([("id", pa.string()), ("prompt", TOKENS), ("chosen", TOKENS), ("rejected", TOKENS)])
LOGPROBS = pa.schema(
    [
        ("id", pa.string()),
        ("chosen", pa.float64()),
        ("rejected", pa.float64()),
        ("chosen_tokens", pa.int32()),
        ("rejected_tokens", pa.int32()),
    ]
)


@dataclass(frozen=True)
class Pair:
    """One pair, as it is written."""

    id: str
    prompt: Sequence[int]
    chosen: Sequence[int]
    rejected: Sequence[int]


@dataclass(frozen=True)
class PairBatch:
    """One rank's micro-batch: the sequences of `pairs` pairs, packed into b rows of T positions."""

    input_ids: Tensor
    """int64 [b, T]"""
    labels: Tensor
    """int64 [b, T], shifted: the reply's tokens, -100 elsewhere."""
    position_ids: Tensor
    doc_index: Tensor
    branch_index: Tensor | None
    """As Packed's: a pair's replies behind one copy of its prompt. None: each has its own."""
    reply_of_target: Tensor
    """int64 [targets in reading order]: 2i for the chosen reply of pair i, 2i + 1 for its rejected one."""
    reply_tokens: Tensor
    """float32 [pairs, 2]: tokens of the chosen and the rejected reply."""
    reference: Tensor
    """float64 [pairs, 2]: the reference's log-probabilities (zeros without a reference)."""
    index: Tensor
    """int64 [pairs], the pairs' numbers over all files."""
    files: Tensor
    """int32 [pairs], the file each came from."""

    @property
    def pairs(self) -> int:
        return len(self.index)

    @property
    def targets(self) -> int:
        return len(self.reply_of_target)

    @property
    def max_documents(self) -> int:
        """A bound that needs no counting: every reply with its prompt, and each row's padding."""
        return 2 * self.pairs + len(self.input_ids)

    def to(self, device: torch.device | str) -> PairBatch:
        moved = {
            name: value.to(device, non_blocking=True)
            for name, value in vars(self).items()
            if name not in ("index", "files") and value is not None
        }
        return replace(self, **moved)


def write_pairs(path: Path, pairs: Iterable[Pair], metadata: Mapping[str, str] | None = None) -> int:
    """Write a file of pairs; returns their number. Metadata may name the tokenizer's digest."""
    rows = list(pairs)
    for pair in rows:
        if not (len(pair.prompt) and len(pair.chosen) and len(pair.rejected)):
            raise DataError(f"pair {pair.id} has an empty prompt or reply")
    if len({pair.id for pair in rows}) != len(rows):
        raise DataError(f"two pairs for {path} have the same id")
    schema = PAIRS.with_metadata({"format": FORMAT, **(metadata or {})})
    columns = [pa.array([getattr(p, f.name) for p in rows], f.type) for f in PAIRS]
    write_table(path, pa.Table.from_arrays(columns, schema=schema))
    return len(rows)


def write_logprobs(path: Path, ids: Sequence[str], sums: np.ndarray, tokens: np.ndarray) -> None:
    """Write log-probabilities: sums [n, 2] and reply tokens [n, 2], in the order of ids."""
    columns = [
        list(ids),
        sums[:, 0],
        sums[:, 1],
        tokens[:, 0].astype(np.int32),
        tokens[:, 1].astype(np.int32),
    ]
    arrays = [pa.array(c, f.type) for c, f in zip(columns, LOGPROBS, strict=True)]
    write_table(path, pa.Table.from_arrays(arrays, schema=LOGPROBS.with_metadata({"format": FORMAT})))


def read_logprobs(path: str | Path) -> pa.Table:
    return read_table(path, LOGPROBS)


class PairLoader:
    """The pairs of a run; `batch(step)` is a pure function of the step, as BlockLoader's."""

    def __init__(
        self,
        files: Sequence[Mapping[str, Any]],
        *,
        seed: int,
        batch_size: int,
        rank: int = 0,
        world_size: int = 1,
        micro_batch_size: int | None = None,
        reference: str | Path | None = None,
    ) -> None:
        if reason := undealable(batch_size, world_size, micro_batch_size, "pairs"):
            raise DataError(reason)
        share = batch_size // world_size
        self.micro = micro_batch_size or share
        self.batch_size, self.rank, self.world_size, self.share = batch_size, rank, world_size, share
        tables = [read_table(f["path"], PAIRS) for f in files]
        self._table = pa.concat_tables([t.replace_schema_metadata(None) for t in tables]).combine_chunks()
        if not len(self._table):
            raise DataError("the files hold no pairs")
        self._file = np.repeat(np.arange(len(tables)), [len(t) for t in tables])
        repeats = np.repeat([int(f.get("repeats", 1)) for f in files], [len(t) for t in tables])
        self._seen = np.repeat(np.arange(len(self._table)), repeats)
        if not len(self._seen):
            raise DataError("the files hold no pairs (all repeats 0)")
        self._reference = self._join(reference)
        self._plan = Plan(seed, len(self._seen))
        self.share_prompts = False
        """Compute the prompt of a pair once; the model has to be able to (Scorer.shares_prompts)."""

    def __len__(self) -> int:
        return len(self._table)

    @property
    def ids(self) -> list[str]:
        return self._table["id"].to_pylist()

    @property
    def largest_id(self) -> int:
        """The largest token id of all pairs."""
        columns = (self._table[name].combine_chunks() for name in ("prompt", "chosen", "rejected"))
        return max(int(flat(column.flatten()).max(initial=0)) for column in columns)

    @property
    def steps_per_epoch(self) -> float:
        return len(self._seen) / self.batch_size

    def steps_for(self, epochs: float) -> int:
        """The number of the step with which so many epochs are through."""
        return max(1, math.ceil(round(epochs * self.steps_per_epoch, 6)))

    def state(self, step: int) -> dict[str, Any]:
        """What tells two runs' data apart; the position follows from the step."""
        return {"pairs": len(self._seen), "batch_size": self.batch_size, "seed": self._plan.seed}

    def check_state(self, state: Mapping[str, Any]) -> None:
        if dict(state) != self.state(0):
            raise DataError(f"the checkpoint was trained on other pairs: {dict(state)}, here {self.state(0)}")

    def batch(self, step: int) -> list[PairBatch]:
        """This rank's micro-batches of optimizer step `step`."""
        first = step * self.batch_size + self.rank * self.share
        index = self._seen[self._plan.block(np.arange(first, first + self.share))]
        return [self._pack(index[i : i + self.micro]) for i in range(0, self.share, self.micro)]

    def in_order(self) -> Once[PairBatch]:
        """All pairs once; every rank gets the same number of batches (the last are filled up with pair 0, whose index
        and file are then -1)."""
        group = self.micro * self.world_size
        total = -(-len(self) // group) * group
        starts = range(self.rank * self.micro, total, group)
        return Once(len(starts), (self._pack(np.arange(start, start + self.micro)) for start in starts))

    def _join(self, path: str | Path | None) -> np.ndarray:
        if not path:
            return np.zeros((len(self), 2))
        table = read_logprobs(path)
        values = np.stack([flat(table[side].combine_chunks()) for side in ("chosen", "rejected")], 1)
        row = {name: i for i, name in enumerate(table["id"].to_pylist())}
        missing = [name for name in self.ids if name not in row]
        if missing:
            raise DataError(f"{path} has no log-probabilities for {len(missing)} pairs, such as {missing[0]}")
        return values[[row[name] for name in self.ids]]

    def _pack(self, index: np.ndarray) -> PairBatch:
        real = index < len(self)
        index = np.where(real, index, 0)
        # not pa.array, which loads pandas
        rows = self._table.take(pa.Array.from_buffers(pa.int64(), len(index), [None, pa.py_buffer(index)]))
        prompts = rows["prompt"].to_pylist()
        replies = (rows["chosen"].to_pylist(), rows["rejected"].to_pylist())
        # sequence 2i is pair i's chosen reply, 2i + 1 its rejected one
        both = [(prompts[i], replies[side][i]) for i in range(len(index)) for side in (0, 1)]
        packed = pack([prompt for prompt, _ in both], [reply for _, reply in both], share=self.share_prompts)
        return PairBatch(
            input_ids=packed.input_ids,
            labels=packed.labels,
            position_ids=packed.position_ids,
            doc_index=packed.doc_index,
            branch_index=packed.branch_index,
            reply_of_target=packed.owner,
            reply_tokens=torch.tensor(
                [[len(replies[0][i]), len(replies[1][i])] for i in range(len(index))], dtype=torch.float32
            ),
            reference=torch.from_numpy(self._reference[index]),
            index=torch.from_numpy(np.where(real, index, -1)),
            files=torch.from_numpy(np.where(real, self._file[index], -1).astype(np.int32)),
        )


def write_table(path: Path, table: pa.Table) -> None:
    with pa.OSFile(str(path), "wb") as sink, pa.ipc.new_file(sink, table.schema) as writer:
        writer.write_table(table, max_chunksize=4096)


def read_table(path: str | Path, schema: pa.Schema) -> pa.Table:
    try:
        with pa.memory_map(str(path)) as source:
            table = pa.ipc.open_file(source).read_all()
    except FileNotFoundError:
        raise DataError(f"there is no file {path}") from None
    except (pa.ArrowInvalid, OSError) as error:
        raise DataError(f"{path} is no Arrow file: {error}") from None
    if not table.schema.equals(schema):
        raise DataError(
            f"{path} has the columns {', '.join(table.schema.names)}; expected {', '.join(schema.names)}"
        )
    return table
