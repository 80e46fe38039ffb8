"""The rules of a stage, one by one: order, exclusive nodes, limits, failure, stop, and reuse of a whole stage."""

from __future__ import annotations

from pathlib import Path

import pytest

from tasks.settings.errors import NodeError
from tasks.stage.node import Artifact, Node
from tasks.stage.runner import Resolution
from tasks.stage.schedule import Schedule, finished


def node(name: str, *inputs: str, **fields) -> Node:
    return Node(name, print, inputs={text: text for text in inputs}, **fields)


def names(nodes: list[Node]) -> list[str]:
    return [one.name.partition(":")[2] for one in nodes]


def play(schedule: Schedule, failing: tuple[str, ...] = (), done: set[str] | None = None) -> list[list[str]]:
    """Run to the end, always ending the node that has run longest; what ran together after each start."""
    done, history = set() if done is None else done, []
    while not schedule.over:
        if schedule.next(done):
            history.append(names(list(schedule.running.values())))
        oldest = next(iter(schedule.running), None)
        if oldest is not None:
            failure = ValueError(oldest) if oldest in failing else None
            schedule.ended(oldest, failure)
            done |= set() if failure else {oldest}
    return history


def test_a_node_starts_after_its_inputs_in_the_order_of_declaration():
    graph = [node("s:a"), node("s:b"), node("s:join", "s:a", "s:b#part"), node("s:last", "s:join")]
    assert play(Schedule(graph)) == [["a", "b"], ["join"], ["last"]]


def test_of_the_nodes_that_could_start_the_longest_does():
    lengths = {"s:a": 1, "s:b": 3, "s:c": 3, "s:d": 2, "s:e": 0}
    graph = [*(node(name, trains=True) for name in lengths), node("s:join", *lengths)]
    schedule = Schedule(graph, trainings=2, length=lambda node: lengths.get(node.name, 0))
    assert play(schedule) == [["b", "c"], ["c", "d"], ["d", "a"], ["a", "e"], ["join"]]


def test_what_an_earlier_stage_made_is_there_from_the_start():
    schedule = Schedule([node("s:a", "before")])
    assert names(schedule.next({"before"})) == ["a"]


@pytest.mark.parametrize("limit", [1, 2, 3, 8])
def test_so_many_run_beside_each_other_and_no_more(limit):
    graph = [node(f"s:{i}") for i in range(6)]
    history = play(Schedule(graph, limit=limit))
    assert max(map(len, history)) == min(limit, 6)
    assert [name for step in history for name in step[-1:]][-1] == "5"


def test_trainings_have_a_lower_limit_that_others_do_not_have():
    graph = [node(f"s:{i}", trains=True) for i in range(3)] + [
        node("s:light"),
        node("s:select", "s:0", "s:1"),
    ]
    assert play(Schedule(graph, trainings=2)) == [
        ["0", "1", "light"],
        ["1", "light", "2"],
        ["light", "2", "select"],
    ]
    assert play(Schedule(graph, limit=2, trainings=5))[0] == ["0", "1"]


def test_an_exclusive_node_waits_for_an_empty_machine_and_keeps_it():
    graph = [node("s:big", exclusive=True), node("s:a"), node("s:big2", exclusive=True), node("s:b", "s:a")]
    schedule, done = Schedule(graph), set()
    assert names(schedule.next(done)) == ["a"]  # what can run now, runs
    assert schedule.next(done) == []
    schedule.ended("s:a")
    assert names(schedule.next({"s:a"})) == ["b"]
    schedule.ended("s:b")
    assert names(schedule.next({"s:a", "s:b"})) == ["big"]
    assert schedule.next({"s:a", "s:b"}) == []  # nothing beside it, no other big one either
    schedule.ended("s:big")
    assert names(schedule.next({"s:a", "s:b", "s:big"})) == ["big2"]
    assert not schedule.over
    schedule.ended("s:big2")
    assert schedule.over


