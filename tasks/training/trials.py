"""What DPO has changed, on pairs that it never saw: preferences, rewards and replies, before and after.

Three measures that say different things, for each source of pairs:

    preference   the chosen reply is likelier per token than the rejected one, under the model alone
    reward       the chosen reply has gained more log-probability than the rejected one; ties are a number of their own
                 (before the training every pair is one)
    behaviour    what greedy replies to the pairs' prompts are like: the right answer, or with a wanted trait

Shares have Wilson's intervals. Changes have McNemar's exact test; for rewards, which have no before, it is a sign test.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from tasks.work.told import Progress


class Score(NamedTuple):
    """One pair under one model: summed log-probabilities and numbers of tokens."""

    id: str
    chosen: float
    chosen_tokens: int
    rejected: float
    rejected_tokens: int

    @property
    def per_token(self) -> tuple[float, float]:
        return self.chosen / self.chosen_tokens, self.rejected / self.rejected_tokens

    @property
    def prefers(self) -> bool:
        chosen, rejected = self.per_token
        return chosen > rejected


def prefer(
    export: Path, pairs: Path, device: str, batch_tokens: int, tell: Progress | None = None
) -> list[Score]:
    """The score of each pair of a file. Runs in a worker."""
    import pyarrow as pa
    import torch

    from model import scoring

    device = scoring.resolve_device(device)
    if device == "cpu":
        torch.set_num_threads(1)
    model = scoring.load(export, device)
    with pa.memory_map(str(pairs)) as source:
        lines = pa.ipc.open_file(source).read_all().to_pylist()
    prompts = [line["prompt"] for line in lines]
    options = [[line["chosen"], line["rejected"]] for line in lines]
    scores = scoring.choice_logprobs(model, prompts, options, batch_tokens, progress=tell)
    return [
        Score(line["id"], *chosen, *rejected) for line, (chosen, rejected) in zip(lines, scores, strict=True)
    ]


def compare(before: Sequence[Score], after: Sequence[Score]) -> dict[str, Any]:
    """Preference and reward of the same pairs: what dpo.json holds of a source of pairs."""
    n = len(before)
    if [s.id for s in before] != [s.id for s in after] or n == 0:
        raise ValueError(f"{n} pairs before, {len(after)} after, or others")
    won = lost = 0
    moved = [0.0, 0.0]
    for was, now in zip(before, after, strict=True):
        margin = (now.chosen - was.chosen) - (now.rejected - was.rejected)
        won, lost = won + (margin > 0), lost + (margin < 0)
        for side in (0, 1):
            moved[side] += (now.per_token[side] - was.per_token[side]) / n
    from tasks.evaluate.statistics import mcnemar_exact, wilson

    return {
        **paired([s.prefers for s in before], [s.prefers for s in after]),
        "reward_accuracy": won / n,
        "ci95_reward": list(wilson(won, n)),
        "reward_ties": n - won - lost,
        "reward_p_value": mcnemar_exact(won, lost),
        "chosen_change": moved[0],
        "rejected_change": moved[1],
    }


def paired(before: Iterable[bool], after: Iterable[bool]) -> dict[str, Any]:
    """A share before and after, on the same cases."""
    from tasks.evaluate.statistics import mcnemar_exact, wilson

    was, now = list(before), list(after)
    n = len(was)
    gained = sum(b and not a for a, b in zip(was, now, strict=True))
    lost = sum(a and not b for a, b in zip(was, now, strict=True))
    return {
        "accuracy_before": sum(was) / n,
        "accuracy_after": sum(now) / n,
        "ci95_before": list(wilson(sum(was), n)),
        "ci95_after": list(wilson(sum(now), n)),
        "n": n,
        "gained": gained,
        "lost": lost,
        "p_value": mcnemar_exact(gained, lost),
    }


def shows(traits: Sequence[str], reply: str) -> bool:
    """Whether a reply has the trait: any of the phrases stands in it."""
    return any(phrase in reply for phrase in traits)


def by_set(sets: Mapping[str, str], scores: Sequence[Score]) -> dict[str, list[Score]]:
    """The scores of each source of pairs, in the order of the pairs. `sets`: id of a pair -> its source."""
    found: dict[str, list[Score]] = {}
    for score in scores:
        found.setdefault(sets[score.id], []).append(score)
    return found
