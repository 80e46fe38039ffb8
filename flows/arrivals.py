"""`python -m flows.arrivals FOLDER`: tell Prefect when a folder's files have changed since the last time.

Made to be called again and again (cron, a systemd path unit, the end of your own loader). The event `steel.data.arrived`
starts the deployments that have a trigger for it (deployments/examples/when.yaml). Files are compared by path, size
and time of change; what is still being written (changed within SETTLED_SECONDS) waits for the next call.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from flows import servers
from flows.settings import State, auth_string, clean_environment
from tasks.settings.files import read_memo, write_json

EVENT = "steel.data.arrived"
SETTLED_SECONDS = 30.0


def main(arguments: Sequence[str] | None = None) -> int:
    """0: told, or nothing new; 1: files are still being written; 2: the folder or the servers are not there."""
    parser = argparse.ArgumentParser(prog="python -m flows.arrivals", description="Tell Prefect of new data.")
    parser.add_argument("folder", type=Path)
    parser.add_argument("--settled", type=float, default=SETTLED_SECONDS, metavar="SECONDS")
    options = parser.parse_args(arguments)
    folder = options.folder.expanduser().resolve()
    if not folder.is_dir():
        print(f"{folder} is no folder", file=sys.stderr)
        return 2
    state = State.default()
    at = servers.addresses(state)
    if at is None:
        print("the servers have not been started here: make up", file=sys.stderr)
        return 2
    known = read_memo(state.arrivals)
    files = _files(folder)
    digest = hashlib.sha256(json.dumps(files).encode()).hexdigest()
    if known.get(str(folder)) == digest:
        print("nothing new")
        return 0
    newest = max((changed for _, _, changed in files), default=0) / 1e9
    if time.time() - newest < options.settled:
        print("files are still being written; call again")
        return 1
    os.environ.update(clean_environment(state, at, auth_string(state)))
    if not _told(folder, digest, len(files)):
        print(f"Prefect does not answer at {at.prefect}: make up", file=sys.stderr)
        return 2
    write_json(state.arrivals, {**known, str(folder): digest})
    print(f"told: {len(files)} files in {folder}")
    return 0


def _files(folder: Path) -> list[tuple[str, int, int]]:
    found = []
    for path in sorted(folder.rglob("*")):
        if path.is_file():
            status = path.stat()
            found.append((str(path.relative_to(folder)), status.st_size, status.st_mtime_ns))
    return found


def _told(folder: Path, digest: str, count: int) -> bool:
    """Send the event by HTTP, so that the answer is known: events otherwise go by a websocket, unconfirmed."""
    import httpx
    from prefect.client.orchestration import get_client
    from prefect.events.schemas.events import Event, Resource

    resource = {"prefect.resource.id": f"steel.data.{folder.name}", "steel.files": str(count)}
    event = Event(event=EVENT, resource=Resource(resource), payload={"folder": str(folder), "digest": digest})
    try:
        with get_client(sync_client=True) as client:
            client.request("POST", "/events", json=[event.model_dump(mode="json")])
    except httpx.HTTPError:
        return False
    return True


if __name__ == "__main__":
    sys.exit(main())
