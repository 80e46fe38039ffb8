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
from dataclasses import dataclass
from typing import Any

from prefect import Task, get_run_logger, task
from prefect.cache_policies import NO_CACHE
from prefect.runtime import flow_run, task_run
from prefect.states import Cancelled, Completed, Failed, State

from flows import leftovers, observe
from flows.reporter import Reporter
from flows.spec import FlowSpec
from flows.watch import Watch
from tasks.inspect import preflight
from tasks.settings.config import SteelRun
from tasks.settings.errors import NodeError
from tasks.stage.node import Artifact, Node
from tasks.stage.runner import Runner
from tasks.stage.schedule import Schedule, finished
from tasks.stage.store import Store
from tasks.stage.tracking import Tracker
from tasks.work import pool

MAX_BESIDE = 8
CLOSE_SECONDS = 20.0
"""How long a run that has ended waits for a server that is away before it gives up showing its last tables."""


@dataclass(frozen=True)
class Run:
    """One flow run: what makes the artifacts, and what shows them."""

    runner: Runner
    reporter: Reporter
    journal: observe.Journal

    @property
    def stopped(self) -> bool:
        return self.runner.stop.is_set()


def walk(spec: FlowSpec, config: SteelRun, stages: Sequence[str], force: Iterable[str]) -> State:
    """Run stages of a flow in order, inside that flow; the state it ends in.

    A stage that fails ends the flow as Failed with that stage's words. What people do to the run in Prefect is
    obeyed (flows.watch): Pause or Abort is raised then, for the engine.
    """
    for line in preflight.refuse(config, tuple(stages), preflight.gpus_here()):
        get_run_logger().warning(line)
    store, tracker, run_id = Store(config.runtime.artifacts), Tracker(), str(flow_run.id)
    leftovers.close(tracker, run_id)
    runner = Runner(config, spec.build(config), store, tracker, run_id, frozenset(force))
    pool.configure(config.runtime.data_workers)
    reporter = Reporter(run_id)
    run = Run(runner, reporter, observe.Journal(runner, spec))
    observe.started(runner, reporter, spec)
    watch = Watch(run_id, runner.stop)
    status = "KILLED"
    with watch.obeyed():
        try:
            failed = _walk_stages(run, stages)
            status = "KILLED" if run.stopped else "FAILED" if failed else "FINISHED"
        except Exception:
            status = "KILLED" if run.stopped else "FAILED"
            raise
        finally:
            runner.stop.set()
            pool.shutdown()
            runner.end(status)
            run.journal.ended(status)
            watch.place = run.journal.place()
            reporter.close(patience=CLOSE_SECONDS)
    return failed or Completed(message=run.journal.headline())


def _walk_stages(run: Run, stages: Sequence[str]) -> State | None:
    """The state of the first stage that did not end well, or None."""
    before: list[State] = []  # makes the arrows of the graph
    has_nodes = {node.stage for node in run.runner.nodes.values()}
    for stage in [stage for stage in stages if stage in has_nodes]:
        run.journal.stage(stage)
        state = _stage_task(run, stage)(return_state=True, wait_for=before)
        run.journal.stage_ended(stage, state)
        if not state.is_completed():
            return Failed(message=state.message)
        before = [state]
    return None


def _stage_task(run: Run, stage: str) -> Task:
    @task(name=stage, task_run_name=stage, cache_policy=NO_CACHE, persist_result=False)
    def run_stage() -> State:
        return _run_stage(run, stage)

    return run_stage


def template_of(name: str) -> str:
    """Of which Prefect makes this name: it fills in what stands between braces."""
    return name.replace("{", "{{").replace("}", "}}")


def _node_task(run: Run, node: Node) -> Task:
    @task(name=node.name, task_run_name=template_of(node.name), cache_policy=NO_CACHE, persist_result=False)
    def run_node() -> State:
        try:
            return _run_node(run, node)
        except NodeError as error:  # a reason of the user's: its words, and no traceback over them
            if run.stopped:
                return Cancelled(message=str(error))
            get_run_logger().error("%s: %s", node.name, error)
            return Failed(message=str(error))

    return run_node


def _run_stage(run: Run, stage: str) -> State:
    """One stage: Cached as a whole, or its nodes one by one as their inputs become ready."""
    runner = run.runner
    nodes = [node for node in runner.nodes.values() if node.stage == stage]
    cached = [runner.adopt(resolution) for resolution in finished(nodes, runner.resolve, runner.done)]
    if cached:
        observe.stage_table(runner, run.reporter, stage)
        message = f"{len(cached)} of {len(cached)} nodes done before: {_ids(cached)}"
        return Completed(name="Cached", message=message)
    if any(node.trains for node in nodes):
        pool.shutdown()  # its workers hold a gigabyte that the training may want
    status = "KILLED"
    try:
        failure = _run_nodes(run, nodes)
        status = "FINISHED" if failure is None else "KILLED" if run.stopped else "FAILED"
    except Exception:
        status = "FAILED"
        raise
    finally:
        runner.end_stage(stage, status)
        observe.stage_table(runner, run.reporter, stage)
    if failure is None:
        return Completed(message=observe.stage_headline(runner, stage))
    return Cancelled(message=failure) if run.stopped else Failed(message=failure)


def _run_nodes(run: Run, nodes: list[Node]) -> str | None:
    """Start and await tasks as the schedule says; what the first failing node said, or None."""
    trainings = run.runner.config.runtime.parallel_trainings
    made = run.runner.done

    def length(node: Node) -> float:
        return (
            node.length({role: made[ref.node] for role, ref in node.sources.items()}) if node.length else 0.0
        )

    schedule = Schedule(nodes, MAX_BESIDE, trainings, run.runner.stop.is_set, length)
    futures: dict[Future, str] = {}
    while not schedule.over:
        for node in schedule.next(run.runner.done):
            if node.exclusive:
                state = _node_task(run, node)(return_state=True)
                schedule.ended(node.name, _failure(state))
            else:
                futures[_node_task(run, node).submit().wrapped_future] = node.name
        if futures:
            done, _ = wait(futures, return_when=FIRST_COMPLETED)
            for future in done:
                schedule.ended(futures.pop(future), _failure(future.result()))
    return None if schedule.failure is None else str(schedule.failure)


def _failure(state: State) -> BaseException | None:
    if state.is_completed():
        return None
    if state.message and state.data is None:  # told in words by the node
        return NodeError(state.message)
    error: Any = state.result(raise_on_failure=False)
    if isinstance(error, BaseException) and str(error):
        return error
    return RuntimeError(f"ended as {state.name}: {state.message}")


def _run_node(run: Run, node: Node) -> State:
    """One node: Cached, or run to a published artifact."""
    runner = run.runner
    resolution = runner.resolve(node)
    if resolution.artifact:
        artifact = runner.adopt(resolution)
        return Completed(name="Cached", message=f"{resolution.reason}; {_ids([artifact])}")
    tags = {"prefect.task_run_id": str(task_run.id)}
    with observe.Progress(node.name, run.reporter) as progress:
        artifact, outcome = runner.run(resolution, get_run_logger(), progress, tags)
    if outcome is None:
        return Completed(name="Cached", message=f"made by another run meanwhile; {_ids([artifact])}")
    observe.node_summary(runner, run.reporter, artifact, outcome)
    return Completed(message=outcome.headline or None)


def _ids(artifacts: Iterable[Artifact]) -> str:
    text = ", ".join(f"{a.node} {a.fingerprint[:12]} (MLflow run {a.run_id})" for a in artifacts)
    return text if len(text) < 900 else text[:900] + " …"
