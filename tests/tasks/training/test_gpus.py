"""tasks.training.gpus: no GPU is had twice, and who waits can be stopped."""

from __future__ import annotations

import threading

import pytest

from tasks.training import gpus


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    monkeypatch.setattr(gpus, "WAIT_SECONDS", 0.01)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)


def never():
    raise AssertionError("it waits")


@pytest.mark.parametrize(
    ("given", "expected"),
    [(None, ["0", "1"]), ("", ["0", "1"]), ("4,2", ["4", "2"]), (" GPU-x , 7 ,9", ["GPU-x", "7"])],
)
def test_gpus_are_called_what_this_process_calls_them(monkeypatch, given, expected):
    if given is not None:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", given)
    assert gpus.names(2) == expected


def test_each_training_has_others_and_they_are_free_again():
    with gpus.taken(1, 3, never) as first, gpus.taken(2, 3, never) as second:
        assert (first, second) == (["0"], ["1", "2"])
    with gpus.taken(3, 3, never) as every:
        assert every == ["0", "1", "2"]


def test_who_finds_too_few_waits_for_them():
    waiting, had = threading.Event(), []

    def later():
        with gpus.taken(2, 2, waiting.set) as mine:
            had.append(mine)

    with gpus.taken(1, 2, never):
        thread = threading.Thread(target=later)
        thread.start()
        assert waiting.wait(30)
        assert not had
    thread.join(30)
    assert had == [["0", "1"]]


def test_a_wait_can_be_ended_and_takes_nothing():
    class Stopped(Exception):
        pass

    def stop():
        raise Stopped

    with gpus.taken(1, 1, never), pytest.raises(Stopped), gpus.taken(1, 1, lambda: None, stop):
        raise AssertionError("it was given")
    with gpus.taken(1, 1, never):
        pass


def test_what_fails_gives_its_gpus_back():
    with pytest.raises(OSError), gpus.taken(1, 1, never):
        raise OSError
    with gpus.taken(1, 1, never):
        pass


def test_more_than_there_are_is_refused():
    with (
        pytest.raises(ValueError, match="3 ranks need as many GPUs, and there are 2"),
        gpus.taken(3, 2, never),
    ):
        pass
