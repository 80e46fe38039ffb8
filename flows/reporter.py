"""What a flow run shows in Prefect, sent from a thread of its own.

The server may be away, restarted or slow: a call to it from the loop that looks after a training would stop
that loop for more than a minute. So the flow only leaves what it has to say here, and goes on. Of progress the
newest counts; tables and texts wait in a queue. Each round has a client of its own, because one that has
connected before tries for 70 s.
"""

from __future__ import annotations

import json
import logging
import threading
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any
from uuid import UUID

import httpx
from prefect.client.orchestration import SyncPrefectClient, get_client
from prefect.client.schemas.actions import ArtifactCreate, ArtifactUpdate
from prefect.exceptions import ObjectNotFound, PrefectException, PrefectHTTPStatusError
from prefect.runtime import task_run

from tasks.settings.errors import one_line

AWAY = (PrefectException, httpx.HTTPError)
"""What a server that is away, full or being restarted makes of a call."""
ROUND_SECONDS = 1.0
AWAY_SECONDS = 15.0
"""Between two tries to reach a server that does not answer."""
MOST_WAITING = 500
"""Tables and texts that are kept for a server that is away; the oldest go first."""

log = logging.getLogger(__name__)


@dataclass
class Bar:
    """A progress bar in the UI."""

    name: str
    task: str | None
    percent: float = 0.0
    text: str = ""
    artifact: UUID | None = None
    changed: bool = False
    over: bool = False
    """Nothing more comes. A node at 100 % may have more to say: its training has ended, and the model is asked."""


@dataclass
class Reporter:
    """The thread and what waits for it. `close` says the last of it."""

    run: str
    _waiting: deque[ArtifactCreate] = field(default_factory=lambda: deque(maxlen=MOST_WAITING))
    _bars: list[Bar] = field(default_factory=list)
    _end: threading.Event = field(default_factory=threading.Event)
    _lock: threading.Lock = field(default_factory=threading.Lock)
    _away: bool = False

    def __post_init__(self) -> None:
        self._thread = threading.Thread(target=self._work, name="prefect-reporter", daemon=True)
        self._thread.start()

    def markdown(self, text: str, *, key: str, description: str) -> None:
        """A text on the page of the task that calls this."""
        self._leave("markdown", text, key, description)

    def table(self, rows: Sequence[Mapping[str, Any]], *, key: str, description: str) -> None:
        """A table on the page of the task that calls this."""
        # JSON knows no NaN, and the page shows nothing of a table with one
        plain = [{k: None if v != v else v for k, v in row.items()} for row in rows]
        self._leave("table", json.dumps(plain, ensure_ascii=False), key, description)

    def bar(self, name: str) -> Bar:
        """A progress bar of the task that calls this; told by `progress`."""
        bar = Bar(name, _task())
        with self._lock:
            self._bars.append(bar)
        return bar

    def progress(self, bar: Bar, percent: float, text: str) -> None:
        """The bar's newest state; what was not sent yet is forgotten."""
        bar.percent, bar.text, bar.changed = percent, text, True

    def finish(self, bar: Bar, percent: float, text: str) -> None:
        """The bar's last state."""
        with self._lock:  # the thread forgets bars that are over once they are sent
            self.progress(bar, percent, text)
            bar.over = True

    def close(self, patience: float) -> None:
        """Send what waits, for at most `patience` seconds, and end."""
        self._end.set()
        self._thread.join(patience)
        if left := len(self._waiting) + sum(bar.changed for bar in self._bars):
            log.warning("Prefect is away: %d table(s), texts and progress bars were not shown", left)

    def _leave(self, kind: str, data: str, key: str, description: str) -> None:
        item = ArtifactCreate(
            key=key,
            type=kind,
            description=description,
            data=data,
            flow_run_id=UUID(self.run),
            task_run_id=UUID(task) if (task := _task()) else None,
        )
        with self._lock:
            self._waiting.append(item)

    def _work(self) -> None:
        while True:
            last = self._end.is_set()
            if self._waiting or any(bar.changed for bar in self._bars):
                self._round()
            if last:
                return
            self._end.wait(AWAY_SECONDS if self._away else ROUND_SECONDS)

    def _round(self) -> None:
        try:
            with get_client(sync_client=True, httpx_settings={"timeout": 20.0}) as client:
                self._send(client)
            if self._away:
                log.warning("Prefect's server is back")
            self._away = False
        except AWAY as error:
            if not self._away:
                log.warning("Prefect's server is away; the run goes on and reports later (%r)", error)
            self._away = True

    def _send(self, client: SyncPrefectClient) -> None:
        while waiting := next(iter(self._waiting), None):
            with _unless_refused(f"{waiting.type} {waiting.key}"):
                client.create_artifact(waiting)
            with self._lock:
                if self._waiting and self._waiting[0] is waiting:
                    self._waiting.popleft()
        for bar in [bar for bar in self._bars if bar.changed]:
            bar.changed = False
            try:
                with _unless_refused(f"the progress of {bar.name}"):
                    self._send_bar(client, bar)
            except AWAY:
                bar.changed = True
                raise
        with self._lock:
            self._bars = [bar for bar in self._bars if bar.changed or not bar.over]

    def _send_bar(self, client: SyncPrefectClient, bar: Bar) -> None:
        description = f"{bar.name}: {bar.text}"
        if bar.artifact is not None:
            client.update_artifact(bar.artifact, ArtifactUpdate(data=bar.percent, description=description))
            return
        task = UUID(bar.task) if bar.task else None
        made = client.create_artifact(
            ArtifactCreate(
                type="progress",
                description=description,
                data=bar.percent,
                flow_run_id=UUID(self.run),
                task_run_id=task,
            )
        )
        bar.artifact = made.id


@contextmanager
def _unless_refused(what: str) -> Iterator[None]:
    """What the server will never take (the run was deleted, say) is not sent again."""
    try:
        yield
    except ObjectNotFound as error:
        log.warning("Prefect does not take %s: %r", what, error)
    except PrefectHTTPStatusError as error:
        code = error.response.status_code
        if code >= 500 or code in (401, 403, 408, 429):
            raise
        log.warning("Prefect does not take %s: %s", what, one_line(error))


def _task() -> str | None:
    return str(task_run.id) if task_run.id else None
