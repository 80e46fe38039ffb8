"""Walking the stages of a flow run: what all flows have in common.

A stage whose nodes are all done is one task run, `Cached`. Otherwise its nodes run as tasks of
their own, in the order that tasks.stage.schedule gives: light ones side by side, those that want the whole
machine one by one in the main thread (where Prefect's cancellation and timeouts reach them).

The runner reaches a task in its closure, never as a parameter: Prefect walks through parameters in search
of results, and would record them where results are kept.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, wait
from typing import Any

from prefect import Task, get_run_logger, task
from prefect.cache_policies import NO_CACHE
from prefect.runtime import flow_run, task_run
from prefect.states import Completed, State

from flows import observe
from flows.spec import FlowSpec
from tasks.inspect import preflight
from tasks.settings.config import SteelRun
from tasks.stage.node import Artifact, Node
from tasks.stage.runner import Runner
from tasks.stage.schedule import Schedule, finished
from tasks.stage.store import Store
from tasks.stage.tracking import Tracker
from tasks.work import pool

MAX_BESIDE = 8


def walk(spec: FlowSpec, config: SteelRun, stages: Sequence[str], force: Iterable[str]) -> State:
    """Run stages of a flow in order, inside that flow; raises what the first failing one raised."""
    for line in preflight.refuse(config, tuple(stages), preflight.gpus_here()):
        get_run_logger().warning(line)
    store = Store(config.runtime.artifacts)
    runner = Runner(config, spec.build(config), store, Tracker(), str(flow_run.id), frozenset(force))
    pool.configure(config.runtime.data_workers)
    observe.started(runner)
    watch = observe.Watch(runner, spec)
    status = "KILLED"
    before: list[State] = []  # makes the arrows of the graph
    try:
        for stage in stages:
            watch.stage(stage)
            state = _stage_task(runner, stage)(return_state=True, wait_for=before)
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


def _stage_task(runner: Runner, stage: str) -> Task:
    @task(name=stage, task_run_name=stage, cache_policy=NO_CACHE, persist_result=False)
    def run_stage() -> State:
        return _run_stage(runner, stage)

    return run_stage


def template_of(name: str) -> str:
    """Of which Prefect makes this name: it fills in what stands between braces."""
    return name.replace("{", "{{").replace("}", "}}")


def _node_task(runner: Runner, node: Node) -> Task:
    @task(name=node.name, task_run_name=template_of(node.name), cache_policy=NO_CACHE, persist_result=False)
    def run_node() -> State:
        return _run_node(runner, node)

    return run_node


def _run_stage(runner: Runner, stage: str) -> State:
    """One stage: Cached as a whole, or its nodes one by one as their inputs become ready."""
    nodes = [node for node in runner.nodes.values() if node.stage == stage]
    cached = [runner.adopt(resolution) for resolution in finished(nodes, runner.resolve, runner.done)]
    if cached:
        observe.stage_table(runner, stage)
        message = f"{len(cached)} of {len(cached)} nodes done before: {_ids(cached)}"
        return Completed(name="Cached", message=message)
    if any(node.trains for node in nodes):
        pool.shutdown()  # its workers hold a gigabyte that the training may want
    status = "FAILED"
    try:
        _run_nodes(runner, nodes)
        status = "FINISHED"
    finally:
        runner.end_stage(stage, status)
        observe.stage_table(runner, stage)
    return Completed(message=observe.stage_headline(runner, stage))


def _run_nodes(runner: Runner, nodes: list[Node]) -> None:
    """Start and await tasks as the schedule says; raises what the first failing node raised."""
    trainings = runner.config.runtime.parallel_trainings

    def length(node: Node) -> float:
        inputs = {role: runner.done[ref.node] for role, ref in node.sources.items()}
        return node.length(inputs) if node.length else 0.0

    schedule = Schedule(nodes, MAX_BESIDE, trainings, runner.stop.is_set, length)
    futures: dict[Future, str] = {}
    while not schedule.over:
        for node in schedule.next(runner.done):
            if node.exclusive:
                state = _node_task(runner, node)(return_state=True)
                schedule.ended(node.name, _failure(state))
            else:
                futures[_node_task(runner, node).submit().wrapped_future] = node.name
        if futures:
            done, _ = wait(futures, return_when=FIRST_COMPLETED)
            for future in done:
                schedule.ended(futures.pop(future), _failure(future.result()))
    if schedule.failure:
        raise schedule.failure


def _failure(state: State) -> BaseException | None:
    if state.is_completed():
        return None
    error: Any = state.result(raise_on_failure=False)
    return (
        error if isinstance(error, BaseException) else RuntimeError(f"ended as {state.name}: {state.message}")
    )


def _run_node(runner: Runner, node: Node) -> State:
    """One node: Cached, or run to a published artifact."""
    resolution = runner.resolve(node)
    if resolution.artifact:
        artifact = runner.adopt(resolution)
        return Completed(name="Cached", message=f"{resolution.reason}; {_ids([artifact])}")
    tags = {"prefect.task_run_id": str(task_run.id)}
    with observe.Progress(node.name) as progress:
        artifact, outcome = runner.run(resolution, get_run_logger(), progress, tags)
    if outcome is None:
        return Completed(name="Cached", message=f"made by another run meanwhile; {_ids([artifact])}")
    observe.node_summary(runner, artifact, outcome)
    return Completed(message=outcome.headline or None)


def _ids(artifacts: Iterable[Artifact]) -> str:
    text = ", ".join(f"{a.node} {a.fingerprint[:12]} (MLflow run {a.run_id})" for a in artifacts)
    return text if len(text) < 900 else text[:900] + " …"
