"""`make plan`: the same walk as a run, without running: what would be skipped, what would run, and why."""

from __future__ import annotations

from dataclasses import dataclass

from tasks.stage.node import Artifact
from tasks.stage.runner import Runner


@dataclass(frozen=True)
class Step:
    """One line of the plan."""

    node: str
    action: str
    """`skip`, `run`, or `depends`: its inputs run first, and it runs if their content changes."""
    why: str


def plan(runner: Runner) -> list[Step]:
    """Resolve every node that can be resolved; nothing is written, adopted or opened."""
    steps, known = [], dict[str, Artifact]()
    for node in runner.nodes.values():
        unknown = [ref for ref in node.sources.values() if ref.node not in known]
        if unknown:
            more = f" and {len(unknown) - 1} more" if len(unknown) > 1 else ""
            steps.append(Step(node.name, "depends", f"runs if the content of {unknown[0]}{more} changes"))
            continue
        resolution = runner.resolve(node, known)
        if resolution.artifact:
            known[node.name] = resolution.artifact
        steps.append(Step(node.name, "skip" if resolution.artifact else "run", resolution.reason))
    return steps
