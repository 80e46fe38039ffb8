"""A server that listens on a socket which `make up` opened for it, so that its port was never free in between."""

from __future__ import annotations

import os
import socket
from functools import partialmethod

import uvicorn

from flows.ports import LISTEN_FD


def on_the_inherited_socket() -> None:
    """`uvicorn.run` in this process serves on the inherited socket, if there is one. Else it opens its port itself."""
    if number := os.environ.pop(LISTEN_FD, ""):
        listener = socket.socket(fileno=int(number))
        listener.set_inheritable(False)  # what the server starts would keep the port
        uvicorn.Server.run = partialmethod(uvicorn.Server.run, sockets=[listener])  # type: ignore[assignment,method-assign]
