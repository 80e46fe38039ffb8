"""The whole graph: what its nodes say of themselves."""

from __future__ import annotations

import pytest

from tasks import dag
from tasks.settings import profiles
from tasks.stage.node import Node


def graphs(profile: str) -> list[Node]:
    config = profiles.load(profile)
    return list(({**dag.build(config), **dag.build_ablation(config)}).values())


@pytest.mark.parametrize("profile", ["smoke", "demo"])
def test_what_draws_random_numbers_has_the_runs_seed_in_its_identity(profile):
    nodes = graphs(profile)
    assert {node.stage for node in nodes if node.seeded} == {
        "pretrain",
        "sft",
        "dpo",
        "rl",
        "evaluate",
        "report",
    }
    for node in nodes:
        stage = [other.seeded for other in nodes if other.stage == node.stage]
        assert all(stage) or not any(stage), "a stage draws or does not"


@pytest.mark.parametrize("profile", ["smoke", "demo"])
def test_trainings_say_so(profile):
    trainings = {node.name for node in graphs(profile) if node.trains}
    variants = {f"sft:{name}" for name in profiles.load(profile).sft.variants}
    studies = {name for name in trainings if name.startswith("ablation:")}
    assert trainings - studies == {"pretrain", "dpo:reference", "dpo:train", "rl:train"} | variants
    assert studies == {node.name for node in graphs(profile) if node.stage == "ablation"} - {"ablation:ffn"}


@pytest.mark.parametrize("parallel", [1, 2])
def test_trainings_want_the_machine_unless_they_may_share_it(parallel):
    config = profiles.load("demo", {"runtime": {"parallel_trainings": parallel}})
    exclusive = {node.name for node in dag.build(config).values() if node.exclusive}
    assert "pretrain" in exclusive
    assert any(name.startswith("sft:") for name in exclusive) == (parallel == 1)
    assert "sft:select" not in exclusive


def test_a_graph_that_cannot_be_run_is_refused():
    node = Node("convert:a", print, inputs={"raw": "download:a#part"})
    with pytest.raises(ValueError, match="wants 'download:a#part' as 'raw', which no earlier node makes"):
        dag._graph([node], ["convert"])
    with pytest.raises(ValueError, match="belongs to no stage"):
        dag._graph([Node("magic", print)], ["convert"])
    with pytest.raises(ValueError, match="two nodes are named"):
        dag._graph([Node("convert:a", print)] * 2, ["convert"])
