"""Options of every command that starts a server; without torch, so that a command line is read at once."""

from __future__ import annotations

import argparse
from pathlib import Path

PORT = 8000
KEY = "STEEL_API_KEY"


def add_options(parser: argparse.ArgumentParser) -> None:
    """Add them."""
    add = parser.add_argument
    add("--host", default="127.0.0.1", help="address to listen at; another than loopback needs a key")
    add("--port", type=int, default=PORT, help=f"default: {PORT}; 0: any that is free")
    add("--device", default="auto", choices=["auto", "cpu", "cuda"])
    add("--slots", type=int, default=16, help="answers that are made together")
    add("--queue", type=int, default=256, help="answers that may wait; more get a 429")
    add("--max-new-tokens", type=int, default=4096, help="of one answer, at most")
    add("--threads", type=int, default=0, help="CPU threads of the model; 0: as torch decides")
    add("--key-file", type=Path, help=f"file with the API key (or set {KEY})")
