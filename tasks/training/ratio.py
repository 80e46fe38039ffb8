"""A mixture thinned to a share of Chinese among its supervised tokens.

The language that is above its share loses records, each of its data sets the same part of its tokens, those with the
largest keys first. So data sets keep their proportions within a language, and what a share of 0.6 takes of the thinned
language is nearly contained in what 0.5 takes. Tokens are counted as they will be packed.
"""

from __future__ import annotations

from array import array
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from tasks.settings.errors import NodeError
from tasks.training import examples, mixtures
from tasks.training.mixtures import Taken

CLOSE = 0.01
"""How far whole records may leave the share from the one asked for."""


@dataclass(frozen=True)
class Work(examples.Work):
    """The examples of a mixture with a share of Chinese; picklable."""

    zh_share: float = field(kw_only=True)
    """0 … 1, of the supervised tokens."""

    def taken(self) -> list[Taken]:
        """The sets, thinned. NodeError where the mixture cannot give the share."""
        sets = super().taken()
        found = [_lengths(each, self) for each in sets]
        kept = thinned([one for one, _ in found], [other for _, other in found], self.zh_share)
        for each, chosen in zip(sets, kept, strict=True):
            each.refused = 0  # they are counted when they are packed
            each.only = array("Q", sorted(chosen))
            each.counts["taken"] = len(chosen)
        return sets


class Length(NamedTuple):
    """A record by its key."""

    key: int
    targets: int


Lengths = list[Length]


def thinned(chinese: Sequence[Lengths], others: Sequence[Lengths], share: float) -> list[list[int]]:
    """Keys to take of each set, of its Chinese records and the others; `share` of Chinese in the sum of targets."""
    zh, rest = (sum(r.targets for records in sets for r in records) for sets in (chinese, others))
    if (share > 0 and not zh) or (share < 1 and not rest):
        language = "no Chinese" if not zh else "nothing but Chinese"
        raise NodeError(f"zh_share is {share:g}, and the mixture holds {language} supervised tokens")
    budget_zh = zh if share == 1 else min(zh, rest * share / (1 - share))
    budget_rest = rest if share == 0 else min(rest, zh * (1 - share) / share)
    parts = [_cut(chinese, budget_zh, zh), _cut(others, budget_rest, rest)]
    got_zh, got_rest = (sum(r.targets for records in part for r in records) for part in parts)
    got = got_zh / (got_zh + got_rest) if got_zh + got_rest else -1.0
    if abs(got - share) > CLOSE:
        raise NodeError(
            f"zh_share {share:g} cannot be had of {zh:,} Chinese and {rest:,} other supervised tokens in whole records: "
            f"the nearest is {got_zh:,} and {got_rest:,}"
        )
    return [[r.key for r in (*one, *other)] for one, other in zip(*parts, strict=True)]


def reached(sets: Mapping[str, Mapping[str, Any]]) -> float:
    """Share of Chinese among the supervised tokens of an account's sets, 0 … 1; 0 where there are none."""
    zh = sum(each["languages"].get("zh", 0) for each in sets.values())
    every = sum(sum(each["languages"].values()) for each in sets.values())
    return zh / every if every else 0.0


def _cut(sets: Sequence[Lengths], budget: float, total: int) -> list[Lengths]:
    """Of each set the records with the smallest keys, budget / total of its tokens."""
    if budget >= total:
        return [list(records) for records in sets]
    kept: list[Lengths] = []
    before = sum_ = 0
    for records in sets:
        before += sum(r.targets for r in records)
        # due of all sets so far, so that what whole records leave over does not add up
        due = budget * before / total if total else 0.0
        mine: Lengths = []
        for record in sorted(records):
            if not budget or sum_ + record.targets - due > due - sum_:
                break
            mine.append(record)
            sum_ += record.targets
        kept.append(mine)
    return kept


def _lengths(taken: Taken, work: examples.Work) -> tuple[Lengths, Lengths]:
    """The records of a set that give an example: the Chinese ones, the others."""
    from tasks.tokenize.encode import shared_encoder

    encoder = shared_encoder(str(work.tokenizer))
    found: tuple[Lengths, Lengths] = ([], [])
    for record, _ in taken:
        key = mixtures.key(work.seed, "mixture", record["id"])
        found[record["language"] != "zh"].append(
            Length(key, examples.supervised(taken, record, encoder, work))
        )
    return found
