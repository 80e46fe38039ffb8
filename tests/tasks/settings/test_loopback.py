"""A proxy in the shell: no client asks it for loopback, whichever variables are set, and the outside goes through it."""

import os
import subprocess
import urllib.request
from contextlib import closing

import httpx
import pytest
import requests

from tasks.settings import loopback
from tests.support.proxy import answering_server, refusing_proxy, set_shell

SHELLS = {
    "HTTP_PROXY": {"HTTP_PROXY": "{}"},
    "http_proxy": {"http_proxy": "{}"},
    "HTTPS_PROXY": {"HTTPS_PROXY": "{}", "HTTP_PROXY": "{}"},
    "ALL_PROXY": {"ALL_PROXY": "{}"},
    "all four": {"http_proxy": "{}", "https_proxy": "{}", "HTTP_PROXY": "{}", "HTTPS_PROXY": "{}"},
    "without a scheme": {"http_proxy": "{bare}"},
    "another NO_PROXY": {"http_proxy": "{}", "NO_PROXY": "corp.example"},
    "another no_proxy": {"HTTP_PROXY": "{}", "no_proxy": "corp.example, .intern.example,"},
    "both, unlike": {"HTTP_PROXY": "{}", "no_proxy": "a.example", "NO_PROXY": "127.0.0.1,b.example,,"},
    "an empty no_proxy": {"http_proxy": "{}", "no_proxy": "", "NO_PROXY": "corp.example"},
    "SOCKS beside": {"http_proxy": "{}", "https_proxy": "{}", "all_proxy": "socks5://{host}"},
    "SOCKS alone": {"ALL_PROXY": "socks5h://{host}"},
    "SOCKS for http": {"http_proxy": "socks5://{host}", "HTTP_PROXY": "{}"},
    "an unknown scheme": {"all_proxy": "socks://{host}/"},
    "no address": {"http_proxy": "http://127.0.0.1:port"},
    "all spared": {"http_proxy": "{}", "no_proxy": "*"},
}


def by_httpx(url):
    return httpx.get(url).status_code


def by_httpx2(url):
    import httpx2

    return httpx2.get(url).status_code


def by_requests(url):
    return requests.get(url, timeout=5).status_code


def by_urllib(url):
    with urllib.request.urlopen(url, timeout=5) as reply:
        return reply.status


def by_mlflow(url):
    from mlflow import MlflowClient

    return 200 if MlflowClient(url).get_experiment_by_name("steel").experiment_id == "1" else 0


def by_prefect(url):
    from prefect.client.orchestration import SyncPrefectClient

    with SyncPrefectClient(url) as client:
        error = client.api_healthcheck()
    if error:
        raise error
    return 200


CLIENTS = [by_httpx, by_httpx2, by_requests, by_urllib, by_mlflow, by_prefect]


@pytest.fixture
def shell(request, monkeypatch):
    """The environment of a shell; yields what its proxy was asked."""
    with refusing_proxy() as (address, asked):
        host = address.removeprefix("http://")
        values = {name: v.format(address, bare=host, host=host) for name, v in request.param.items()}
        set_shell(monkeypatch, values)
        yield asked


def test_without_help_the_proxy_is_asked(monkeypatch):
    with refusing_proxy() as (proxy, asked), answering_server() as (server, _):
        set_shell(monkeypatch, {"http_proxy": proxy})
        assert by_httpx(server) == 502
        assert len(asked) == 1


@pytest.mark.parametrize("shell", SHELLS.values(), ids=SHELLS, indirect=True)
def test_no_client_asks_the_proxy_for_loopback(shell, monkeypatch):
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    loopback.spare()
    with answering_server() as (server, asked):
        for client in CLIENTS:
            assert client(server) == 200, client.__name__
        by_urllib(server.replace("127.0.0.1", "localhost"))
        by_httpx(server.replace("127.0.0.1", "localhost"))
        assert len(asked) >= len(CLIENTS)
    assert shell == []


