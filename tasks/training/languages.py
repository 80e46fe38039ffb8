"""Dialogues chosen by supervised tokens: so many Chinese ones and so many English ones.

A share of records says little about a ratio of languages: Chinese and English replies differ in length. Here the
tokens that are learned are counted. Records are taken in the order of the hash that mixtures use, over all sets of
their language together, until the budget is reached as nearly as whole records allow. So the choice for a smaller
budget is contained in that for a larger one.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from tasks.settings.errors import NodeError
from tasks.training import examples, mixtures
from tasks.training.mixtures import Taken


@dataclass(frozen=True)
class Work(examples.Work):
    """The examples of a budget in each language; picklable."""

    languages: Mapping[str, str]
    """Set -> its language."""
    budgets: Mapping[str, int]
    """Language -> supervised tokens to take. 0: none."""

    def taken(self) -> list[Taken]:
        """The sets with the bounds that the budgets give. NodeError where a language has too little."""
        sets = super().taken()
        lengths = {s.name: targets(s, self) for s in sets}
        for language, budget in self.budgets.items():
            mine = [s for s in sets if self.languages[s.name] == language]
            keyed = sorted(item for s in mine for item in lengths[s.name].items())
            bound = bound_of(language, keyed, budget)
            for each in mine:
                each.bound = bound
                each.refused = 0  # they are counted when they are packed
                each.counts["taken"] = sum(key <= bound for key in lengths[each.name])
        return sets


def bound_of(language: str, keyed: list[tuple[int, int]], budget: int) -> int:
    """The largest key to take, -1 for none. `keyed`: (key, supervised tokens), by key."""
    there = sum(n for _, n in keyed)
    if budget > there:
        raise NodeError(
            f"{budget:,} supervised tokens in {language} are asked for, and the sets hold {there:,}"
        )
    bound, sum_ = -1, 0
    for key, n in keyed:
        # the nearer of the two: without this record, or with it
        if sum_ + n - budget > budget - sum_:
            break
        bound, sum_ = key, sum_ + n
    return bound


def targets(taken: Taken, work: examples.Work) -> dict[int, int]:
    """Key -> supervised tokens of each record that could be taken, after the cut."""
    from tasks.tokenize.encode import shared_encoder

    encoder = shared_encoder(str(work.tokenizer))
    found = {}
    for record, _ in taken:
        found[mixtures.key(work.seed, "mixture", record["id"])] = examples.supervised(
            taken, record, encoder, work
        )
    return found


def available(work: Work) -> dict[str, int]:
    """Language -> supervised tokens that its sets hold."""
    found = dict.fromkeys(work.budgets, 0)
    for each in mixtures.Work.taken(work):
        found[work.languages[each.name]] += sum(targets(each, work).values())
    return found
