"""Walking the stages of a flow run: what `steel` and `steel-ablation` have in common.

A stage whose nodes are all done is one task run, `Cached`. Otherwise its nodes run as tasks of
their own: light ones side by side, those that want the whole machine one by one in the main thread
(where Prefect's cancellation and timeouts reach them).
"""

from __future__ import annotations

import logging
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, wait
from pathlib import Path
from typing import Any

from prefect import get_run_logger, task
from prefect.cache_policies import NO_CACHE
from prefect.runtime import flow_run, task_run
from prefect.states import Completed, State

from flows import observe
from tasks.settings.config import SteelRun
from tasks.stage.node import Artifact, Node
from tasks.stage.runner import Runner
from tasks.stage.store import Store
from tasks.stage.tracking import Tracker
from tasks.work import pool

MAX_BESIDE = 8
TRAININGS = ("pretrain", "sft", "dpo", "ablation")
BESIDE = ("sft", "dpo", "ablation")
"""Trainings of which runtime.parallel_trainings run beside each other."""

_runner: Runner | None = None  # one flow run per process: tasks reach it here, not through parameters


def walk(
    config: SteelRun, graph: Mapping[str, Node], stages: Sequence[str], force: Iterable[str], folder: str = ""
) -> State:
    """Run the stages in order, inside a flow; raises what the first failing one raised.

    `folder` below artifacts/latest/<profile> is where run.json goes.
    """
    global _runner
    runner = Runner(
        config, graph, Store(config.runtime.artifacts), Tracker(), str(flow_run.id), frozenset(force)
    )
    _runner = runner
    pool.configure(config.runtime.data_workers)
    observe.started(runner)
    watch = observe.Watch(runner, Path(config.profile, folder))
    status = "KILLED"
    before: list[State] = []  # makes the arrows of the graph
    try:
        for stage in stages:
            watch.stage(stage)
            task_of = run_stage.with_options(name=stage, task_run_name=stage)
            state = task_of(stage, return_state=True, wait_for=before)
            watch.stage_ended(stage, state)
            if not state.is_completed():
                state.result()  # raises what the stage raised
                raise RuntimeError(f"stage {stage} ended as {state.name}")
            before = [state]
        status = "FINISHED"
    except Exception:
        status = "FAILED"
        raise
    finally:
        runner.stop.set()
        pool.shutdown()
        runner.end(status)
        watch.ended(status)
    return Completed(message=watch.headline())


@task(cache_policy=NO_CACHE, persist_result=False)
def run_stage(stage: str) -> State | None:
    """One stage: Cached as a whole, or its nodes one by one as their inputs become ready."""
    runner, log = _runner, get_run_logger()
    waiting = [node for node in runner.nodes.values() if node.stage == stage]
    cached = _all_cached(runner, waiting)
    if cached:
        observe.stage_table(runner, stage)
        return Completed(
            name="Cached", message=f"{len(cached)} of {len(cached)} nodes done before: {_ids(cached)}"
        )
    if stage in TRAININGS:
        pool.shutdown()  # its workers hold a gigabyte that the training may want
    status = "FAILED"
    try:
        _run_nodes(runner, waiting, log)
        status = "FINISHED"
    finally:
        runner.end_stage(stage, status)
        observe.stage_table(runner, stage)
    return Completed(message=observe.stage_headline(runner, stage))


def _all_cached(runner: Runner, nodes: list[Node]) -> list[Artifact]:
    """Adopt nodes while they are cached; all of them, or an empty list at the first that is not."""
    adopted = []
    for node in nodes:
        resolution = runner.resolve(node)
        if resolution.artifact is None:
            for artifact in adopted:  # they get task runs of their own
                del runner.done[artifact.node], runner.results[artifact.node]
            return []
        adopted.append(runner.adopt(resolution))
    return adopted


def _run_nodes(runner: Runner, waiting: list[Node], log: logging.Logger) -> None:
    """Run nodes in waves of the graph; after a failure nothing new starts, what runs may finish."""
    running: dict[Any, str] = {}
    failure: BaseException | None = None
    while waiting or running:
        ready = [] if failure else [node for node in waiting if runner.ready(node)]
        for node in ready:
            if node.exclusive or len(running) >= _beside(runner, node):
                continue
            waiting.remove(node)
            future = _node_task(node).submit(node.name)
            running[future.wrapped_future] = node.name
        exclusive = next((node for node in ready if node.exclusive), None)
        if exclusive and not running:
            waiting.remove(exclusive)
            state = _node_task(exclusive)(exclusive.name, return_state=True)
            failure = failure or _failure(state)
        elif running:
            done, _ = wait(running, return_when=FIRST_COMPLETED)
            for future in done:
                running.pop(future)
                failure = failure or _failure(future.result())
        elif failure:
            raise failure
        elif not exclusive:
            raise RuntimeError(f"nodes wait for each other: {[n.name for n in waiting]}")
    if failure:
        raise failure


def _beside(runner: Runner, node: Node) -> int:
    """How many nodes of this kind may run beside each other."""
    return runner.config.runtime.parallel_trainings if node.stage in BESIDE else MAX_BESIDE


def _failure(state: State) -> BaseException | None:
    if state.is_completed():
        return None
    error = state.result(raise_on_failure=False)
    return (
        error if isinstance(error, BaseException) else RuntimeError(f"ended as {state.name}: {state.message}")
    )


def _node_task(node: Node) -> Any:
    return run_node.with_options(name=node.name, task_run_name=node.name)


@task(cache_policy=NO_CACHE, persist_result=False)
def run_node(name: str) -> State:
    """One node: Cached, or run to a published artifact."""
    runner, log = _runner, get_run_logger()
    resolution = runner.resolve(runner.nodes[name])
    if resolution.artifact:
        artifact = runner.adopt(resolution)
        return Completed(name="Cached", message=f"{resolution.reason}; {_ids([artifact])}")
    with observe.Progress(name) as progress:
        artifact, outcome = runner.run(resolution, log, progress, {"prefect.task_run_id": str(task_run.id)})
    if outcome is None:
        return Completed(name="Cached", message=f"made by another run meanwhile; {_ids([artifact])}")
    observe.node_summary(runner, artifact, outcome)
    return Completed(message=outcome.headline or None)


def _ids(artifacts: Iterable[Artifact]) -> str:
    text = ", ".join(f"{a.node} {a.fingerprint[:12]} (MLflow run {a.run_id})" for a in artifacts)
    return text if len(text) < 900 else text[:900] + " …"
