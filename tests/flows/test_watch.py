"""What a flow run does when its state is changed from outside, or when nobody tells it."""

from __future__ import annotations

import threading
import time
import uuid

import pytest
from prefect.exceptions import Abort, Pause, PrefectSignal
from prefect.states import Cancelled, Cancelling, Completed, Crashed, Pending, Running, Scheduled, Suspended

from flows import watch
from tests.support.prefect_server import AWAY, Server

RUN = str(uuid.uuid4())


@pytest.fixture
def server(monkeypatch):
    server = Server()
    server.states[RUN] = Running()
    monkeypatch.setattr(watch, "get_client", server.client)
    monkeypatch.setattr(watch, "POLL_SECONDS", 0.01)
    return server


def work(stop: threading.Event, seconds: float = 10.0) -> None:
    """A stage that saves and raises when it is told to stop, as they do."""
    if stop.wait(seconds):
        raise RuntimeError("stopped behind step 7")


def outcome(server, act, seconds: float = 10.0):
    """What the engine gets when `act` happens while the flow works."""
    stop = threading.Event()
    watched = watch.Watch(RUN, stop)
    watched.place = "stopped at step 7"
    timer = threading.Timer(0.1, act)
    timer.start()
    try:
        with watched.obeyed():
            work(stop, seconds)
        return watched, None
    except (RuntimeError, PrefectSignal) as error:
        return watched, error
    finally:
        timer.join()
        watched._thread.join(5)
        assert not watched._thread.is_alive()


def become(server, state):
    return lambda: server.states.__setitem__(RUN, state)


def test_suspend_keeps_the_place_without_a_time_out(server):
    _, error = outcome(server, become(server, Suspended(timeout_seconds=300)))
    assert isinstance(error, Pause)
    [told] = server.set
    assert told.is_paused()
    assert told.name == "Suspended"
    assert told.message == "stopped at step 7"
    assert told.state_details.pause_timeout is None


@pytest.mark.parametrize("state", [Scheduled(), Pending()], ids=["Scheduled", "Pending"])
def test_a_run_resumed_before_it_had_saved_is_left_to_the_next_process(server, state):
    _, error = outcome(server, become(server, state))
    assert isinstance(error, Pause)
    assert server.set == []


def test_suspended_and_resumed_while_the_stage_saved(server):
    def act():
        server.states[RUN] = Suspended(timeout_seconds=300)
        time.sleep(0.2)

    stop = threading.Event()
    watched = watch.Watch(RUN, stop)
    act()
    with pytest.raises(Pause), watched.obeyed():
        become(server, Scheduled())() if stop.wait(5) else pytest.fail("it was not stopped")
    assert server.set == []


def test_cancel_is_told_by_the_flow_itself(server):
    _, error = outcome(server, become(server, Cancelling()))
    assert isinstance(error, Abort)
    [told] = server.set
    assert told.is_cancelled()
    assert told.message == "stopped at step 7"


def test_cancelled_by_a_worker_meanwhile_is_left_as_it_is(server):
    _, error = outcome(server, become(server, Cancelled(message="the worker's words")))
    assert isinstance(error, Abort)
    assert server.set == []


def test_a_deleted_run_stops(server):
    watched, error = outcome(server, lambda: server.states.clear())
    assert isinstance(error, Abort)
    assert watched.why == watch.DELETED


def test_one_404_is_no_proof(server, monkeypatch):
    monkeypatch.setattr(watch, "POLL_SECONDS", 0.2)

    def blink():
        state = server.states.pop(RUN)
        time.sleep(0.25)
        server.states[RUN] = state

    watched, error = outcome(server, blink, seconds=1.0)
    assert (watched.why, error) == ("", None)


@pytest.mark.parametrize("trouble", AWAY.values(), ids=AWAY)
def test_a_server_that_is_away_stops_nothing_and_is_waited_for_at_the_end(server, trouble):
    def go():
        server.error = trouble
        threading.Timer(0.6, lambda: setattr(server, "error", None)).start()

    begun = time.monotonic()
    watched, error = outcome(server, go, seconds=0.3)
    assert (watched.why, error) == ("", None)
    assert time.monotonic() - begun > 0.65, "the flow returned while nobody could hear it"


def test_called_crashed_while_it_lives_it_is_running_again(server):
    watched, error = outcome(server, become(server, Crashed()), seconds=0.5)
    assert (watched.why, error) == ("", None)
    assert [state.type.value for state in server.set] == ["RUNNING"]


def test_called_crashed_again_and_again_it_stops(server):
    def insist():
        for _ in range(3):
            server.states[RUN] = Crashed()
            time.sleep(0.1)

    watched, error = outcome(server, insist)
    assert isinstance(error, Abort)
    assert watched.why == "CRASHED"
    assert len(server.set) == watch.MOST_REVIVALS


def test_what_the_flow_itself_raises_is_passed_on(server):
    watched = watch.Watch(RUN, threading.Event())
    with pytest.raises(ZeroDivisionError), watched.obeyed():
        _ = 1 / 0


def test_a_run_that_somebody_set_to_completed_goes_on(server):
    """The last word is the engine's own."""
    watched, error = outcome(server, become(server, Completed()), seconds=0.5)
    assert (watched.why, error) == ("", None)


def test_an_end_by_a_signal_is_not_held_up(server):
    class Signal(BaseException):
        pass

    server.error = AWAY["refused"]
    watched = watch.Watch(RUN, threading.Event())
    begun = time.monotonic()
    with pytest.raises(Signal), watched.obeyed():
        raise Signal
    assert time.monotonic() - begun < 1
