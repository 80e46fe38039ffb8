"""`make plan`: the same walk as a run, without running: what would be skipped, what would run, and why."""

from __future__ import annotations

from dataclasses import dataclass

from tasks.stage.runner import Runner


@dataclass(frozen=True)
class Step:
    """One line of the plan."""

    node: str
    action: str
    """`skip`, `run`, or `depends`: its inputs run first, and it runs if their content changes."""
    why: str


def plan(runner: Runner) -> list[Step]:
    """Resolve every node that can be resolved; nothing is written, no run is opened."""
    steps = []
    for node in runner.nodes.values():
        waits = [s for s in node.inputs.values() if s.partition("#")[0] not in runner.done]
        if waits:
            more = f" and {len(waits) - 1} more" if len(waits) > 1 else ""
            steps.append(Step(node.name, "depends", f"runs if the content of {waits[0]}{more} changes"))
            continue
        resolution = runner.resolve(node)
        if resolution.artifact:
            runner.adopt(resolution)
            steps.append(Step(node.name, "skip", resolution.reason))
        else:
            steps.append(Step(node.name, "run", resolution.reason))
    return steps