def test_after_a_failure_nothing_starts_and_what_runs_may_end():
    schedule = Schedule([node("s:a"), node("s:b"), node("s:c"), node("s:after", "s:b")], limit=2)
    assert names(schedule.next(())) == ["a", "b"]
    first = ValueError("first")
    schedule.ended("s:a", first)
    assert not schedule.over  # b may end
    assert schedule.next(()) == []
    schedule.ended("s:b", ValueError("second"))
    assert schedule.next(()) == []
    assert schedule.over
    assert schedule.failure is first
    assert names(schedule.waiting) == ["c", "after"]


@pytest.mark.parametrize("alone", [False, True])
def test_a_variant_that_fails_stops_no_other_one_but_what_needs_it(alone):
    sweep = [node(f"s:{i}", "base", trains=True, exclusive=alone) for i in range(4)]
    more = [node("s:after", "s:1", trains=True), node("s:select", "s:0", "s:1"), node("s:light", "s:0")]
    schedule, done = Schedule([*sweep, *more], trainings=2), {"base"}
    play(schedule, ("s:1", "s:2"), done)
    assert str(schedule.failure) == "s:1", "the first one is told"
    assert {"s:0", "s:3"} <= done
    assert names(schedule.waiting)[:2] == ["after", "select"]


def test_a_stop_after_a_failure_starts_no_variant_either():
    stopped = False
    schedule = Schedule([node(f"s:{i}", trains=True) for i in range(2)], stop=lambda: stopped)
    assert names(schedule.next(())) == ["0"]
    stopped = True
    schedule.ended("s:0", ValueError("first"))
    assert schedule.next(()) == []
    assert schedule.over
    assert str(schedule.failure) == "first"


@pytest.mark.parametrize("failing", ["s:a", "s:big"])
def test_a_failure_of_any_kind_of_node_ends_the_stage(failing):
    schedule = Schedule([node("s:a"), node("s:big", "s:a", exclusive=True), node("s:last", "s:big")])
    play(schedule, (failing,))
    assert str(schedule.failure) == failing


def test_a_stop_lets_nothing_new_start_and_is_no_failure_when_nothing_is_left():
    stopped = False
    schedule = Schedule([node("s:a"), node("s:b", "s:a")], stop=lambda: stopped)
    assert names(schedule.next(())) == ["a"]
    stopped = True
    schedule.ended("s:a")
    assert schedule.next({"s:a"}) == []
    assert schedule.over
    with pytest.raises(NodeError, match="stopped before s:b"):
        raise schedule.failure
    late = Schedule([node("s:a")], stop=lambda: bool(late.running))
    play(late)
    assert late.failure is None


def test_nodes_that_wait_for_each_other_are_an_error():
    schedule = Schedule([node("s:a", "s:b"), node("s:b", "s:a")])
    with pytest.raises(RuntimeError, match="'s:a', 's:b'"):
        schedule.next({"other"})


def resolver(cached: set[str]):
    def resolve(one: Node, known) -> Resolution:
        assert all(ref.node in known for ref in one.sources.values()), "inputs are known before"
        artifact = Artifact(one.name, Path(one.name), "", "", {}) if one.name in cached else None
        return Resolution(one, {}, "", artifact, "")

    return resolve


def test_a_stage_is_reused_as_a_whole_or_not_at_all():
    graph = [node("s:a", "before"), node("s:b", "s:a"), node("s:c", "s:b")]
    before = {"before": Artifact("before", Path("before"), "", "", {})}
    whole = finished(graph, resolver({"s:a", "s:b", "s:c"}), before)
    assert [r.artifact.node for r in whole] == ["s:a", "s:b", "s:c"]
    for missing in ("s:a", "s:b", "s:c"):
        assert finished(graph, resolver({"s:a", "s:b", "s:c"} - {missing}), before) == []
    assert list(before) == ["before"], "nothing is adopted on the way"
    assert finished([], resolver(set()), before) == []
