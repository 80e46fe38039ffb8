"""A flow run obeys what people do to it in Prefect, while a stage of it works for hours.

The engine looks at its run's state between tasks only. Here a thread asks the server, `stop` makes the stage
save and end, and the flow then tells its end itself and leaves by the engine's signals (exit code 0, no
traceback):

| state of the run                     | what happens                                                          |
|--------------------------------------|-----------------------------------------------------------------------|
| Suspended                            | stops behind a checkpoint; set anew without the page's time-out        |
| Scheduled, Pending (already resumed) | stops; nothing is set, for the next process has the run                |
| Cancelling                           | stops; set to Cancelled, the only state that the server takes then     |
| deleted (twice in a row)             | stops                                                                  |
| Crashed, while this process lives    | an outage or a sleeping machine was mistaken for its end: Running again |
| no answer                            | goes on                                                                |
"""

from __future__ import annotations

import logging
import threading
import time
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager
from uuid import UUID

from prefect.client.orchestration import SyncPrefectClient, get_client
from prefect.exceptions import Abort, ObjectNotFound, Pause
from prefect.states import Cancelled, Running, State, Suspended

from flows.reporter import AWAY

POLL_SECONDS = 5.0
STOPS = {"PAUSED", "SCHEDULED", "PENDING", "CANCELLING", "CANCELLED"}
DELETED = "deleted"
MOST_REVIVALS = 2
"""In REVIVAL_SECONDS. Whoever calls a living run Crashed more often than that means it."""
REVIVAL_SECONDS = 600.0

log = logging.getLogger(__name__)


class Watch:
    """Asks for the state of one flow run, and sets `stop` when it is to end; `why` says why."""

    def __init__(self, run: str, stop: threading.Event):
        self._run, self._stop = UUID(run), stop
        self.why = ""
        """A state type, `deleted`, or "" while the run is to go on."""
        self.place = ""
        """Where it stopped, in words."""
        self._over = threading.Event()
        self._missing = 0
        self._revived: deque[float] = deque(maxlen=MOST_REVIVALS)
        self._away = False
        self._thread = threading.Thread(target=self._poll, name="prefect-watch", daemon=True)
        self._thread.start()

    @contextmanager
    def obeyed(self) -> Iterator[None]:
        """Around all that a flow does: when the run is to end, its end is told here and the process leaves.

        Whatever the stopped stage raised is of no interest then. Raises Pause or Abort for the engine. A flow that
        has ended by itself first waits until the server answers, so that its last state is not lost.
        """
        try:
            yield
        except Pause:  # the engine heard of it first, at the end of a task
            self.why = self.why or "PAUSED"
        except Exception as error:
            if not self.why:
                self._await_server()
                raise
            log.info("stopped: %s", error)
        finally:
            self._over.set()
        if self.why:
            self._leave()
        self._await_server()

    def _poll(self) -> None:
        while not self.why and not self._over.wait(POLL_SECONDS):
            try:  # a new client each time: one that has connected before tries for 70 s
                with get_client(sync_client=True) as client:
                    self._look(client)
                if self._away:
                    log.warning("Prefect's server answers again")
                self._away = False
            except AWAY as error:  # a server that is away never stops a training
                if not self._away:
                    log.warning("Prefect's server does not answer; the run goes on (%r)", error)
                self._away = True
        if self.why:
            log.warning("the flow run is %s in Prefect: it stops behind a checkpoint", self.why.lower())
            self._stop.set()

    def _look(self, client: SyncPrefectClient) -> None:
        try:
            state = client.read_flow_run(self._run).state
        except ObjectNotFound:
            self._missing += 1
            if self._missing == 2:
                self.why = DELETED
            return
        self._missing = 0
        kind = state.type.value if state else ""
        if kind in STOPS:
            self.why = kind
        elif kind == "CRASHED":
            self._revive(client)

    def _revive(self, client: SyncPrefectClient) -> None:
        now = time.monotonic()
        if len(self._revived) == MOST_REVIVALS and now - self._revived[0] < REVIVAL_SECONDS:
            self.why = "CRASHED"
            return
        self._revived.append(now)
        log.warning("Prefect calls this run Crashed, and it lives: it is set to Running again")
        message = "Called Crashed after an outage or a sleep; the process lives."
        client.set_flow_run_state(self._run, Running(message=message), force=True)

    def _leave(self) -> None:
        if self.why == DELETED:
            raise Abort("the run was deleted")
        state = self._patiently(self._tell_end)
        if state is None:
            raise Abort("the run was deleted")
        if self.why in ("PAUSED", "SCHEDULED", "PENDING"):
            raise Pause(state=state)
        raise Abort(f"the run is {self.why.lower()}")

    def _tell_end(self, client: SyncPrefectClient) -> State | None:
        """Set the run's last state, unless somebody has changed it while the stage saved; the state it has then."""
        try:
            state = client.read_flow_run(self._run).state
        except ObjectNotFound:
            return None
        if state and state.is_paused():
            told = client.set_flow_run_state(self._run, Suspended(message=self.place or None), force=True)
            return told.state or state
        if state and state.is_cancelling():
            client.set_flow_run_state(self._run, Cancelled(message=self.place or None))
        return state

    def _await_server(self) -> None:
        self._patiently(lambda client: client.hello())

    def _patiently(self, call):
        """The call's answer, for as long as the server takes to be back; a signal ends the waiting."""
        said = False
        while True:
            try:
                with get_client(sync_client=True) as client:
                    return call(client)
            except AWAY as error:
                if not said:
                    log.warning("waiting for Prefect's server, to tell it how the run ended (%r)", error)
                said = True
                time.sleep(POLL_SECONDS)