@pytest.mark.parametrize("name", ["HTTP_PROXY", "another NO_PROXY", "SOCKS beside", "both, unlike"])
def test_what_lies_outside_goes_through_the_proxy(name, monkeypatch):
    with refusing_proxy() as (address, asked):
        host = address.removeprefix("http://")
        set_shell(monkeypatch, {k: v.format(address, host=host) for k, v in SHELLS[name].items()})
        loopback.spare()
        assert by_httpx("http://data.example/x") == by_requests("http://data.example/x") == 502
        assert asked == ["GET http://data.example/x"] * 2


@pytest.mark.parametrize("name", ["another no_proxy", "an empty no_proxy", "both, unlike"])
def test_the_exceptions_of_the_shell_stay_and_are_told_once(name):
    environ = {k: v.format("http://p.example:1") for k, v in SHELLS[name].items()}
    given = {host for key in ("no_proxy", "NO_PROXY") for host in environ.get(key, "").split(",")}
    loopback.spare(environ)
    first = dict(environ)
    hosts = environ["no_proxy"].split(",")
    assert environ["NO_PROXY"] == environ["no_proxy"]
    assert sorted(hosts) == sorted({h.strip() for h in given if h.strip()} | set(loopback.HOSTS))
    loopback.spare(environ)
    assert environ == first


@pytest.mark.parametrize(
    ("environ", "remarks"),
    [
        ({}, []),
        ({"http_proxy": "http://p.example:1"}, []),
        ({"http_proxy": "http://p.example:1", "HTTPS_PROXY": "p.example:1", "all_proxy": "socks5://p:2"}, []),
        ({"ALL_PROXY": "socks5://user:secret@p.example:2"}, ["ALL_PROXY is not used: SOCKS needs"]),
        (
            {"http_proxy": "http://p:1", "all_proxy": "socks://p:2"},
            ["all_proxy is not used: the scheme socks://"],
        ),
        ({"https_proxy": "http://p:port"}, ["https_proxy is not used: it is no address"]),
        ({"https_proxy": "http://"}, ["https_proxy is not used: it names no host"]),
        ({"https_proxy": "http://[::1"}, ["https_proxy is not used: it is no address"]),
    ],
)
def test_a_proxy_that_cannot_be_used_is_said_without_its_password(environ, remarks):
    told = loopback.spare(environ)
    assert [line.startswith(start) for line, start in zip(told, remarks, strict=True)] == [True] * len(
        remarks
    )
    assert "secret" not in " ".join(told)
    with closing(httpx.Client()):
        pass


def test_an_environment_without_a_proxy_stays():
    environ = {"PATH": "/bin", "NO_PROXY": "corp.example"}
    assert loopback.spare(environ) == []
    assert environ == {"PATH": "/bin", "NO_PROXY": "corp.example"}


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ({}, ("127.0.0.1,localhost,::1",) * 2),
        ({"NO_PROXY": "a.example"}, ("a.example,127.0.0.1,localhost,::1",) * 2),
        ({"no_proxy": "a.example"}, ("a.example,127.0.0.1,localhost,::1",) * 2),
        ({"NO_PROXY": "*"}, ("*", "*")),
        (
            {"NO_PROXY": "127.0.0.1,b.example", "no_proxy": "c"},
            ("127.0.0.1,b.example", "c,127.0.0.1,localhost,::1"),
        ),
    ],
)
@pytest.mark.parametrize("times", [1, 2])
def test_a_shell_that_sources_the_lines_spares_loopback(given, expected, times, tmp_path):
    (tmp_path / "env").write_text(loopback.shell_lines())
    script = f"set -eu; cd {tmp_path}; " + ". ./env; " * times + 'printf "%s\\n" "$NO_PROXY" "$no_proxy"'
    environ = {"PATH": os.environ["PATH"], **given}
    for shell in ("bash", "sh"):
        done = subprocess.run([shell, "-c", script], env=environ, capture_output=True, text=True, check=True)
        assert tuple(done.stdout.split()) == expected
