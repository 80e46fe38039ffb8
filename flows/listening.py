"""The socket of a server, open before anything else: `make up` opened it and hands it down, or it is opened here.

So a port is never free between its choice and its use, and one that is taken ends the start at once, in one line.
"""

from __future__ import annotations

import os
import socket
from functools import partialmethod

import uvicorn

from flows.ports import BACKLOG, LISTEN_FD, PortError


def serve_on(host: str, port: int) -> None:
    """`uvicorn.run` in this process serves on the inherited socket, or else on one that is opened now. Raises PortError."""
    if number := os.environ.pop(LISTEN_FD, ""):
        listener = socket.socket(fileno=int(number))
        listener.set_inheritable(False)  # what the server starts would keep the port
    else:
        family = socket.AF_INET6 if ":" in host else socket.AF_INET
        try:
            listener = socket.create_server((host, port), family=family, backlog=BACKLOG)
        except OSError as error:
            raise PortError(f"port {port} of {host} cannot be opened: {error.strerror}") from error
    uvicorn.Server.run = partialmethod(uvicorn.Server.run, sockets=[listener])  # type: ignore[assignment,method-assign]
