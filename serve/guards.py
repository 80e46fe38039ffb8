"""Who may ask: the host that is named, the key, the size of a body. Plain ASGI, so that streams pass untouched."""

from __future__ import annotations

import hmac
from typing import Any

from starlette.responses import JSONResponse

from serve.errors import ApiError

OPEN = ("/", "/page/", "/health")
"""Places that need no key: they show nothing of a model."""


class Key:
    """Asks for `Authorization: Bearer KEY` everywhere but at the open places."""

    def __init__(self, app: Any, key: str):
        self.app, self.key = app, key.encode()

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] == "http" and not is_open(scope["path"]):
            given = dict(scope["headers"]).get(b"authorization", b"")
            if not hmac.compare_digest(given, b"Bearer " + self.key):
                error = ApiError("a valid API key is needed", status=401, code="invalid_api_key")
                return await JSONResponse(error.body(), 401)(scope, receive, send)
        await self.app(scope, receive, send)


class Size:
    """Refuses bodies of more than `limit` bytes, whatever their header says."""

    def __init__(self, app: Any, limit: int):
        self.app, self.limit = app, limit

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] != "http":
            return await self.app(scope, receive, send)
        said = dict(scope["headers"]).get(b"content-length", b"0")
        if said.isdigit() and int(said) > self.limit:
            return await self._refuse(scope, receive, send)
        size = 0

        async def counted() -> Any:
            nonlocal size
            message = await receive()
            size += len(message.get("body", b""))
            if size > self.limit:
                raise ApiError(f"the body has more than {self.limit:,} bytes", status=413)
            return message

        await self.app(scope, counted, send)

    async def _refuse(self, scope: Any, receive: Any, send: Any) -> None:
        error = ApiError(f"the body has more than {self.limit:,} bytes", status=413)
        await JSONResponse(error.body(), 413)(scope, receive, send)


def is_open(path: str) -> bool:
    return any(
        path == place or (place.endswith("/") and place != "/" and path.startswith(place)) for place in OPEN
    )
