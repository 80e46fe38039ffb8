"""A flow run's walk over its nodes, without Prefect."""

from __future__ import annotations

import logging

from tasks.stage.runner import Resolution, Runner

LOG = logging.getLogger("test")


def walk(runner: Runner) -> list[Resolution]:
    """Begin, adopt or run every node in order, end; what was known of each before."""
    runner.begin()
    resolutions = []
    for node in runner.nodes.values():
        resolution = runner.resolve(node)
        if resolution.artifact:
            runner.adopt(resolution)
        else:
            runner.run(resolution, LOG)
        resolutions.append(resolution)
    runner.end("FINISHED")
    return resolutions
