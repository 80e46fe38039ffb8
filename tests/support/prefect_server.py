"""A Prefect server in memory, as far as flows.reporter, flows.watch and flows.leftovers speak to it."""

from __future__ import annotations

import uuid
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import httpx
from prefect.exceptions import ObjectNotFound, PrefectHTTPStatusError
from prefect.states import State


def refused(code: int) -> PrefectHTTPStatusError:
    """What a client raises for an answer of this status."""
    request = httpx.Request("POST", "http://127.0.0.1/api/artifacts/")
    return PrefectHTTPStatusError(str(code), request=request, response=httpx.Response(code, request=request))


AWAY = {
    "refused": httpx.ConnectError("refused"),
    "slow": httpx.ReadTimeout("slow"),
    "500": refused(500),
    "503": refused(503),
}


class Server:
    """States of flow runs, artifacts, and `error`: what every call raises while it is set."""

    def __init__(self) -> None:
        self.states: dict[str, State] = {}
        self.set: list[State] = []
        self.artifacts: dict[Any, Any] = {}
        self.calls = 0
        self.error: Exception | None = None
        self.refuse: Callable[[Any], Exception | None] = lambda artifact: None

    def client(self, **options: Any) -> Server:
        return self

    def __enter__(self) -> Server:
        return self

    def __exit__(self, *error: Any) -> None:
        pass

    def _called(self) -> None:
        self.calls += 1
        if self.error:
            raise self.error

    def hello(self) -> None:
        self._called()

    def read_flow_run(self, run: uuid.UUID) -> SimpleNamespace:
        self._called()
        if str(run) not in self.states:
            raise ObjectNotFound(refused(404))
        return SimpleNamespace(state=self.states[str(run)])

    def set_flow_run_state(self, run: uuid.UUID, state: State, force: bool = False) -> SimpleNamespace:
        self._called()
        if self.states[str(run)].is_cancelling() and not state.is_cancelled():
            raise AssertionError("from Cancelling the server takes Cancelled alone")
        self.states[str(run)] = state
        self.set.append(state)
        return SimpleNamespace(state=state)

    def create_artifact(self, artifact: Any) -> SimpleNamespace:
        self._called()
        if error := self.refuse(artifact):
            raise error
        made = uuid.uuid4()
        self.artifacts[made] = artifact
        return SimpleNamespace(id=made)

    def update_artifact(self, made: uuid.UUID, change: Any) -> None:
        self._called()
        if made not in self.artifacts:
            raise ObjectNotFound(refused(404))
        self.artifacts[made] = change
