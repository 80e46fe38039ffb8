"""Ranks find those of their own attempt, whatever earlier ones left in the store, and hear when one ends."""

import faulthandler
import queue
import time
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta

import pytest
import torch.distributed as dist

from model.training import rendezvous, watch
from model.training.rendezvous import _follow, _invite, restarts_left, stop_agent
from model.training.watch import Watch

SOON = timedelta(seconds=20)


@pytest.fixture
def store():
    return dist.TCPStore("127.0.0.1", 0, is_master=True, timeout=SOON)


def attempt(store, size: int, delays: list[float]) -> list[str]:
    """The name each rank of an attempt works under; rank r comes after delays[r] seconds."""

    def come(rank: int) -> str:
        time.sleep(delays[rank])
        own = store.clone()
        return _invite(own, size, SOON) if rank == 0 else _follow(own, rank)

    with ThreadPoolExecutor(size) as pool:
        return list(pool.map(come, range(size)))


@pytest.mark.parametrize("delays", [[0, 0, 0], [0.3, 0, 0.1], [0, 0.3, 0], [0.1, 0.2, 0.3]])
def test_every_attempt_has_a_name_of_its_own_that_all_its_ranks_know(store, delays):
    names = [attempt(store, 3, delays) for _ in range(4)]
    assert all(len(set(of_ranks)) == 1 for of_ranks in names)
    assert len({of_ranks[0] for of_ranks in names}) == 4


def test_ranks_that_died_while_they_met_are_not_taken_for_the_living(store):
    store.set("here/1", "dead")  # had come, and was not yet invited
    store.set("here/2", "dead too")
    store.set("come/dead too", "an old name")  # had been invited, and had not answered
    store.set("came/an old name/1", "")
    names = attempt(store, 3, [0, 0.3, 0.1])
    assert len(set(names)) == 1
    assert names[0] != "an old name"


def test_a_rank_that_does_not_come_is_named(store):
    with pytest.raises(TimeoutError, match=r"ranks \[1\] have not come"):
        _invite(store, 2, timedelta(seconds=0.2))


@pytest.mark.parametrize(("count", "left"), [("0", 3), ("2", 1), ("3", 0)])
def test_torchrun_is_stopped_only_while_it_would_start_again(monkeypatch, count, left):
    sent = []
    monkeypatch.setattr(rendezvous.os, "kill", lambda *call: sent.append(call))
    monkeypatch.setenv("TORCHELASTIC_MAX_RESTARTS", "3")
    monkeypatch.setenv("TORCHELASTIC_RESTART_COUNT", count)
    stop_agent()
    assert sent == []  # no torchrun
    monkeypatch.setenv("TORCHELASTIC_RUN_ID", "x")
    assert restarts_left() == left
    stop_agent()
    assert len(sent) == (left > 0)


@pytest.fixture
def leaves(monkeypatch):
    """Exit codes with which watch threads have ended "their process", and the restarts they forbade."""
    codes = queue.Queue()

    def leave(code):
        codes.put(code)
        raise RuntimeError  # ends the thread

    monkeypatch.setattr(watch, "leave", leave)
    monkeypatch.setattr(watch, "POLL_SECONDS", 0.02)
    monkeypatch.setattr(watch, "stop_agent", lambda: codes.put("no restart"))
    return codes


@pytest.mark.parametrize("code", [1, 2])
def test_when_one_rank_ends_the_others_do_with_the_same_code(store, leaves, code):
    one, other = Watch(), Watch()
    one.attach(store, 0)
    other.attach(store.clone(), 0)
    assert one.end(code)  # the first to say so
    if code == 2:
        assert leaves.get(timeout=5) == "no restart"  # once for the node
    assert leaves.get(timeout=5) == code
    assert leaves.empty()
    assert not other.end(code)


def test_without_a_step_for_too_long_all_ranks_end_and_show_where_they_are(store, leaves):
    one, other = Watch(), Watch()
    for each, seconds in ((one, 0.3), (other, 60)):
        each.attach(store.clone(), seconds)
    time.sleep(0.5)  # before the first beat nothing is waited for
    assert leaves.empty()
    one.beat()
    other.beat()
    assert [leaves.get(timeout=5), leaves.get(timeout=5)] == [1, 1]
    faulthandler.cancel_dump_traceback_later()


def test_a_rank_at_rest_is_not_late(store, leaves):
    one = Watch()
    one.attach(None, 0.2)
    for _ in range(10):
        one.beat()
        time.sleep(0.05)
    one.rest()
    time.sleep(0.5)
    one.close()
    assert leaves.empty()
