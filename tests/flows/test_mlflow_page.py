"""flows.mlflow_page: the page brings its first choices along, and everything else passes as it is."""

from __future__ import annotations

import asyncio

import httpx
import pytest
from starlette.requests import Request
from starlette.responses import HTMLResponse, PlainTextResponse, StreamingResponse

from flows.mlflow_page import FIRST, FirstView

PAGE = "<!doctype html><html><head><title>x</title></head><body>größe</body></html>"


def ask(path: str, app, **more) -> httpx.Response:
    async def answer() -> httpx.Response:
        transport = httpx.ASGITransport(FirstView(app))
        async with httpx.AsyncClient(transport=transport, base_url="http://127.0.0.1") as client:
            return await client.get(path, **more)

    return asyncio.run(answer())


async def whole(scope, receive, send):
    request = Request(scope, receive)
    assert scope["path"] != "/" or "if-none-match" not in request.headers
    await HTMLResponse(PAGE, headers={"ETag": '"1"', "X-Frame-Options": "SAMEORIGIN"})(scope, receive, send)


async def in_pieces(scope, receive, send):
    pieces = iter([PAGE[:9].encode(), PAGE[9:].encode()])
    await StreamingResponse(pieces, media_type="text/html")(scope, receive, send)


@pytest.mark.parametrize("app", [whole, in_pieces])
def test_the_choices_stand_before_all_other_scripts(app):
    answer = ask("/", app, headers={"If-None-Match": '"1"'})
    assert answer.status_code == 200
    assert answer.text.startswith("<!doctype html><html><head><script>")
    assert all(key in answer.text for key in FIRST)
    assert answer.text.endswith(PAGE.partition("<head>")[2])
    assert int(answer.headers["content-length"]) == len(answer.content)
    assert "etag" not in answer.headers, "it would be that of MLflow's own page"


def test_what_else_is_asked_for_passes_unchanged():
    async def other(scope, receive, send):
        await PlainTextResponse("<head>", headers={"ETag": '"2"'})(scope, receive, send)

    answer = ask("/static-files/a.js", other)
    assert (answer.text, answer.headers["etag"]) == ("<head>", '"2"')


def test_an_error_of_the_page_stays_one():
    async def broken(scope, receive, send):
        await PlainTextResponse("no", 500)(scope, receive, send)

    answer = ask("/", broken)
    assert (answer.status_code, answer.text) == (500, "no")
