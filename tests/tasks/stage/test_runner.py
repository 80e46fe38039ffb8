"""The stage contract with real files and a real MLflow (SQLite): skip, remake, resume, force, cut off."""

import logging
import shutil
import threading
import uuid

import pytest

from tasks.settings.config import Runtime, SteelRun
from tasks.settings.errors import NodeError
from tasks.stage.node import Context, Node, Outcome
from tasks.stage.runner import Runner
from tasks.stage.store import MANIFEST, Store
from tasks.stage.tracking import Tracker
from tests.support.walk import walk

LOG = logging.getLogger("test")
CALLS: list[str] = []


def make(ctx: Context) -> Outcome:
    CALLS.append(ctx.name)
    for role, source in ctx.inputs.items():
        (ctx.out / f"{role}.txt").write_text((source.path / "out.txt").read_text())
    (ctx.out / "out.txt").write_text(str(ctx.config["text"]))
    (ctx.out / "train.log").write_text(f"noise {uuid.uuid4()}")
    return Outcome(headline="made", counts={"n": 1})


def break_once(ctx: Context) -> Outcome:
    CALLS.append(ctx.name)
    mark = ctx.out / "half.txt"
    if not mark.exists():
        mark.write_text("half")
        ctx.track.metrics({"loss": 3.0}, step=1)
        raise NodeError("broken on purpose")
    assert ctx.resumed
    ctx.track.metrics({"loss": 3.0}, step=1)
    ctx.track.metrics({"loss": 2.0}, step=2)
    return Outcome()


@pytest.fixture
def world(tmp_path, mlflow_uri):
    """`run(nodes, force=...)` walks a graph as the flow does, and says how each node ended."""
    CALLS.clear()
    tracker = Tracker(mlflow_uri)
    profile = f"test-{uuid.uuid4().hex[:8]}"

    def run(*nodes: Node, force=(), flow=None, seed=1):
        config = SteelRun(profile=profile, seed=seed, runtime=Runtime(artifacts=tmp_path))
        flow = flow or uuid.uuid4().hex
        runner = Runner(config, {n.name: n for n in nodes}, Store(tmp_path), tracker, flow, frozenset(force))
        walk(runner)
        return runner

    run.root, run.tracker = tmp_path, tracker
    return run


def two(tag: str, text: str = "a", last: str = "b") -> list[Node]:
    """Two chained nodes; `tag` keeps the fingerprints of tests apart in the shared database."""
    return [
        Node(f"download:{tag}", make, {"text": text}),
        Node(f"convert:{tag}", make, {"text": last}, inputs={"raw": f"download:{tag}"}),
    ]


def states(runner: Runner) -> list[str]:
    return [r.state for r in runner.results.values()]


def test_a_rerun_reuses_everything_and_lists_what_it_reused(world):
    first = world(*two("rerun"))
    again = world(*two("rerun"))
    assert (states(first), states(again)) == (["Completed"] * 2, ["Cached"] * 2)
    assert len(CALLS) == 2
    tags = world.tracker.client.get_run(again.pipeline_run).data.tags
    assert tags["steel.reused_runs"].split(",") == [r.run_id for r in first.results.values()]
    # a reused run keeps its first parent
    node_run = world.tracker.client.get_run(first.results["download:rerun"].run_id)
    stage_run = world.tracker.client.get_run(node_run.data.tags["mlflow.parentRunId"])
    assert stage_run.data.tags["mlflow.parentRunId"] == first.pipeline_run


def test_a_changed_value_reruns_that_node_and_its_dependants_only(world):
    world(*two("change"))
    assert states(world(*two("change", last="c"))) == ["Cached", "Completed"]
    changed = world(*two("change", text="z"))
    assert states(changed) == ["Completed", "Completed"]
    assert 'text: "a" → "z"' in changed.results["download:change"].reason


def in_folders(ctx: Context) -> Outcome:
    names = ["report.json", "a/report.json", "b/report.json"]
    for name in names:
        (ctx.out / name).parent.mkdir(exist_ok=True)
        (ctx.out / name).write_text(name)
    return Outcome(files=names)


