"""The files below a folder, through links: what os.walk would pass over in silence is an error or is told."""

from __future__ import annotations

import os
import stat
from collections import deque
from pathlib import Path

from tasks.download.names import is_litter, readable
from tasks.settings.errors import NodeError

PATHS = 16
"""A folder is entered by so many paths at most: links of folders to each other make paths without end."""


class Walk:
    """What lies below `folder`. NodeError for a link to nothing, and what may not be read."""

    def __init__(self, name: str, folder: Path):
        self.name, self.folder = name, folder
        self.files: list[str] = []
        """Relative paths, as the disk has them."""
        self.keys: dict[str, tuple[int, int]] = {}
        """Path -> what tells the file itself, whatever it is called."""
        self.linked: set[str] = set()
        """Those of the paths that lead through a link."""
        self.left_out: list[str] = []
        """A line for each thing that was passed over, beside hidden files."""
        self._entered: dict[tuple[int, int], int] = {}
        self._litter = 0
        self._links: deque[tuple[str, tuple[tuple[int, int], ...]]] = deque()
        self._enter("", (), False)
        while self._links:  # after all that lies here itself, so that no link takes its place
            self._enter(*self._links.popleft(), True)
        self.files.sort()
        if self._litter:
            self.left_out.append(f"{self._litter:,} files of a desktop (__MACOSX, Thumbs.db, …) are left out")

    def _enter(self, below: str, above: tuple[tuple[int, int], ...], linked: bool) -> None:
        place = self.folder / below
        try:
            state = place.stat()
            entries = sorted(os.scandir(place), key=lambda entry: entry.name)
        except OSError as error:
            raise NodeError(
                f"source {self.name}: {_shown(place)} cannot be read: {error.strerror}"
            ) from error
        key = (state.st_dev, state.st_ino)
        if key in above:
            self.left_out.append(
                f"{readable(below)} is not entered: it is a link to a folder that it lies in"
            )
            return
        self._entered[key] = self._entered.get(key, 0) + 1
        if self._entered[key] > PATHS:
            self.left_out.append(
                f"{readable(below)} is not entered: {PATHS} links lead to that folder already"
            )
            return
        for entry in entries:
            path = f"{below}/{entry.name}" if below else entry.name
            if is_litter(entry.name):
                self._litter += 1
            elif not entry.name.startswith("."):
                self._take(entry, path, (*above, key), linked or entry.is_symlink())

    def _take(
        self, entry: os.DirEntry[str], path: str, above: tuple[tuple[int, int], ...], linked: bool
    ) -> None:
        try:
            state = entry.stat()
        except FileNotFoundError:
            raise NodeError(f"source {self.name}: {_shown(entry.path)} is a link to nothing") from None
        except OSError as error:
            raise NodeError(
                f"source {self.name}: {_shown(entry.path)} cannot be read: {error.strerror}"
            ) from error
        if stat.S_ISDIR(state.st_mode):
            if entry.is_symlink():
                self._links.append((path, above))
            else:
                self._enter(path, above, linked)
        elif stat.S_ISREG(state.st_mode):
            self.files.append(path)
            self.keys[path] = (state.st_dev, state.st_ino)
            if linked:
                self.linked.add(path)
        else:
            self.left_out.append(f"{readable(path)} is left out: it is a pipe, a socket or a device")


def _shown(path: str | Path) -> str:
    return readable(os.fspath(path))
