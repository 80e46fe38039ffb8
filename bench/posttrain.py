"""SFT, DPO and GRPO against TRL in its best setting: the same model, token ids, precision and thread, in CPU seconds.

    python -m bench.posttrain [--quick]

TRL's best here: SFT packed by `bfd`, DPO with the reference computed before; of both sides the faster micro-batch counts.
An optimizer step has all of the data, in whatever rows and micro-batches, so that the losses of both sides have to be
the same in every step; the bench stops where they are not. GRPO's replies are sampled, and so they differ; there the
number of sampled tokens is held against each other. (On equal replies its loss is TRL's: tests/model/training/test_trl.py.)
Memory is the most that a process held beyond what it had loaded. Needs `make peers`. bench/posttrain_sides.py has the
two sides; each is a process of its own with one thread.
"""

from __future__ import annotations

import tempfile
from collections.abc import Mapping, Sequence
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from statistics import median
from typing import Any

from bench.common import arguments, child, finish, interleaved, spread, table

SIDES = "bench.posttrain_sides"
MICRO = {"sft": (1, 4), "dpo": (2, 8), "grpo": (0,)}
"""Rows (or pairs) of a micro-batch to try; 0: all."""
UNITS = {"sft": "supervised tokens", "dpo": "pairs", "grpo": "samples"}
VOCABULARIES = {4096: "", 151936: "_large_vocab"}
"""Vocabulary -> the end of its results' names."""
QUICK = {4096: tuple(MICRO), 151936: ("sft",)}
Found = Mapping[tuple[str, int], Sequence[Mapping[str, Any]]]
"""(side, micro-batch) -> its runs."""
CLOSE = 1e-4
"""Largest difference of two losses in FP32, in nats."""


def main(argv: Sequence[str] | None = None) -> None:
    options = arguments(__doc__.splitlines()[0]).parse_args(argv)
    if find_spec("trl") is None:
        raise SystemExit("bench.posttrain needs TRL: make peers")
    results: dict[str, Any] = {}
    rows: list[list[str]] = []
    for vocabulary, ending in VOCABULARIES.items():
        with tempfile.TemporaryDirectory() as folder:
            child(SIDES, "prepare", folder, vocabulary)
            for objective in QUICK[vocabulary] if options.quick else MICRO:
                found = compare(Path(folder), objective, *((5, 1) if options.quick else (8, 3)))
                results |= {f"{objective}_{name}{ending}": value for name, value in ratios(found).items()}
                rows += [line(objective, vocabulary, *which, runs) for which, runs in found.items()]
    head = ["", "vocabulary", "micro-batch", "CPU ms a step", "units/CPU s", "MB", "last loss"]
    print(f"\nQwen2 of 256 x 4, FP32, one thread; units: {UNITS}\n")
    print(table(head, rows))
    print("\n" + ", ".join(f"{name} {value}" for name, value in results.items()))
    finish({"bench": "posttrain", **results})


def compare(folder: Path, objective: str, steps: int, repeats: int) -> Found:
    """The runs of both sides. SystemExit where the two did not train the same."""
    runs = interleaved(
        {
            f"{side} {micro}": partial(child, SIDES, f"{side}_{objective}", folder, micro, steps)
            for micro in MICRO[objective]
            for side in ("steel", "trl")
        },
        repeats,
    )
    same(objective, [run for several in runs.values() for run in several])
    return {(side, micro): runs[f"{side} {micro}"] for micro in MICRO[objective] for side in ("steel", "trl")}


def same(objective: str, runs: Sequence[Mapping[str, Any]]) -> None:
    """SystemExit where two runs did not do the same work."""
    for run in runs[1:]:
        if objective == "grpo":
            fits = abs(run["sampled"] / runs[0]["sampled"] - 1) < 0.05
        else:
            fits = run["units"] == runs[0]["units"] and len(run["losses"]) == len(runs[0]["losses"])
            fits &= all(abs(a - b) < CLOSE for a, b in zip(run["losses"], runs[0]["losses"], strict=False))
        if not fits:
            raise SystemExit(f"{objective}: not the same training: {runs[0]} and {run}")


def seconds(runs: Sequence[Mapping[str, Any]]) -> float:
    """Median over runs of a step's CPU seconds."""
    return median(run["seconds"] for run in runs)


def memory(runs: Sequence[Mapping[str, Any]]) -> float:
    """Median over runs, bytes."""
    return median(run["memory"] for run in runs)


def ratios(found: Found) -> dict[str, float]:
    """Speed over TRL's and memory over TRL's, each side with its faster micro-batch; memory also with equal ones."""
    steel, trl = (
        min((runs for (which, _), runs in found.items() if which == side), key=seconds)
        for side in ("steel", "trl")
    )
    micros = sorted({micro for _, micro in found if micro})
    return {
        "ratio_vs_trl": round(seconds(trl) / seconds(steel), 2),
        "memory_ratio_vs_trl": round(memory(steel) / memory(trl), 2),
        **{
            f"memory_ratio_vs_trl_micro_{micro}": round(
                memory(found["steel", micro]) / memory(found["trl", micro]), 2
            )
            for micro in micros
        },
    }


def line(
    objective: str, vocabulary: int, side: str, micro: int, runs: Sequence[Mapping[str, Any]]
) -> list[str]:
    """A row of the table."""
    last = runs[0]["losses"][-1] if runs[0]["losses"] else None
    return [
        f"{objective}, {side}",
        f"{vocabulary:,}",
        str(micro) if micro else "all",
        spread([1e3 * run["seconds"] for run in runs], 0),
        f"{runs[0]['units'] / seconds(runs):,.1f}",
        f"{memory(runs) / 1e6:,.0f}",
        "–" if last is None else f"{last:.5f}",
    ]


if __name__ == "__main__":
    main()
