"""What a rerun asks MLflow does not grow with the number of past runs."""

import uuid

import pytest

from tasks.settings.config import Runtime, SteelRun
from tasks.stage.node import Context, Node, Outcome
from tasks.stage.plan import plan
from tasks.stage.runner import Runner
from tasks.stage.store import Store
from tasks.stage.tracking import FINGERPRINT, KIND, NODE, Tracker
from tests.support.walk import walk

NODES = 6


def make(ctx: Context) -> Outcome:
    (ctx.out / "out.txt").write_text(str(ctx.config))
    return Outcome(headline="made")


@pytest.fixture
def graph(tmp_path, mlflow_uri):
    tag = uuid.uuid4().hex[:6]
    nodes = {f"download:{tag}{i}": Node(f"download:{tag}{i}", make, {"i": i}) for i in range(NODES)}

    def runner(**changes) -> Runner:
        graph = {
            name: Node(name, make, {**node.config, **changes.get(name, {})}) for name, node in nodes.items()
        }
        config = SteelRun(profile="lookup", runtime=Runtime(artifacts=tmp_path))
        return Runner(config, graph, Store(tmp_path), Tracker(mlflow_uri), uuid.uuid4().hex)

    runner.names = list(nodes)
    return runner


@pytest.fixture
def asked(monkeypatch):
    """The number of runs that MLflow builds for each question."""
    from mlflow.tracking import MlflowClient

    sizes, search = [], MlflowClient.search_runs

    def counting(self, *args, **kwargs):
        page = search(self, *args, **kwargs)
        sizes.append(len(page))
        return page

    monkeypatch.setattr(MlflowClient, "search_runs", counting)
    return sizes


def test_a_rerun_asks_one_question_whatever_the_history(graph, asked):
    walk(graph())
    client, experiment = graph().tracker.client, graph().tracker.experiment
    for i in range(30):  # other settings of the same nodes, long gone
        run = client.create_run(
            experiment, tags={KIND: "node", NODE: graph.names[i % NODES], FINGERPRINT: f"{i:064x}"}
        )
        client.set_terminated(run.info.run_id)
    asked.clear()
    steps = plan(graph())
    assert {step.action for step in steps} == {"skip"}
    assert asked == [NODES]


def test_a_changed_node_asks_for_its_own_last_run_alone(graph, asked):
    walk(graph())
    asked.clear()
    steps = {step.node: step for step in plan(graph(**{graph.names[2]: {"i": "new"}}))}
    assert [step.action for step in steps.values()].count("run") == 1
    assert "changed since the last run: config" in steps[graph.names[2]].why
    assert asked == [NODES, 1]


def test_an_older_setting_is_reused_though_another_is_newer(graph):
    walk(graph())
    walk(graph(**{graph.names[0]: {"i": "newer"}}))
    assert {step.action for step in plan(graph())} == {"skip"}


def test_an_artifact_whose_run_was_deleted_is_known_by_another_run_of_its_fingerprint(graph):
    first = graph()
    walk(first)
    result = first.results[graph.names[0]]
    first.tracker.client.delete_run(result.run_id)
    [step] = [step for step in plan(graph()) if step.node == graph.names[0]]
    assert (step.action, "recorded again" in step.why) == ("skip", True)
    second = graph()
    walk(second)
    assert second.results[graph.names[0]].run_id != result.run_id
    [step] = [step for step in plan(graph()) if step.node == graph.names[0]]
    assert (step.action, step.why) == ("skip", "same fingerprint, artifact verified")


def test_a_work_folder_of_an_older_version_goes_on_in_its_run(tmp_path, mlflow_uri):
    """Before 0.4 nothing beside the folder named its run."""
    calls = []

    def break_once(ctx: Context) -> Outcome:
        calls.append(ctx.resumed)
        if not ctx.resumed:
            raise RuntimeError("once")
        return Outcome()

    def run() -> Runner:
        config = SteelRun(profile="lookup", runtime=Runtime(artifacts=tmp_path))
        node = Node("pretrain", break_once, {"tag": str(tmp_path)}, resumable=True)
        return Runner(
            config, {"pretrain": node}, Store(tmp_path), Tracker(mlflow_uri), uuid.uuid4().hex, frozenset()
        )

    first = run()
    with pytest.raises(RuntimeError):
        walk(first)
    [note] = (tmp_path / "pretrain").glob("*.run.json")
    note.unlink()
    second = run()
    walk(second)
    assert calls == [False, True]
    assert second.results["pretrain"].run_id == first.results["pretrain"].run_id
    assert not list((tmp_path / "pretrain").glob("*.run.json"))
