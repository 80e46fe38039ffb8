"""Numbers over seeds: mean, spread, and the difference of two variants seed by seed.

Seeds differ more than variants may. So two variants are compared by their differences with the same seed (the same
data in the same order), never by their means alone.
"""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence

BySeed = Mapping[str, float]
"""Seed -> value. JSON has no integer keys, hence text."""


def sd(values: Sequence[float]) -> float:
    """Standard deviation between seeds; 0 for a single one."""
    return statistics.stdev(values) if len(values) > 1 else 0.0


def paired(values: BySeed, against: BySeed) -> dict[str, float]:
    """`values` minus `against`, seed by seed: mean, low and high. Raises KeyError if a seed is missing."""
    differences = [values[seed] - value for seed, value in against.items()]
    return {"mean": statistics.fmean(differences), "low": min(differences), "high": max(differences)}
