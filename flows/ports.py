"""Ports of the servers: the default one, or the next free one, remembered in the state folder.

Two clones on one machine must live side by side, so a taken default is no error: the next free
port is chosen and kept, so that addresses do not move between restarts. A port that the user asked
for (STEEL_PREFECT_PORT, STEEL_MLFLOW_PORT) and that is taken is an error, never replaced silently.
"""

from __future__ import annotations

import errno
import json
import os
import socket
from collections.abc import Collection, Mapping
from pathlib import Path

from tasks.settings.files import write_json

HOST = "127.0.0.1"
DEFAULTS = {"prefect": 4200, "mlflow": 5000}
LISTEN_FD = "STEEL_LISTEN_FD"
"""Tells a server the number of the socket that it inherits."""
BACKLOG = 2048
"""As uvicorn has it."""
_TRIES = 200


class PortError(RuntimeError):
    """A port cannot be had; the message is one line for the user."""


def is_free(port: int) -> bool:
    """True if nothing listens there.

    SO_REUSEADDR as the servers set it: connections of a stopped server in TIME_WAIT do not count.
    """
    with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((HOST, port))
        except OSError:
            return False
        return True


def asked(name: str, environ: Mapping[str, str] = os.environ) -> int | None:
    """The port the user asked for through the environment, if any."""
    key = f"STEEL_{name.upper()}_PORT"
    text = environ.get(key, "").strip()
    if not text:
        return None
    if not text.isdigit() or not 1 <= int(text) <= 65535:
        raise PortError(f"{key}={text} is not a port (1 to 65535)")
    return int(text)


def choose(name: str, remembered: int | None, avoid: Collection[int], environ: Mapping[str, str]) -> int:
    """The port for a server that is not running: asked for, else remembered, else the next free one."""
    choice = asked(name, environ)
    if choice is not None:
        if choice in avoid or not is_free(choice):
            raise PortError(
                f"STEEL_{name.upper()}_PORT={choice} is taken by another program; free it or choose another"
            )
        return choice
    if remembered and remembered not in avoid and is_free(remembered):
        return remembered
    first = DEFAULTS[name]
    for port in range(first, first + _TRIES):
        if port not in avoid and is_free(port):
            return port
    raise PortError(f"no free port between {first} and {first + _TRIES - 1} for the {name} server")


def reserve(
    name: str, remembered: int | None, avoid: Collection[int], environ: Mapping[str, str]
) -> socket.socket:
    """A listening socket on the port that `choose` finds, to be handed to the server (flows.listening).

    Chosen and taken at once: two clones that start in the same seconds would else choose the same port, and one of them
    would then speak to the other's server.
    """
    tried = set(avoid)
    while True:
        port = choose(name, remembered, tried, environ)
        try:
            return socket.create_server((HOST, port), backlog=BACKLOG)
        except OSError as error:
            if error.errno != errno.EADDRINUSE:
                raise
            tried.add(port)  # taken since it was chosen


def load(path: Path) -> dict[str, int]:
    """Remembered ports; a missing or unreadable file remembers nothing."""
    try:
        saved = json.loads(path.read_text("utf-8"))
    except (OSError, ValueError):
        return {}
    return {
        name: saved[name] for name in DEFAULTS if isinstance(saved, dict) and isinstance(saved.get(name), int)
    }


def save(path: Path, ports: Mapping[str, int]) -> None:
    write_json(path, dict(ports))
