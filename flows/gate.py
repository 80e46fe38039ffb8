"""What stands before MLflow's server: one password, its own host and origin, and the routes of a tracking server.

MLflow offers more than Steel needs. Its Assistant runs shell commands for any caller on this machine
and cannot be switched off; jobs, gateways, webhooks and MCP servers are further doors. So the list
names what is let through: a route that a later MLflow adds stays closed. Everything but `/health`
needs the password (HTTP Basic: clients take it from MLFLOW_TRACKING_USERNAME and _PASSWORD, a
browser asks once).
"""

from __future__ import annotations

import base64
import hmac
import json
import re
from collections.abc import Collection
from typing import Any

from starlette.datastructures import Headers
from starlette.responses import JSONResponse, Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

_API = r"/(?:ajax-)?api/\d\.0"
_LET_THROUGH = re.compile(
    r"/|/(?:get-artifact|model-versions/get-artifact|graphql|version|static-files/.*|favicon\.ico)"
    rf"|{_API}/mlflow-artifacts/.*"
    rf"|{_API}/?mlflow/(?:artifacts|datasets|experiments|logged-models|metrics|model-versions|registered-models"
    r"|runs(?!/create-promptlab-run)|server-info|traces)(?:/.*)?"
)
_GATEWAY = re.compile(rf"{_API}/mlflow/gateway-proxy")
"""The page of runs asks for a gateway's endpoints and shows an error if that is refused. MLflow without one says: none."""
_CREATE = re.compile(rf"{_API}/?mlflow/experiments/create")
_LARGEST = 2**20
"""Bytes of the one body that is looked into."""


class Gate:
    """An ASGI application that hands on what may pass and answers the rest itself.

    `hosts` are `name:port` as a browser names this server, `auth` is `user:password`.
    Answers 400 (a doubled header, an experiment that brings its own folder), 401 (no password),
    403 (another host or origin) and 404 (a route that is not offered).
    """

    def __init__(self, app: ASGIApp, hosts: Collection[str], auth: str):
        user, _, password = auth.partition(":")
        if not user or not password:
            raise ValueError("the gate needs `user:password`")
        self._app = app
        self._hosts = frozenset(hosts)
        self._origins = frozenset(f"http://{host}" for host in hosts)
        self._authorization = b"Basic " + base64.b64encode(auth.encode())

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan":
            return await self._app(scope, receive, send)
        if scope["type"] != "http":  # MLflow has no websockets
            return await send({"type": "websocket.close", "code": 1008})
        answer = self._own(scope["method"], scope["path"], Headers(scope=scope))
        if answer is None and _CREATE.fullmatch(scope["path"]):
            body = await _body(receive)
            answer = None if _is_plain(body) else _no(400, "an experiment keeps its artifacts at the server")
            receive = _again(body, receive)
        await (answer or self._app)(scope, receive, send)

    def _own(self, method: str, path: str, headers: Headers) -> Response | None:
        """What the gate answers itself: nearly always a refusal."""
        for name in ("host", "origin", "authorization"):
            if len(headers.getlist(name)) > 1:
                return _no(400, f"two headers {name}")
        if headers.get("host", "") not in self._hosts:
            return _no(403, "this server has another host name or port")
        if headers.get("origin", "") not in {*self._origins, ""}:
            return _no(403, "a page of another origin")
        if path == "/health":
            return None
        if not hmac.compare_digest(headers.get("authorization", "").encode("latin-1"), self._authorization):
            return _no(401, "a password is needed", {"WWW-Authenticate": 'Basic realm="MLflow of Steel"'})
        if method == "GET" and _GATEWAY.fullmatch(path):
            return JSONResponse({"endpoints": []})
        if not _LET_THROUGH.fullmatch(path) or "//" in path or ".." in path.split("/"):
            return _no(404, "not offered here")
        return None


def _no(status: int, message: str, headers: dict[str, str] | None = None) -> Response:
    """In the form that MLflow's clients read."""
    code = {400: "BAD_REQUEST", 404: "ENDPOINT_NOT_FOUND"}.get(status, "PERMISSION_DENIED")
    return JSONResponse({"error_code": code, "message": message}, status, headers)


async def _body(receive: Receive) -> bytes:
    """The body of a request; what is longer than _LARGEST is cut behind that many bytes, and is no JSON then."""
    body, more = b"", True
    while more and len(body) <= _LARGEST:
        message = await receive()
        body += message.get("body", b"")
        more = message.get("more_body", False)
    return body


def _is_plain(body: bytes) -> bool:
    """True if an experiment is created by name and tags alone.

    A location of the caller's choice would let get-artifact read any folder; its name has two spellings.
    """
    try:
        fields: Any = json.loads(body) if len(body) <= _LARGEST else None
    except ValueError:
        return False
    return isinstance(fields, dict) and fields.keys() <= {"name", "tags"}


def _again(body: bytes, receive: Receive) -> Receive:
    """A `receive` that hands out the body that was read already, then goes on."""
    rest: list[Message] = [{"type": "http.request", "body": body, "more_body": False}]

    async def replay() -> Message:
        return rest.pop() if rest else await receive()

    return replay
