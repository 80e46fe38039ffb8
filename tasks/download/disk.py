"""Room on the disk, checked before it is needed, and files that are linked instead of copied."""

from __future__ import annotations

import os
import shutil
import threading
from pathlib import Path

from tasks.settings.errors import NodeError

SPARE = 200 << 20
"""Bytes that must stay free."""

_lock = threading.Lock()
_promised: dict[int, int] = {}
"""Device -> bytes that running downloads of this process have still to write."""


def free(folder: Path) -> int:
    """Free bytes on the disk of a folder, which need not exist yet."""
    while not folder.exists():
        folder = folder.parent
    return shutil.disk_usage(folder).free


class Reservation:
    """`with Reservation(folder, needed) as space:` refuses what does not fit beside the other downloads."""

    def __init__(self, folder: Path, needed: int):
        self._device = os.stat(folder).st_dev
        self._left = 0
        with _lock:
            promised = _promised.get(self._device, 0)
            room = free(folder)
            if needed > 0 and room < needed + promised + SPARE:
                beside = f" and {promised / 1e9:.1f} GB promised to other downloads" if promised else ""
                raise NodeError(
                    f"not enough space below {folder}: {needed / 1e9:.1f} GB to fetch{beside}, "
                    f"{room / 1e9:.1f} GB free; runtime.artifacts names another place"
                )
            _promised[self._device] = promised + needed
            self._left = needed

    def used(self, size: int) -> None:
        """So many bytes were written (negative: removed again), and count as used space from now on."""
        with _lock:
            self._left -= size
            _promised[self._device] -= size

    def __enter__(self) -> Reservation:
        return self

    def __exit__(self, *_: object) -> None:
        self.used(self._left)
