"""Health checks and the environment of what Steel starts, in a shell with a proxy."""

import pytest

from flows import cli, servers
from flows.settings import Addresses, State, clean_environment, write_client_files
from tests.support.proxy import answering_server, refusing_proxy, set_shell


@pytest.mark.parametrize(
    "variables",
    [
        {"http_proxy": "{}"},
        {"HTTP_PROXY": "{}", "NO_PROXY": "corp.example"},
        {"ALL_PROXY": "socks5://127.0.0.1:9", "HTTP_PROXY": "{}"},
        {"http_proxy": "http://127.0.0.1:9"},
    ],
)
def test_a_healthy_server_answers_whatever_proxy_the_shell_has(variables, monkeypatch):
    with refusing_proxy() as (proxy, asked), answering_server() as (server, _):
        set_shell(monkeypatch, {name: value.format(proxy) for name, value in variables.items()})
        port = int(server.rpartition(":")[2])
        assert servers._answers("prefect", Addresses(port, port))
        assert servers._answers("mlflow", Addresses(port, port))
        assert asked == []


def test_what_steel_starts_inherits_the_exception_and_shells_get_it(tmp_path, monkeypatch):
    set_shell(monkeypatch, {"https_proxy": "http://p.example:1", "all_proxy": "socks5://p.example:2"})
    state, at = State(tmp_path / ".steel", tmp_path), Addresses(4711, 5711)
    environment = clean_environment(state, at, "steel:word")
    assert environment["NO_PROXY"] == environment["no_proxy"] == "127.0.0.1,localhost,::1"
    assert environment["https_proxy"] == "http://p.example:1"
    assert "all_proxy" not in environment
    write_client_files(state, at, "steel:word")
    assert "no_proxy" in state.env.read_text("utf-8")


def test_the_command_line_spares_loopback_and_says_which_proxy_it_cannot_use(tmp_path, monkeypatch, capsys):
    set_shell(monkeypatch, {"ALL_PROXY": "socks5://me:secret@127.0.0.1:9"})
    monkeypatch.setenv("STEEL_STATE", str(tmp_path / "state"))
    assert cli.main(["status"]) == 1
    told = capsys.readouterr().err
    assert "ALL_PROXY is not used" in told
    assert "secret" not in told