def test_files_of_one_name_are_logged_in_their_folders(world):
    run_id = world(Node("clean:folders", in_folders)).results["clean:folders"].run_id
    client = world.tracker.client
    logged = {file.path for folder in ("", "a", "b") for file in client.list_artifacts(run_id, folder)}
    assert logged == {MANIFEST, "report.json", "a", "b", "a/report.json", "b/report.json"}


def test_a_missing_or_altered_artifact_is_remade(world):
    first = world(*two("gone"))
    path = first.done["download:gone"].path
    (path / "out.txt").write_text("longer than before")
    altered = world(*two("gone"))
    assert states(altered) == ["Completed", "Cached"], "the same bytes again: dependants stay"
    assert "changed size" in altered.results["download:gone"].reason
    shutil.rmtree(path)
    assert states(world(*two("gone"))) == ["Completed", "Cached"]


def test_full_verification_sees_a_flipped_byte(world):
    first = world(*two("flip"))
    (first.done["download:flip"].path / "out.txt").write_text("b")  # same size
    fingerprint = first.done["download:flip"].fingerprint
    check = first.store.check
    assert check("download:flip", fingerprint, first.done["download:flip"].digest, "size")[1] == ""
    assert (
        "changed content"
        in check("download:flip", fingerprint, first.done["download:flip"].digest, "full")[1]
    )


def test_force_runs_again_once_per_flow_run_and_cuts_off_early(world):
    world(*two("force"))
    forced = world(*two("force"), force=["download:force"], flow="flow-1")
    assert states(forced) == ["Completed", "Cached"]
    retried = world(*two("force"), force=["download:force"], flow="flow-1")
    assert states(retried) == ["Cached", "Cached"]
    with pytest.raises(ValueError, match="no stage or node 'nope'"):
        world(*two("force"), force=["nope"])


def test_a_failed_node_resumes_in_its_folder_and_its_mlflow_run(world):
    node = Node("pretrain", break_once, {"resume": 1}, resumable=True)
    with pytest.raises(NodeError):
        world(node)
    [failed] = world.tracker.client.search_runs(
        [world.tracker.experiment], "tags.`steel.node` = 'pretrain' and attributes.status = 'FAILED'"
    )
    again = world(node)
    assert again.results["pretrain"].run_id == failed.info.run_id
    history = world.tracker.client.get_metric_history(failed.info.run_id, "loss")
    assert [(m.step, m.value) for m in history] == [(1, 3.0), (2, 2.0)], "no step twice"


def test_a_node_that_cannot_resume_starts_in_an_empty_folder(world):
    node = Node("clean:fresh", break_once, {"fresh": 1})
    for _ in range(2):
        with pytest.raises(NodeError):
            world(node)


def test_the_seed_counts_where_random_numbers_are_drawn(world):
    data, trained = (
        Node("convert:seed", make, {"text": "s"}),
        Node("dpo:train", make, {"text": "s"}, seeded=True),
    )
    world(data, trained)
    assert states(world(data, trained, seed=2)) == ["Cached", "Completed"]


def test_a_part_of_an_artifact_is_an_input_of_its_own(world):
    def body(ctx: Context) -> Outcome:
        for name in ("a", "b"):
            (ctx.out / name).mkdir()
            (ctx.out / name / "out.txt").write_text(str(ctx.config[name]))
        return Outcome()

    def graph(a, b):
        return [
            Node("clean:parts", body, {"a": a, "b": b}),
            Node("tokenize:a", make, {"text": "x"}, inputs={"drops": "clean:parts#a"}),
            Node("tokenize:b", make, {"text": "x"}, inputs={"drops": "clean:parts#b"}),
        ]

    world(*graph(1, 1))
    assert states(world(*graph(1, 2))) == ["Completed", "Cached", "Completed"]


