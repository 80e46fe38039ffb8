"""What a browser sees first of MLflow: the trainings.

MLflow's pages open an experiment as one of GenAI traces, which are none here, whatever its tag says, until somebody chooses
"Model training"; and beside it the panel of an Assistant that the gate does not offer. They keep both choices in the browser's
local storage. So the page brings them along, for browsers that have none yet.
"""

from __future__ import annotations

import json

from starlette.types import ASGIApp, Message, Receive, Scope, Send

FIRST = {
    "mlflow.workflowType_v1": "machine_learning",
    "mlflow.assistant.panelOpen_v1": False,
    "mlflow.assistant.fab.autoOpenedOnFirstLoad_v1": True,
}
"""Key of the local storage -> its first value. Names of MLflow's own (3.17): tests/e2e/test_pages.py looks at the pages."""
_SCRIPT = (
    "<script>for (const [key, value] of Object.entries(%s))"
    " if (localStorage.getItem(key) === null) localStorage.setItem(key, JSON.stringify(value))</script>"
)


class FirstView:
    """An ASGI application that puts a script before those of the page `/`, and hands on all else as it is."""

    def __init__(self, app: ASGIApp):
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or scope["path"] != "/":
            return await self._app(scope, receive, send)
        # a copy from before would be said to be the newest
        kept = [pair for pair in scope["headers"] if not pair[0].startswith(b"if-")]
        start: Message = {}
        body = b""

        async def changed(message: Message) -> None:
            nonlocal start, body
            if message["type"] == "http.response.start":
                start = message
                return
            body += message.get("body", b"")
            if message.get("more_body", False):
                return
            page = body.replace(b"<head>", b"<head>" + (_SCRIPT % json.dumps(FIRST)).encode(), 1)
            names = (b"content-length", b"etag", b"last-modified")
            headers = [pair for pair in start["headers"] if pair[0].lower() not in names]
            length = (b"content-length", str(len(page)).encode())
            await send({**start, "headers": [*headers, length]})
            await send({"type": "http.response.body", "body": page})

        await self._app({**scope, "headers": kept}, receive, changed)
