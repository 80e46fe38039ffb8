"""Loopback is reached directly, whatever proxy the shell has set.

Servers, worker, flow runs and their clients speak to each other on this machine; a proxy of the environment
cannot reach them, or answers 502 for them. The clients (httpx, requests, urllib, websockets) read the same
variables, so the environment is set once where a process starts, and what it starts inherits it. What lies
outside still goes through the proxy.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, MutableMapping
from importlib.util import find_spec
from urllib.parse import urlsplit

HOSTS = ("127.0.0.1", "localhost", "::1")

_PROXIES = ("http_proxy", "https_proxy", "all_proxy")
_EXCEPTIONS = ("no_proxy", "NO_PROXY")


def spare(environ: MutableMapping[str, str] = os.environ) -> list[str]:
    """Let no process with this environment ask a proxy for loopback; returns remarks for the user.

    A proxy that httpx cannot use (SOCKS without the package socksio, an unknown scheme) would end every client
    with an error, also on loopback: its variable is deleted, with a remark unless another one does for it.
    """
    proxies = {name: value for name, value in environ.items() if name.lower() in _PROXIES and value}
    useless = {name: reason for name, value in proxies.items() if (reason := _useless(value))}
    for name in useless:
        del environ[name]
    if proxies:
        spared = with_hosts(environ.get(name, "") for name in _EXCEPTIONS)
        environ.update(dict.fromkeys(_EXCEPTIONS, spared))
    left = {name.lower() for name in proxies.keys() - useless.keys()}
    if "all_proxy" in left or {"http_proxy", "https_proxy"} <= left:
        return []
    return [
        f"{name} is not used: {reason}; downloads go without it" for name, reason in sorted(useless.items())
    ]


def with_hosts(lists: Iterable[str]) -> str:
    """The hosts of comma-separated lists, and those of loopback, as one list; `*` is all hosts already."""
    hosts = [host.strip() for given in lists for host in given.split(",") if host.strip()]
    return "*" if set(hosts) == {"*"} else ",".join(dict.fromkeys([*hosts, *HOSTS]))


def shell_lines() -> str:
    """The same for a shell that sources them, before or after it sets a proxy; twice changes nothing."""
    lines = []
    for name, given in (("no_proxy", "${no_proxy:-${NO_PROXY-}}"), ("NO_PROXY", "${NO_PROXY:-${no_proxy-}}")):
        lines += [
            f'case ",{given}," in',
            f'  *,{HOSTS[0]},*|",*,") export {name}="{given}" ;;',
            f'  *) export {name}="{given}"; export {name}="${{{name}:+${name},}}{",".join(HOSTS)}" ;;',
            "esac",
        ]
    return "\n".join(lines) + "\n"


def _useless(proxy: str) -> str:
    """Why httpx cannot use a proxy, or ""; the address may hold a password, so it is not told."""
    try:
        parts = urlsplit(proxy if "://" in proxy else f"http://{proxy}")
        host, _ = parts.hostname, parts.port
    except ValueError:
        return "it is no address"
    if parts.scheme in ("socks5", "socks5h"):
        return "" if find_spec("socksio") else "SOCKS needs the package socksio"
    if parts.scheme not in ("http", "https"):
        return f"the scheme {parts.scheme}:// is unknown"
    return "" if host else "it names no host"
