"""Does the model prefer the chosen reply? Scored the same way before and after DPO."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any


def prefer(export: Path, pairs: Path, device: str, batch_tokens: int) -> list[tuple[float, float]]:
    """Length-normalised log-probability of (chosen, rejected) for each pair. Runs in a worker."""
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
    scores = scoring.choice_logprobs(model, prompts, options, batch_tokens)
    return [(chosen[0] / chosen[1], rejected[0] / rejected[1]) for chosen, rejected in scores]


def compare(before: Iterable[tuple[float, float]], after: Iterable[tuple[float, float]]) -> dict[str, Any]:
    """dpo.json: the share of pairs in which the chosen reply is likelier, and McNemar's exact test."""
    from tasks.evaluate.statistics import mcnemar_exact, wilson

    was = [chosen > rejected for chosen, rejected in before]
    now = [chosen > rejected for chosen, rejected in after]
    n = len(was)
    if n != len(now) or n == 0:
        raise ValueError(f"{n} pairs before, {len(now)} after")
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
