"""Prompts of reinforcement learning: their file format, and the batches of a step.

A file of prompts is an uncompressed Arrow IPC file with one prompt a row:

    id        string            unique in the file
    prompt    list<uint32>      token ids, template included, up to where the reply begins
    answer    string            the right answer, in the normal form of its reward
    reward    string            name of the reward that grades the reply (model/rewards.py)

The order is a function of (seed, epoch) alone. Prompts of one length stay together in chunks, because they are sampled
as one batch; the chunks are shuffled, and so is who is in which.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import pyarrow as pa

from model.rewards import REWARDS
from model.training.config import undealable
from model.training.loader import DataError
from model.training.pairs import TOKENS, read_table, write_table

FORMAT = "1"
PROMPTS = pa.schema(
    [("id", pa.string()), ("prompt", TOKENS), ("answer", pa.string()), ("reward", pa.string())]
)
CHUNK = 8
"""Prompts of one length that stay together."""


@dataclass(frozen=True)
class Prompt:
    """One prompt, as it is written."""

    id: str
    prompt: Sequence[int]
    answer: str
    reward: str


def write_prompts(path: Path, prompts: Iterable[Prompt], metadata: Mapping[str, str] | None = None) -> int:
    """Write a file of prompts; returns their number. Metadata may name the tokenizer's digest."""
    rows = list(prompts)
    for row in rows:
        if not len(row.prompt) or row.reward not in REWARDS:
            raise DataError(f"prompt {row.id} is empty, or its reward {row.reward!r} is unknown")
    schema = PROMPTS.with_metadata({"format": FORMAT, **(metadata or {})})
    columns = [pa.array([getattr(r, f.name) for r in rows], f.type) for f in PROMPTS]
    write_table(path, pa.Table.from_arrays(columns, schema=schema))
    return len(rows)


def read_prompts(path: str | Path) -> list[Prompt]:
    """All prompts of a file. Raises DataError where an answer cannot be graded."""
    found = [Prompt(**row) for row in read_table(path, PROMPTS).to_pylist()]
    for each in found:
        reward = REWARDS.get(each.reward)
        if reward is None or reward.gold(each.answer) != each.answer:
            raise DataError(f"{path}: the answer of prompt {each.id} is not one that {each.reward} can grade")
    return found


class PromptLoader:
    """The prompts of a run; `batch(step)` is a pure function of the step."""

    def __init__(
        self,
        files: Sequence[Mapping[str, Any]],
        *,
        seed: int,
        batch_size: int,
        rank: int = 0,
        world_size: int = 1,
        micro_batch_size: int | None = None,
    ) -> None:
        if reason := undealable(batch_size, world_size, micro_batch_size, "prompts"):
            raise DataError(reason)
        self.prompts = [p for f in files for p in read_prompts(f["path"])]
        if not self.prompts:
            raise DataError("the files hold no prompts")
        if len({p.id for p in self.prompts}) != len(self.prompts):
            raise DataError("two prompts of the files have the same id")
        self.seed, self.batch_size, self.share = seed, batch_size, batch_size // world_size
        self.micro = micro_batch_size or self.share
        """Prompts of a micro-step."""
        self.first = rank * self.share

    @property
    def largest_id(self) -> int:
        """The largest token id of all prompts."""
        return max(max(p.prompt) for p in self.prompts)

    @property
    def longest(self) -> int:
        """Tokens of the longest prompt."""
        return max(len(p.prompt) for p in self.prompts)

    def steps_for(self, epochs: float) -> int:
        """The number of the step with which so many epochs are through."""
        return max(1, math.ceil(round(epochs * len(self.prompts) / self.batch_size, 6)))

    def state(self) -> dict[str, Any]:
        """What tells two runs' data apart; the position follows from the step."""
        digest = hashlib.blake2b(digest_size=8)
        for p in self.prompts:
            digest.update(repr((p.id, list(p.prompt), p.answer, p.reward)).encode())
        return {"prompts": digest.hexdigest(), "batch_size": self.batch_size, "seed": self.seed}

    def batch(self, step: int) -> list[tuple[Prompt, int]]:
        """This rank's prompts of step `step`, each with the seed of its random numbers."""
        found = []
        for place in range(self.first, self.first + self.share):
            epoch, at = divmod(step * self.batch_size + place, len(self.prompts))
            prompt = self.prompts[self._order(epoch)[at]]
            found.append((prompt, self._number("sample", step, place) >> 1))
        return found

    @lru_cache(maxsize=2)  # noqa: B019 (a loader lives as long as its run)
    def _order(self, epoch: int) -> list[int]:
        mixed = sorted(range(len(self.prompts)), key=lambda i: self._number("order", epoch, i))
        by_length: dict[int, list[int]] = {}
        for i in mixed:
            by_length.setdefault(len(self.prompts[i].prompt), []).append(i)
        chunks = [same[k : k + CHUNK] for same in by_length.values() for k in range(0, len(same), CHUNK)]
        chunks.sort(key=lambda chunk: self._number("chunk", epoch, chunk[0]))
        return [i for chunk in chunks for i in chunk]

    def _number(self, *parts: object) -> int:
        text = ":".join(map(str, (self.seed, *parts)))
        return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "big")
