"""flows.gate over an application that answers everything: what passes, and what is answered before it."""

from __future__ import annotations

import asyncio
import json

import httpx
import pytest
from starlette.requests import Request
from starlette.responses import JSONResponse

from flows.gate import Gate

HOST = "127.0.0.1:5711"
AUTH = ("steel", "word")


async def behind(scope, receive, send):
    """Says what reached it."""
    body = await Request(scope, receive).body()
    await JSONResponse({"passed": scope["path"], "body": body.decode()})(scope, receive, send)


def ask(path: str, method: str = "GET", auth: tuple[str, str] | None = AUTH, **more) -> httpx.Response:
    async def answer() -> httpx.Response:
        transport = httpx.ASGITransport(Gate(behind, [HOST, "localhost:5711"], "steel:word"))
        async with httpx.AsyncClient(transport=transport, base_url=f"http://{HOST}") as client:
            return await client.request(method, path, auth=auth, **more)

    return asyncio.run(answer())


@pytest.mark.parametrize(
    "path",
    [
        "/",
        "/static-files/static/js/main.js",
        "/get-artifact?path=a&run_id=b",
        "/graphql",
        "/api/2.0/mlflow/runs/log-batch",
        "/api/2.0/mlflow/experiments/search",
        "/ajax-api/2.0/mlflow/runs/search",
        "/ajax-api/3.0/mlflow/logged-models/search",
        "/ajax-api/2.0/mlflow/metrics/get-history-bulk-interval",
        "/ajax-api/3.0/mlflow/server-info",
        "/api/2.0/mlflow/registered-models/alias",
        "/api/2.0/mlflow-artifacts/artifacts/1/a/report.html",
    ],
)
def test_what_a_tracking_server_is_asked_for_passes(path):
    assert ask(path, "POST").json()["passed"] == path.partition("?")[0]


@pytest.mark.parametrize(
    "path",
    [
        "/ajax-api/3.0/mlflow/assistant/message",
        "/ajax-api/3.0/mlflow/assistant/config",
        "/ajax-api/3.0/mlflow/%61ssistant/message",
        "/ajax-api/3.0//mlflow/assistant/message",
        "/ajax-api/3.0/mlflow/runs/../assistant/message",
        "/ajax-api/3.0/mlflow/runs/%2e%2e/assistant/message",
        "/ajax-api/3.0/jobs",
        "/ajax-api/3.0/jobs/search",
        "/gateway/chat/mlflow/invocations",
        "/gateway",
        "/v1/traces",
        "/api/2.0/mlflow/gateway/endpoints/list",
        "/ajax-api/2.0/mlflow/gateway-proxy",
        "/ajax-api/2.0/mlflow/upload-artifact",
        "/ajax-api/2.0/mlflow/runs/create-promptlab-run",
        "/api/2.0/mlflow/webhooks",
        "/api/3.0/mlflow/mcp-servers",
        "/api/3.0/mlflow/scorers/register",
        "/ajax-api/3.0/mlflow/demo/generate",
        "/ajax-api/3.0/mlflow/genai/evaluate/invoke",
        "/a-door-of-the-next-version",
        "/docs",
        "/static-files\n",
    ],
)
def test_everything_else_is_not_there(path):
    answer = ask(path.replace("\n", "%0A"), "POST")
    assert answer.status_code == 404
    assert "passed" not in answer.text


def test_a_page_that_asks_for_a_gateway_hears_of_none_from_the_gate_itself():
    answer = ask("/ajax-api/2.0/mlflow/gateway-proxy?gateway_path=api%2F2.0%2Fendpoints%2F")
    assert answer.json() == {"endpoints": []}
    assert ask("/ajax-api/2.0/mlflow/gateway-proxy", auth=None).status_code == 401


@pytest.mark.parametrize(
    "auth",
    [
        None,
        ("steel", ""),
        ("steel", "wor"),
        ("steel", "word "),
        ("", "word"),
        ("root", "word"),
        ("steel", "wörd"),
    ],
)
@pytest.mark.parametrize(
    "path", ["/", "/api/2.0/mlflow/runs/create", "/ajax-api/3.0/mlflow/assistant/message", "/version"]
)
def test_without_the_password_nothing_but_health(path, auth):
    answer = ask(path, "POST", auth)
    assert answer.status_code == 401
    assert answer.headers["www-authenticate"].startswith("Basic")  # or a browser would not ask
    assert ask("/health", auth=auth).status_code == 200


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ({"host": "localhost:5711"}, 200),
        ({"origin": f"http://{HOST}"}, 200),
        ({"origin": "http://localhost:5711"}, 200),
        ({"host": "evil.example:5711"}, 403),  # a name that resolves to 127.0.0.1
        ({"host": "127.0.0.1"}, 403),
        ({"host": "127.0.0.1:4200"}, 403),
        ({"host": ""}, 403),
        ({"origin": "http://localhost:8888"}, 403),  # a notebook on the same machine
        ({"origin": "https://127.0.0.1:5711"}, 403),
        ({"origin": "null"}, 403),
    ],
)
def test_only_its_own_host_and_origin(headers, status):
    assert ask("/api/2.0/mlflow/runs/create", "POST", headers=headers).status_code == status


@pytest.mark.parametrize("name", ["host", "origin", "authorization"])
def test_a_doubled_header_is_refused(name):
    value = {"host": HOST, "origin": f"http://{HOST}", "authorization": "Basic c3RlZWw6d29yZA=="}[name]
    doubled = [("host", HOST)] * (name != "host") + [(name, value), (name, "other")]
    assert ask("/", auth=None if name == "authorization" else AUTH, headers=doubled).status_code == 400


@pytest.mark.parametrize(
    "path", ["/api/2.0/mlflow/experiments/create", "/ajax-api/2.0/mlflow/experiments/create"]
)
@pytest.mark.parametrize(
    ("body", "passes"),
    [
        (json.dumps({"name": "a"}), True),
        (json.dumps({"name": "a", "tags": [{"key": "k", "value": "v"}]}), True),
        (json.dumps({"name": "a", "artifact_location": "/home"}), False),
        (json.dumps({"name": "a", "artifactLocation": "/home"}), False),
        (json.dumps({"name": "a", "artifact_\u006cocation": None}), False),
        (json.dumps(["name"]), False),
        ("{", False),
        ("", False),
        (json.dumps({"name": "a" * 2**20}), False),
    ],
)
def test_an_experiment_does_not_choose_its_folder(path, body, passes):
    answer = ask(path, "POST", content=body)
    assert answer.status_code == (200 if passes else 400)
    if passes:
        assert answer.json()["body"] == body


@pytest.mark.parametrize("auth", ["", "steel", "steel:", ":word"])
def test_a_gate_without_a_password_is_not_made(auth):
    with pytest.raises(ValueError, match="password"):
        Gate(behind, [HOST], auth)
