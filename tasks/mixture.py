"""What a training will read, by source, before it begins: planned counts, not estimates of a sampler."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from tasks.continuation import blocks_of


def planned(files: Sequence[Mapping[str, Any]], block_size: int, blocks: int) -> tuple[str, dict[str, float]]:
    """(Markdown table, metrics) of the sources' shares; `blocks` is what the training reads in all.

    Within whole epochs the counts are exact; of the epoch that the training ends in, its share.
    """
    sources: dict[str, int] = {}
    for file in files:
        sources[file["source"]] = sources.get(file["source"], 0) + blocks_of(file)
    epoch = sum(sources.values())
    lines = [
        "| source | blocks an epoch | tokens an epoch | share | blocks in this training |",
        "|---|---:|---:|---:|---:|",
        *(
            f"| {name} | {count:,} | {count * block_size:,} | {count / epoch:.1%} | {count * blocks / epoch:,.0f} |"
            for name, count in sources.items()
        ),
        f"| **all** | {epoch:,} | {epoch * block_size:,} | 100 % | {blocks:,} ({blocks / epoch:.2f} epochs) |",
    ]
    metrics = {f"mixture/{name}": count / epoch for name, count in sources.items()}
    return "\n".join(lines), {**metrics, "mixture_blocks": epoch, "planned_epochs": blocks / epoch}
