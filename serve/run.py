"""Starting a server: which folders it offers, who may reach it, where it listens."""

from __future__ import annotations

import argparse
import os
import socket
from collections.abc import Mapping, Sequence
from pathlib import Path

from serve.engine import Limits
from serve.models import Models, Offer
from serve.options import KEY

LOOPBACK = ("127.0.0.1", "localhost", "::1")


class Refused(RuntimeError):
    """What has to be changed before the server starts: one line."""


def offers(texts: Sequence[str], plain: Sequence[str] = ()) -> dict[str, Offer]:
    """Name -> model. A folder without a name has its own, or that of the folder above an `export`."""
    made: dict[str, Offer] = {}
    for text in texts:
        name, equals, place = text.partition("=")
        folder = Path(place if equals else text)
        if not equals:
            whole = folder.resolve()
            name = whole.parent.name if whole.name == "export" else whole.name
        if not (folder / "config.json").is_file() or not (folder / "tokenizer.json").is_file():
            raise Refused(f"{folder} holds no model: config.json and tokenizer.json are needed")
        if name in made:
            raise Refused(f"two models are named {name!r}: give names, as in a={folder}")
        made[name] = Offer(folder, chat=name not in plain)
    return made


def run(models: Mapping[str, Offer], options: argparse.Namespace) -> None:
    """Load the first model, say the address, and serve until Ctrl-C."""
    import uvicorn

    from serve.app import build

    key = _key(options.key_file)
    if options.host not in LOOPBACK and not key:
        raise Refused(f"--host {options.host} can be reached by others: set {KEY} or --key-file first")
    if min(options.slots, options.max_new_tokens) < 1 or options.queue < 0:
        raise Refused("--slots and --max-new-tokens must be at least 1, --queue at least 0")
    if options.threads:
        import torch

        torch.set_num_threads(options.threads)
    listener = _listen(options.host, options.port)
    limits = Limits(options.slots, options.queue, options.max_new_tokens)
    served = Models(models, limits, options.device)
    try:
        served.get()
    except (ValueError, OSError) as error:
        raise Refused(f"{next(iter(models.values())).folder}: {' '.join(str(error).split())}") from error
    port = listener.getsockname()[1]
    hosts = [*("127.0.0.1", "localhost", "[::1]"), options.host] if options.host in LOOPBACK else ["*"]
    app = build(served, key=key, hosts=hosts)
    shown = f"[{options.host}]" if ":" in options.host else options.host
    for name, offer in models.items():
        print(f"model    {name}, in {offer.folder}" + ("" if offer.chat else " (continues texts)"))
    print(f"API      http://{shown}:{port}/v1" + (" (with the key)" if key else ""))
    print(f"chat     http://{shown}:{port}/", flush=True)
    config = uvicorn.Config(app, log_level="warning", access_log=False, timeout_graceful_shutdown=3)
    try:
        uvicorn.Server(config).run(sockets=[listener])
    finally:
        served.stop()


def _listen(host: str, port: int) -> socket.socket:
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    listener = socket.socket(family)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listener.bind((host, port))
    except OSError as error:
        raise Refused(
            f"cannot listen at {host}, port {port} ({error.strerror}): --port takes another"
        ) from error
    listener.listen(256)
    return listener


def _key(file: Path | None) -> str:
    if file is None:
        return os.environ.get(KEY, "").strip()
    try:
        key = file.read_text("utf-8").strip()
    except (OSError, ValueError) as error:
        raise Refused(f"--key-file {file} cannot be read ({error})") from error
    if not key:
        raise Refused(f"--key-file {file} is empty")
    return key