def test_one_writer_per_fingerprint(world):
    """The second of two runs that start together waits, then takes the first one's artifact."""
    entered, go = threading.Event(), threading.Event()

    def slow(ctx: Context) -> Outcome:
        CALLS.append(ctx.name)
        entered.set()
        assert go.wait(20)
        (ctx.out / "out.txt").write_text("slow")
        return Outcome()

    node = Node("convert:lock", slow, {"lock": 1})
    first = threading.Thread(target=world, args=(node,))
    first.start()
    assert entered.wait(20)
    second = threading.Thread(target=world, args=(node,))
    second.start()
    second.join(1.0)
    assert second.is_alive(), "it waits for the lock"
    go.set()
    first.join(20)
    second.join(20)
    assert CALLS == ["convert:lock"]


def test_a_crash_before_the_manifest_leaves_nothing_under_the_final_name(world, monkeypatch):
    node = Node("convert:crash", make, {"text": "crash"})
    monkeypatch.setattr(Store, "publish", lambda *a, **k: (_ for _ in ()).throw(OSError("disk full")))
    with pytest.raises(OSError, match="disk full"):
        world(node)
    assert not list((world.root / "convert").glob(f"crash-*/{MANIFEST}"))
    monkeypatch.undo()
    assert states(world(node)) == ["Completed"]


def test_manifests_and_mlflow_say_the_commit_and_the_version(world, monkeypatch):
    monkeypatch.setattr("tasks.stage.provenance.commit", lambda: "abc-dirty")
    monkeypatch.setattr("tasks.stage.provenance.version", lambda: "1.2.3")
    runner = world(*two("origin"))
    for artifact in runner.done.values():
        assert artifact.manifest["code_commit"] == "abc-dirty"
        assert artifact.manifest["steel_version"] == "1.2.3"
    for run in (runner.pipeline_run, *(result.run_id for result in runner.results.values())):
        tags = world.tracker.client.get_run(run).data.tags
        assert (tags["mlflow.source.git.commit"], tags["steel.version"]) == ("abc-dirty", "1.2.3")
    monkeypatch.setattr("tasks.stage.provenance.commit", lambda: "")
    again = world(*two("origin"))
    assert states(again) == ["Cached", "Cached"], "no part of the identity"
    assert "mlflow.source.git.commit" not in world.tracker.client.get_run(again.pipeline_run).data.tags


def test_the_artifacts_of_a_node_are_found_newest_first(world):
    for text in "abc":
        world(*two("scan", text=text))
    world(*two("scan2"))
    store = Store(world.root)
    (world.root / "download" / "scan-0123456789abcdef.partial").mkdir()
    (world.root / "download" / "scan-0123456789abcdef").mkdir()  # no manifest: not finished
    artifacts = list(store.artifacts("download:scan"))
    assert [artifact.manifest["identity"]["config"]["text"] for artifact in artifacts] == ["c", "b", "a"]
    assert {artifact.node for artifact in artifacts} == {"download:scan"}
    assert artifacts[0].path == store.final("download:scan", artifacts[0].fingerprint)
    assert list(store.artifacts("download:nothing")) == []


def test_the_pipelines_run_stands_for_itself(world):
    """Parameters, headline metrics and description are in it; stage runs carry their own numbers."""

    def train(ctx: Context) -> Outcome:
        return Outcome(metrics={"val_loss": 2.5}, counts={"tokens": 7})

    tag = uuid.uuid4().hex
    runner = world(Node("pretrain", train, {"tag": tag}), *two(tag))
    runner.end_stage("pretrain", "FINISHED")
    client = world.tracker.client
    run = client.get_run(runner.pipeline_run)
    assert run.data.metrics["pretrain/val_loss"] == 2.5
    assert run.data.params["seed"] == "1"
    assert run.data.params["pretrain.optim.lr"]
    assert run.data.params["profile"] == runner.config.profile
    assert run.data.tags["mlflow.user"]
    [stage] = client.search_runs(
        [world.tracker.experiment],
        f"tags.`steel.kind` = 'stage' and tags.`mlflow.parentRunId` = '{runner.pipeline_run}' "
        "and tags.`mlflow.runName` = 'pretrain'",
    )
    assert stage.data.metrics == {
        "nodes": 1,
        "nodes_reused": 0,
        "seconds": stage.data.metrics["seconds"],
        "tokens": 7,
    }
    assert (
        client.get_experiment(world.tracker.experiment).tags["mlflow.experimentKind"]
        == "custom_model_development"
    )
