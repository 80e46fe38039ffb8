"""One run at a time in a work folder: two would overwrite each other's checkpoints and mix their curves.

The lock is the kernel's (flock), so it ends with the process that holds it, however that ends; the file says whose it
is. Where the file system knows no locks, that is said, and there is none.
"""

from __future__ import annotations

import contextlib
import datetime
import errno
import fcntl
import json
import logging
import os
import socket
import time
from collections.abc import Iterator
from pathlib import Path

from model.training.config import ConfigError

log = logging.getLogger("steel.training")
NAME = "run.lock"
WAIT_SECONDS = 5.0
"""For a run that is just ending, or whose killed process the kernel is still clearing away."""


@contextlib.contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Hold the folder (one rank of a run does); ConfigError, with its owner's name, if another run has it."""
    path, end = folder / NAME, time.monotonic() + WAIT_SECONDS
    while (handle := _take(path)) is None:
        if time.monotonic() > end:
            raise ConfigError(
                f"work_dir: {folder} is in use by {_owner(path)}; end it first, or take another folder"
            )
        time.sleep(0.1)
    try:
        yield
    finally:
        path.unlink(missing_ok=True)
        os.close(handle)


def _take(path: Path) -> int | None:
    """The locked file, or None where it is another's."""
    try:
        handle = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
    except OSError as error:
        raise ConfigError(f"work_dir: {path} cannot be written: {error.strerror}") from None
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(handle)
        return None
    except OSError as error:
        if error.errno not in (errno.ENOLCK, errno.ENOTSUP, errno.ENOSYS):
            raise
        log.warning("%s: this file system has no locks; see that no other run writes here", path.parent)
    # its owner may have removed it between our opening and our locking: then it is no longer the folder's lock
    if not path.exists() or path.stat().st_ino != os.fstat(handle).st_ino:
        os.close(handle)
        return None
    since = datetime.datetime.now().astimezone().isoformat(timespec="seconds")
    owner = {"host": socket.gethostname(), "pid": os.getpid(), "since": since}
    with contextlib.suppress(OSError):  # a full disk: the lock holds all the same
        os.ftruncate(handle, 0)
        os.pwrite(handle, json.dumps(owner).encode(), 0)
    return handle


def _owner(path: Path) -> str:
    try:
        owner = json.loads(path.read_text("utf-8"))
        return f"process {owner['pid']} on {owner['host']} since {owner['since']}"
    except (OSError, ValueError, KeyError, TypeError):  # of another program, or not yet written
        return "another run"
